//! `cargo xtask bench scaling`: how time and memory grow with the length of sequences, the batch, and the number of
//! points.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gelora_kernels::DeviceKind;
use gelora_kernels::random::Stream;
use serde_json::{Value, json};

use super::line::{self, Line};
use super::plot::{self, Panel};
use super::program::{ProgramArgs, Ranks, Training};
use crate::note;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model
    #[arg(long)]
    model: PathBuf,
    /// Where the picture goes
    #[arg(long, default_value = "docs/scaling.svg", value_name = "FILE.svg")]
    out: PathBuf,
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Small sizes, to see that it works
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    program: ProgramArgs,
}

/// What is measured.
struct Plan {
    /// Tokens of a sequence, at `batch_of_lengths`.
    lengths: &'static [usize],
    batch_of_lengths: usize,
    /// Sequences of a batch, at `length_of_batches`.
    batches: &'static [usize],
    length_of_batches: usize,
    steps: usize,
    /// Numbers of points, in `dim` dimensions.
    points: &'static [usize],
    dim: usize,
    repeats: usize,
}

const WHOLE: Plan = Plan {
    lengths: &[32, 64, 128, 256, 512],
    batch_of_lengths: 16,
    batches: &[8, 16, 32, 64],
    length_of_batches: 64,
    steps: 10,
    points: &[1_000, 2_000, 5_000, 10_000, 20_000, 50_000],
    dim: 384,
    repeats: 3,
};

const QUICK: Plan = Plan {
    lengths: &[8, 16, 32],
    batch_of_lengths: 2,
    batches: &[1, 2, 4],
    length_of_batches: 16,
    steps: 5,
    points: &[100, 200, 400, 800],
    dim: 16,
    repeats: 3,
};

pub fn run(args: &Args) -> Result<()> {
    let plan = if args.quick { QUICK } else { WHOLE };
    let gelora = args.program.path()?;
    let words = words(&args.model)?;
    let train =
        |bench: &str, batch: usize, length: usize| step(args, &gelora, &words, bench, plan.steps, batch, length);
    let mut lengths = Vec::new();
    for &length in plan.lengths {
        lengths.push((length, train("scaling/length", plan.batch_of_lengths, length)?));
    }
    let mut batches = Vec::new();
    for &batch in plan.batches {
        batches.push((batch, train("scaling/batch", batch, plan.length_of_batches)?));
    }
    let mut points = Vec::new();
    for &n in plan.points {
        points.push((n, neighbors(n, plan.dim, plan.repeats)?));
    }
    let panel = |title: &str, symbol: char, x: &str, lines: &[(usize, Line)]| Panel {
        title: title.into(),
        x: x.into(),
        symbol,
        ms: lines.iter().map(|(x, line)| (*x as f64, line.ms)).collect(),
        mb: lines.iter().filter_map(|(x, line)| Some((*x as f64, line.peak_rss_mb?))).collect(),
    };
    let panels = [
        panel("Training step", 'T', &format!("tokens of a sequence T (batch of {})", plan.batch_of_lengths), &lengths),
        panel(
            "Training step",
            'B',
            &format!("sequences of a batch B (of {} tokens)", plan.length_of_batches),
            &batches,
        ),
        panel("Neighbors", 'n', &format!("points n (in {} dimensions)", plan.dim), &points),
    ];
    if let Some(folder) = args.out.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&args.out, plot::svg(&panels)?).with_context(|| args.out.display().to_string())?;
    note(format!("written: {}", args.out.display()));
    Ok(())
}

/// Steps on sequences of exactly so many tokens.
fn step(
    args: &Args,
    gelora: &Path,
    words: &[String],
    bench: &str,
    steps: usize,
    batch: usize,
    length: usize,
) -> Result<Line> {
    let scratch = tempfile::tempdir()?;
    let data = scratch.path().join("rows.jsonl");
    fs::write(&data, rows(words, steps * batch, length))?;
    let training = Training {
        model: &args.model,
        data: &data,
        steps,
        batch,
        dtype: &args.dtype,
        ranks: Ranks::Same(8),
        device: DeviceKind::Cpu,
    };
    let run = training.run(gelora, length, scratch.path())?;
    if let Some(step) = run.profile.steps.iter().find(|s| s.tokens != batch * length) {
        bail!("{}: {} tokens in a step of {batch} x {length}", args.model.display(), step.tokens);
    }
    let params = json!({"batch": batch, "length": length, "dtype": args.dtype, "rank": 8});
    let times = run.steady_ms();
    let line = Line::new(bench, params, &times, run.peak_rss_mb);
    let per_second = (batch * length) as f64 / line.ms * 1e3;
    let line = line.with("tokens_per_s", per_second, 0);
    line.emit()?;
    Ok(line)
}

/// `bench two-nn` in a process of its own, whose memory is that of this size alone.
fn neighbors(n: usize, dim: usize, repeats: usize) -> Result<Line> {
    let sizes = [("--n", n), ("--d", dim), ("--repeats", repeats)];
    let sizes = sizes.into_iter().flat_map(|(flag, value)| [flag.to_string(), value.to_string()]);
    let output = Command::new(std::env::current_exe()?).args(["bench", "two-nn"]).args(sizes).output()?;
    ensure!(output.status.success(), "bench two-nn: {}", String::from_utf8_lossy(&output.stderr));
    let mut line =
        line::parse(&String::from_utf8_lossy(&output.stdout))?.pop().context("bench two-nn printed nothing")?;
    line.bench = "scaling/points".into();
    line.emit()?;
    Ok(line)
}

/// JSON lines of texts of `length` tokens, of which two are special; labels alternate.
fn rows(words: &[String], rows: usize, length: usize) -> String {
    let mut stream = Stream::new(length as u64);
    let mut lines = String::new();
    for row in 0..rows {
        let text: Vec<&str> = (2..length).map(|_| words[stream.below(words.len())].as_str()).collect();
        lines.push_str(&format!("{}\n", json!({"sentence": text.join(" "), "label": row % 2})));
    }
    lines
}

/// Words that a tokenizer has as one token each.
fn words(model: &Path) -> Result<Vec<String>> {
    let path = model.join("tokenizer.json");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let tokenizer: Value = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    let vocabulary = tokenizer["model"]["vocab"].as_object().with_context(|| path.display().to_string())?;
    let plain = |word: &str| (3..9).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase());
    let words: Vec<String> = vocabulary.keys().filter(|word| plain(word)).cloned().collect();
    ensure!(words.len() >= 10, "{}: a vocabulary without whole words", path.display());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_as_many_words_as_fit() {
        let words = ["good".to_string(), "film".to_string()];
        let text = rows(&words, 3, 7);
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 3);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["sentence"].as_str().map(|s| s.split(' ').count()), Some(5));
            assert_eq!(row["label"], i % 2);
        }
    }
}
