//! `cargo xtask bench`: how long things take, as one JSON object a line, alone or in turns with another program.
//!
//! Every line has `bench`, `params`, `ms` (the median), `min_ms` and `peak_rss_mb` of the process that did the work, and
//! whatever else that bench knows.

mod against;
mod kernels;
mod line;
mod memory;
mod plot;
mod program;
mod scaling;

use std::time::Instant;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Two nearest neighbours of every point, and the sum of ln(r2 / r1)
    TwoNn(Compared<kernels::TwoNnArgs>),
    /// One linear map: frozen alone, with an adapter, and with the adapter's gradients
    Lora(Compared<kernels::LoraArgs>),
    /// `gelora rank` from texts to the points of every hidden state
    Hidden(Compared<program::HiddenArgs>),
    /// `gelora train`, step by step
    Train(Compared<program::TrainArgs>),
    /// Time and memory as sequences, batches and sets of points grow
    Scaling(scaling::Args),
}

/// A bench that another program can be measured against.
#[derive(clap::Args)]
struct Compared<T: clap::Args> {
    #[command(flatten)]
    bench: T,
    #[command(flatten)]
    against: against::Args,
}

impl<T: clap::Args> Compared<T> {
    fn run(&self, bench: impl FnOnce(&T) -> Result<()>) -> Result<()> {
        match &self.against.against {
            Some(command) => against::run(command, &self.against),
            None => bench(&self.bench),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    match &args.bench {
        Bench::TwoNn(compared) => compared.run(kernels::two_nn),
        Bench::Lora(compared) => compared.run(kernels::lora),
        Bench::Hidden(compared) => compared.run(program::hidden),
        Bench::Train(compared) => compared.run(program::train),
        Bench::Scaling(args) => scaling::run(args),
    }
}

/// Milliseconds of each of `repeats` calls, after two that are not counted.
fn timed<T>(repeats: usize, mut f: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
    for _ in 0..2 {
        std::hint::black_box(f()?);
    }
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats.max(1) {
        let began = Instant::now();
        let result = f()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(result);
    }
    Ok(times)
}

/// The middle value, or the mean of the two; NaN for none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 10.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn warm_up_is_not_counted() {
        let mut calls = 0;
        let times = timed(5, || {
            calls += 1;
            Ok(())
        });
        assert_eq!((times.map(|t| t.len()).ok(), calls), (Some(5), 7));
    }
}
