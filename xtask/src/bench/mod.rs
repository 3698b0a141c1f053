//! `cargo xtask bench`: how long things take, as one JSON object a line, alone or in turns with another program.
//!
//! Every line has `bench`, `params`, `ms` (the median), `min_ms` and `peak_rss_mb` of the process that did the work,
//! and whatever else that bench knows.

mod against;
mod generate;
mod kernels;
mod line;
mod memory;
mod plot;
mod program;
mod scaling;

pub use program::losses;

use std::time::Instant;

use anyhow::Result;
use clap::Subcommand;
use gelora_kernels::{Device, DeviceKind};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Two nearest neighbors of every point, and the sum of ln(r2 / r1)
    TwoNn(Compared<kernels::TwoNnArgs>),
    /// One linear map: frozen alone, with an adapter, and with the adapter's gradients
    Lora(Compared<kernels::LoraArgs>),
    /// `gelora rank` from texts to the points of every hidden state
    Hidden(Compared<program::HiddenArgs>),
    /// `gelora train`, step by step
    Train(Compared<program::TrainArgs>),
    /// `gelora generate`: reading a prompt, and the tokens after it
    Generate(Compared<generate::GenerateArgs>),
    /// `gelora generate`: reading a prompt
    Prompt(Compared<generate::GenerateArgs>),
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
        Bench::Generate(compared) => compared.run(generate::generate),
        Bench::Prompt(compared) => compared.run(generate::prompt),
        Bench::Scaling(args) => scaling::run(args),
    }
}

/// Samples on a GPU last so long at least, in milliseconds: the host waits once a sample.
const GPU_SAMPLE_MS: f64 = 10.0;

/// Milliseconds of a call, `repeats` times, after two that are not counted. On a GPU a sample is a number of calls, and
/// a wait at its end.
fn timed<T>(device: &Device, repeats: usize, mut f: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
    let mut sample = |calls: usize| {
        let began = Instant::now();
        for _ in 0..calls {
            std::hint::black_box(f()?);
        }
        device.wait()?;
        Ok::<_, anyhow::Error>(began.elapsed().as_secs_f64() * 1e3 / calls as f64)
    };
    sample(1)?;
    let one = sample(1)?;
    let calls = match device.kind() {
        DeviceKind::Cpu => 1,
        _ => (GPU_SAMPLE_MS / one).ceil().clamp(1.0, 1000.0) as usize,
    };
    (0..repeats.max(1)).map(|_| sample(calls)).collect()
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
        let times = timed(&Device::Cpu, 5, || {
            calls += 1;
            Ok(())
        });
        assert_eq!((times.map(|t| t.len()).ok(), calls), (Some(5), 7));
    }
}
