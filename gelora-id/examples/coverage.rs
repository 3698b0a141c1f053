//! How often do the intervals hold the true dimension? Draws uniform cubes and prints a Markdown table.
//!
//!     cargo run --release -p gelora-id --example coverage -- [--draws 100] [--n 10000] [--dims 2,5,10,20]
//!
//! "coverage" counts the intervals that hold the cube's dimension; "without bias" those that hold the mean estimate of all
//! draws, which is what an interval for a biased estimator can hope for. "spread" is the standard deviation of the
//! estimates, in per cent of their mean.

use std::collections::HashMap;
use std::io::Write;

use gelora_id::{Estimator, Neighbourhood, Options};
use gelora_kernels::{Tensor, random::Stream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut given = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name}: a value is missing"))?;
        given.insert(name, value);
    }
    let text = |name: &str, default: &str| given.get(name).cloned().unwrap_or(default.to_string());
    let (draws, n): (usize, usize) = (text("--draws", "100").parse()?, text("--n", "10000").parse()?);

    let mut out = std::io::stdout().lock();
    writeln!(out, "| dimension | estimator | mean id | bias | spread | coverage of 95 % | without bias |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for dim in text("--dims", "2,5,10,20").split(',') {
        let dim: usize = dim.parse()?;
        let options =
            [Estimator::default(), Estimator::TwoNnMle].map(|estimator| Options { estimator, confidence: 0.95 });
        let mut estimates = [Vec::new(), Vec::new()];
        for draw in 0..draws {
            let mut random = Stream::at(draw as u64, &[dim as u64]);
            let cube = (0..n * dim).map(|_| random.uniform()).collect();
            let neighbourhood = Neighbourhood::of(&Tensor::from_f64(cube, [n, dim])?)?;
            for (estimates, options) in estimates.iter_mut().zip(&options) {
                estimates.push(neighbourhood.estimate(options)?);
            }
        }
        for (estimates, options) in estimates.iter().zip(&options) {
            let mean = estimates.iter().map(|e| e.id).sum::<f64>() / draws as f64;
            let spread = (estimates.iter().map(|e| (e.id - mean).powi(2)).sum::<f64>() / draws as f64).sqrt();
            let coverage = |value: f64| {
                let holds = estimates.iter().filter(|e| e.interval[0] <= value && value <= e.interval[1]).count();
                100.0 * holds as f64 / draws as f64
            };
            writeln!(
                out,
                "| {dim} | {} | {mean:.3} | {:+.1} % | {:.2} % | {:.0} % | {:.0} % |",
                options.estimator,
                100.0 * (mean / dim as f64 - 1.0),
                100.0 * spread / mean,
                coverage(dim as f64),
                coverage(mean),
            )?;
        }
        out.flush()?;
    }
    Ok(())
}
