//! What is measured in this process: neighbors, and one linear map with an adapter.

use anyhow::Result;
use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{lora_linear::LoraLinear, pairwise};
use gelora_kernels::peak::Peak;
use gelora_kernels::verify::random;
use gelora_kernels::{DType, Device, DeviceKind, Error, Tensor, profile};
use serde_json::{Value, json};

use super::line::Line;
use super::memory::own_peak_mb;
use super::timed;

#[derive(clap::Args)]
pub struct TwoNnArgs {
    /// Points
    #[arg(long, default_value_t = 4096)]
    n: usize,
    /// Dimension of the space
    #[arg(long, default_value_t = 384)]
    d: usize,
    #[arg(long, default_value_t = 10)]
    repeats: usize,
    /// cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
}

#[derive(clap::Args)]
pub struct LoraArgs {
    /// Rows of x
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    #[arg(long, default_value_t = 384)]
    d_in: usize,
    #[arg(long, default_value_t = 384)]
    d_out: usize,
    /// Rank
    #[arg(long, default_value_t = 8)]
    r: usize,
    #[arg(long, default_value_t = 30)]
    repeats: usize,
    /// cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
}

/// Types that the products with the frozen weight are computed in.
const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

pub fn two_nn(args: &TwoNnArgs) -> Result<()> {
    let device = Device::open(args.device)?;
    let points = random([args.n, args.d], 0).to_device(&device)?;
    let before = device.memory_in_use()?;
    profile::start();
    pairwise::nearest(&points, 2)?;
    profile::stop();
    let most = profile::most_memory();
    let times = timed(&device, args.repeats, || {
        let found = pairwise::nearest(&points, 2)?;
        Ok(found.distances.chunks_exact(2).map(|r| (r[1] / r[0]).ln()).sum::<f64>())
    })?;
    let peak = Peak::of(&device)?;
    let params = params(&device, json!({"n": args.n, "d": args.d}));
    // A multiply-add for each dimension of each pair, once.
    let flops = (args.n * args.n * args.d) as f64;
    let bytes = 4.0 * (args.n * args.d) as f64;
    let mut line = Line::new("two-nn/gelora", params, &times, own_peak_mb());
    if let Some(before) = before {
        line = line.with("device_mb_beside_points", most.saturating_sub(before) as f64 / 1e6, 1);
    }
    rates(line, flops, bytes, DType::F32, &peak).emit()
}

pub fn lora(args: &LoraArgs) -> Result<()> {
    let LoraArgs { tokens, d_in, d_out, r, repeats, device } = *args;
    let device = Device::open(device)?;
    let peak = Peak::of(&device)?;
    let there = |t: Tensor| t.to_device(&device);
    let (a, b, bias) = (there(random([r, d_in], 2))?, there(random([d_out, r], 3))?, there(random([d_out], 4))?);
    let (x, dy) = (there(random([tokens, d_in], 5))?, there(random([tokens, d_out], 6))?);
    let base = 2.0 * (tokens * d_in * d_out) as f64;
    let adapter = 2.0 * (tokens * r * (d_in + d_out)) as f64;
    for dtype in DTYPES {
        let weight = frozen(random([d_out, d_in], 1), dtype, &device)?;
        let layer = LoraLinear { weight: &weight, bias: Some(&bias), a: &a, b: &b, scaling: 2.0, dropout: None };
        let sizes = json!({"tokens": tokens, "in": d_in, "out": d_out, "r": r, "dtype": dtype.to_string()});
        let params = params(&device, sizes);
        let values = (weight.tensor().dtype().bytes(weight.tensor().len()) + 4 * tokens * (d_in + d_out)) as f64;
        let emit = |bench: &str, times: Vec<f64>, flops: f64, bytes: f64| {
            rates(Line::new(bench, params.clone(), &times, own_peak_mb()), flops, bytes, dtype, &peak).emit()
        };
        let times = timed(&device, repeats, || Ok(linear::forward(&x, &weight, Some(&bias))?))?;
        emit("lora/base-linear", times, base, values)?;
        emit("lora/forward", timed(&device, repeats, || Ok(layer.forward(&x)?))?, base + adapter, values)?;
        let both = || {
            let (y, saved) = layer.forward(&x)?;
            Ok((y, layer.backward(&x, &dy, saved)?))
        };
        emit("lora/forward+backward", timed(&device, repeats, both)?, 2.0 * base + 3.0 * adapter, 2.0 * values)?;
    }
    Ok(())
}

/// With the device; on the CPU with the number of threads too.
fn params(device: &Device, mut params: Value) -> Value {
    params["device"] = device.kind().to_string().into();
    match device.kind() {
        DeviceKind::Cpu => params["threads"] = rayon::current_num_threads().into(),
        _ => params["name"] = device.name().into(),
    }
    params
}

/// With rates, and the larger of their shares of the device's ceilings.
fn rates(line: Line, flops: f64, bytes: f64, dtype: DType, peak: &Peak) -> Line {
    let (gflops, gbs) = (flops / line.ms / 1e6, bytes / line.ms / 1e6);
    let most = peak.gflops_bf16.filter(|_| dtype == DType::Bf16).unwrap_or(peak.gflops_f32);
    let share = (gflops / most).max(gbs / peak.gbs);
    line.with("gflops", gflops, 1).with("gbs", gbs, 1).with("percent_of_peak", 100.0 * share, 1)
}

/// A weight as a model of that type holds it: on a GPU, stored in it where the device can.
fn frozen(weight: Tensor, dtype: DType, device: &Device) -> Result<Weight> {
    if device.kind() == DeviceKind::Cpu {
        return Ok(Weight::new(weight, dtype)?);
    }
    let stored = match weight.to_dtype(dtype)?.to_device(device) {
        Err(Error::Unsupported { .. }) => weight.to_device(device)?,
        other => other?,
    };
    Ok(Weight::new(stored, dtype)?)
}
