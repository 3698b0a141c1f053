//! Benchmarks of single operators at the larger shapes of their cases: `cargo bench -p gelora-kernels [-- FILTER]`.
//!
//! Criterion measures; a table then compares each rate with the machine's peak. `GELORA_DEVICE` is cpu (the default),
//! wgpu or cuda. On a GPU, a sample ends with a read of the results of its last launch.

use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use criterion::Criterion;
use gelora_kernels::cpu::{self, peak};
use gelora_kernels::verify::{Case, cases};
use gelora_kernels::{DType, Device, DeviceKind, Error, Tensor};

/// A case with at least this many operations or bytes is large enough to be measured.
const LARGE: f64 = 1e6;
const SAMPLES: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kind = std::env::var("GELORA_DEVICE").map_or(Ok(DeviceKind::Cpu), |name| name.parse())?;
    let device = Device::open(kind)?;
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args();
    let mut measured = Vec::new();
    for case in chosen(cases().into_iter().filter(|case| !case.near_limit).collect()) {
        let inputs = case.prepare(&device)?;
        match case.launch(&inputs) {
            Err(Error::Unsupported { .. }) => continue,
            other => other?,
        };
        if let Some(time) = measure(&mut criterion, &case, &inputs, &device)? {
            measured.push((case, time));
        }
    }
    criterion.final_summary();
    if !measured.is_empty() {
        let text = table(&measured, &device);
        writeln!(std::io::stdout().lock(), "{text}")?;
    }
    Ok(())
}

/// The large cases of every operator, or its largest case if none is large.
fn chosen(cases: Vec<Case>) -> Vec<Case> {
    let size = |case: &Case| case.flops.max(case.bytes);
    let mut largest = std::collections::BTreeMap::<&str, f64>::new();
    for case in &cases {
        let most = largest.entry(case.op).or_default();
        *most = most.max(size(case));
    }
    cases.into_iter().filter(|case| size(case) >= largest[case.op].min(LARGE)).collect()
}

/// Seconds of one run, the median of Criterion's samples; None if the case was filtered out.
fn measure(criterion: &mut Criterion, case: &Case, inputs: &[Tensor], device: &Device) -> Result<Option<f64>, Error> {
    let (samples, failure) = (RefCell::new(Vec::new()), RefCell::new(None));
    criterion.bench_function(&format!("{} {} {}", case.op, case.shape, case.dtype), |bencher| {
        bencher.iter_custom(|runs| {
            let began = Instant::now();
            if let Err(error) = run(case, inputs, device, runs) {
                failure.replace(Some(error));
            }
            let elapsed = began.elapsed();
            samples.borrow_mut().push(elapsed.as_secs_f64() / runs as f64);
            elapsed
        });
    });
    if let Some(error) = failure.take() {
        return Err(error);
    }
    // The samples follow the warm-up.
    let mut samples = samples.into_inner();
    let mut last = samples.split_off(samples.len().saturating_sub(SAMPLES));
    last.sort_by(f64::total_cmp);
    Ok(last.get(last.len() / 2).copied())
}

fn run(case: &Case, inputs: &[Tensor], device: &Device, runs: u64) -> Result<(), Error> {
    let mut outputs = Vec::new();
    for _ in 0..runs {
        outputs = std::hint::black_box(case.launch(inputs)?);
    }
    if device.kind() != DeviceKind::Cpu {
        for output in &outputs {
            output.to_vec_f64()?;
        }
    }
    Ok(())
}

fn table(measured: &[(Case, f64)], device: &Device) -> String {
    let on_cpu = device.kind() == DeviceKind::Cpu;
    let bf16 = peak::gflops_bf16();
    let of_peak = |case: &Case, gflops: f64| {
        let peak = bf16.filter(|_| case.dtype == DType::Bf16).unwrap_or_else(peak::gflops_f32);
        format!("{:.1}", 100.0 * gflops / peak)
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["operator", "shape", "dtype", "us", "GFLOP/s", "GB/s", "% of peak"]);
    for (case, seconds) in measured {
        let gflops = case.flops / seconds / 1e9;
        let counted = case.flops > 0.0;
        table.add_row([
            case.op.to_string(),
            case.shape.clone(),
            case.dtype.to_string(),
            format!("{:.1}", seconds * 1e6),
            if counted { format!("{gflops:.1}") } else { String::new() },
            format!("{:.1}", case.bytes / seconds / 1e9),
            if counted && on_cpu { of_peak(case, gflops) } else { String::new() },
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let peaks = if on_cpu {
        let bf16 = bf16.map_or("none in bf16".into(), |g| format!("{g:.0} in bf16"));
        let (f32, gbs) = (peak::gflops_f32(), peak::bandwidth_gbs());
        format!("{}: {f32:.0} GFLOP/s in f32, {bf16}; {gbs:.1} GB/s", cpu::describe())
    } else {
        device.name()
    };
    format!("{table}\n{peaks}")
}
