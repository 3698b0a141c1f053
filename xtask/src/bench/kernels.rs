//! What is measured in this process: neighbours, and one linear map with an adapter.

use anyhow::Result;
use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{lora_linear::LoraLinear, pairwise};
use gelora_kernels::verify::random;
use gelora_kernels::{DType, Tensor};
use serde_json::json;

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
}

/// Types that the products with the frozen weight are computed in.
const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

pub fn two_nn(args: &TwoNnArgs) -> Result<()> {
    let points = random([args.n, args.d], 0);
    let times = timed(args.repeats, || {
        let found = pairwise::nearest(&points, 2)?;
        Ok(found.distances.chunks_exact(2).map(|r| (r[1] / r[0]).ln()).sum::<f64>())
    })?;
    let params = json!({"n": args.n, "d": args.d, "threads": rayon::current_num_threads()});
    Line::new("two-nn/gelora", params, &times, own_peak_mb()).emit()
}

pub fn lora(args: &LoraArgs) -> Result<()> {
    let LoraArgs { tokens, d_in, d_out, r, repeats } = *args;
    let (a, b, bias) = (random([r, d_in], 2), random([d_out, r], 3), random([d_out], 4));
    let (x, dy) = (random([tokens, d_in], 5), random([tokens, d_out], 6));
    for dtype in DTYPES {
        let weight = frozen(random([d_out, d_in], 1), dtype)?;
        let layer = LoraLinear { weight: &weight, bias: Some(&bias), a: &a, b: &b, scaling: 2.0, dropout: None };
        let params = json!({"tokens": tokens, "in": d_in, "out": d_out, "r": r, "dtype": dtype.to_string(),
            "threads": rayon::current_num_threads()});
        let emit = |bench: &str, times: Vec<f64>| Line::new(bench, params.clone(), &times, own_peak_mb()).emit();
        emit("lora/base-linear", timed(repeats, || Ok(linear::forward(&x, &weight, Some(&bias))?))?)?;
        emit("lora/forward", timed(repeats, || Ok(layer.forward(&x)?))?)?;
        let both = || {
            let (y, saved) = layer.forward(&x)?;
            Ok((y, layer.backward(&x, &dy, saved)?))
        };
        emit("lora/forward+backward", timed(repeats, both)?)?;
    }
    Ok(())
}

/// A weight as a model holds it.
fn frozen(weight: Tensor, dtype: DType) -> Result<Weight> {
    Ok(Weight::new(weight, dtype)?)
}
