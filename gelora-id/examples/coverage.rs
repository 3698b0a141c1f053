//! How often do the intervals hold the true dimension? Draws clouds and prints a Markdown table.
//!
//!     cargo run --release -p gelora-id --example coverage -- [--draws 100] [--n 2000] [--clouds cube-2,sphere-5,..]
//!         [--estimators two-nn-fit,..]
//!
//! A cloud is a family and its dimension, ball-10, with noise-0.05 in front for Gaussian noise of that deviation.
//! "coverage" counts the intervals that hold the cloud's dimension; "without bias" those that hold the mean estimate of
//! all draws, which is what an interval for a biased estimator can hope for. "spread" is the standard deviation of the
//! estimates, in per cent of their mean.

mod clouds;

use std::collections::HashMap;
use std::io::Write;

use clouds::{Result, cloud};
use gelora_id::{Estimator, Neighborhood, Options};

const CLOUDS: &str = "cube-2,cube-10,ball-5,ball-20,sphere-5,sphere-20,nonlinear-2,swiss-roll-2,noise-0.3-swiss-roll-2";

fn main() -> Result {
    let mut given = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name}: a value is missing"))?;
        given.insert(name, value);
    }
    let text = |name: &str, default: &str| given.get(name).cloned().unwrap_or(default.to_string());
    let (draws, n): (usize, usize) = (text("--draws", "100").parse()?, text("--n", "2000").parse()?);
    let estimators = text("--estimators", &Estimator::names().join(","));
    let estimators = estimators.split(',').map(str::parse).collect::<std::result::Result<Vec<Estimator>, _>>()?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "| cloud | estimator | mean id | bias | spread | coverage of 95 % | without bias |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for name in text("--clouds", CLOUDS).split(',') {
        let dim: f64 = name.rsplit('-').next().unwrap_or_default().parse()?;
        let mut estimates = vec![Vec::new(); estimators.len()];
        for draw in 0..draws {
            let neighborhood = Neighborhood::for_estimators(&cloud(name, n, draw as u64)?, &estimators)?;
            for (estimates, estimator) in estimates.iter_mut().zip(&estimators) {
                estimates.push(neighborhood.estimate(&Options { estimator: *estimator, confidence: 0.95 })?);
            }
        }
        for (estimates, estimator) in estimates.iter().zip(&estimators) {
            let mean = estimates.iter().map(|e| e.id).sum::<f64>() / draws as f64;
            let spread = (estimates.iter().map(|e| (e.id - mean).powi(2)).sum::<f64>() / draws as f64).sqrt();
            let coverage = |value: f64| {
                let holds = estimates.iter().filter(|e| e.interval[0] <= value && value <= e.interval[1]).count();
                100.0 * holds as f64 / draws as f64
            };
            writeln!(
                out,
                "| {name} | {estimator} | {mean:.3} | {:+.1} % | {:.2} % | {:.0} % | {:.0} % |",
                100.0 * (mean / dim - 1.0),
                100.0 * spread / mean,
                coverage(dim),
                coverage(mean),
            )?;
        }
        out.flush()?;
    }
    Ok(())
}
