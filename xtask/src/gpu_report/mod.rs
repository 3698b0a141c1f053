//! `cargo xtask gpu-report`: verify and every bench on a GPU, beside PyTorch on the same GPU, as one Markdown file.
//!
//! It needs no sources beside itself, so that the two programs can be copied to a machine that has a GPU but no Rust.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use gelora_kernels::peak::Peak;
use gelora_kernels::{Device, DeviceKind};

use crate::{note, say};

/// What the other side runs.
const TORCH: &str = include_str!("torch_gpu.py");

#[derive(clap::Args)]
pub struct Args {
    /// cuda or wgpu
    #[arg(long, default_value_t = DeviceKind::Cuda)]
    device: DeviceKind,
    /// A Python that has torch with CUDA, transformers and peft; without one, gelora is measured alone
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Folder of an encoder such as MiniLM, for `hidden` and `train`; they are left out without it
    #[arg(long, requires = "data")]
    model: Option<PathBuf>,
    /// Labelled sentences as JSON lines
    #[arg(long, requires = "model", value_name = "FILE.jsonl")]
    data: Option<PathBuf>,
    /// The gelora program
    #[arg(long, value_name = "FILE", default_value = "target/release/gelora")]
    gelora: PathBuf,
    /// Where the report goes
    #[arg(long, default_value = "gpu-report.md", value_name = "FILE.md")]
    out: PathBuf,
    /// Turns of each comparison
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Small sizes, to see that it works
    #[arg(long)]
    quick: bool,
}

/// A section of the report: its title, and the arguments of `xtask` that fill it.
struct Section {
    title: &'static str,
    bench: String,
}

pub fn run(args: &Args) -> Result<()> {
    let device = Device::open(args.device)?;
    let peak = Peak::of(&device)?;
    let bf16 =
        peak.gflops_bf16.map_or("no matrix units for bf16".into(), |g| format!("{:.1} TFLOP/s in bf16", g / 1e3));
    let mut report = format!(
        "# gelora {} on {}\n\nCeilings, measured: {:.1} TFLOP/s in f32, {bf16}, {:.0} GB/s in a copy.\n\n",
        env!("CARGO_PKG_VERSION"),
        device.name(),
        peak.gflops_f32 / 1e3,
        peak.gbs
    );
    drop(device);
    let scratch = tempfile::tempdir()?;
    let script = scratch.path().join("torch_gpu.py");
    std::fs::write(&script, TORCH)?;
    let mut failed = Vec::new();

    let verified = own(&["verify", "--device", &args.device.to_string()])?;
    let text = String::from_utf8_lossy(&verified.stdout);
    let (summary, failures) =
        (text.lines().last().unwrap_or_default(), text.lines().filter(|l| l.starts_with("FAILED")));
    writeln!(report, "## verify\n\n{summary}\n")?;
    failures.for_each(|line| report.push_str(&format!("- {line}\n")));
    if !verified.status.success() {
        failed.push("verify");
    }

    if let Some(python) = &args.python {
        let size = if args.quick { "256" } else { "8192" };
        let output = Command::new(python).arg(&script).args(["product", "--size", size]).output();
        let output = output.with_context(|| format!("--python {} cannot be started", python.display()))?;
        if !output.status.success() {
            bail!("--python {}: {}", python.display(), last_line(&output.stderr));
        }
        writeln!(report, "## cuBLAS\n\n```\n{}```\n", String::from_utf8_lossy(&output.stdout))?;
    }
    for Section { title, bench } in sections(args) {
        note(format!("{title} ..."));
        let words: Vec<String> = bench.split_whitespace().map(|word| with_paths(word, args)).collect();
        let mut ours = vec!["bench".to_string()];
        ours.extend(words.iter().cloned());
        ours.extend(["--device".into(), args.device.to_string()]);
        if matches!(words[0].as_str(), "hidden" | "train") {
            ours.extend(["--gelora".into(), args.gelora.display().to_string()]);
        }
        writeln!(report, "## {title}\n\n`{bench}`\n")?;
        fill(&mut report, &mut failed, title, "gelora", &own(&ours)?)?;
        if let Some(python) = &args.python {
            let peer = format!("{} {} {}", quoted(python), quoted(&script), words.join(" "));
            ours.extend(["--against".into(), peer, "--turns".into(), args.turns.to_string()]);
            fill(&mut report, &mut failed, title, "in turns with PyTorch", &own(&ours)?)?;
        }
    }
    std::fs::write(&args.out, &report).with_context(|| args.out.display().to_string())?;
    say(format!("the report is in {}", args.out.display()));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn sections(args: &Args) -> Vec<Section> {
    let section = |title, bench: &str| Section { title, bench: bench.into() };
    let mut all = if args.quick {
        vec![
            section("Two nearest neighbours", "two-nn --n 300 --d 48 --repeats 2"),
            section("LoRA linear", "lora --tokens 64 --d-in 64 --d-out 64 --r 8 --repeats 2"),
        ]
    } else {
        vec![
            section("Two nearest neighbours", "two-nn --n 20000 --d 768"),
            section("LoRA linear, as in an LLM", "lora --tokens 8192 --d-in 4096 --d-out 4096 --r 16"),
            section("LoRA linear, as in MiniLM", "lora --tokens 4096 --d-in 384 --d-out 384 --r 8"),
        ]
    };
    if args.model.is_some() {
        let (samples, steps) = if args.quick { (64, 4) } else { (2000, 40) };
        let data = "--model MODEL --data DATA";
        all.push(section("Hidden states", &format!("hidden {data} --samples {samples} --batch 64")));
        all.push(section("Training", &format!("train {data} --steps {steps} --batch 128 --dtypes f32,bf16")));
    }
    all
}

/// MODEL and DATA stand for the paths that were given.
fn with_paths(word: &str, args: &Args) -> String {
    match (word, &args.model, &args.data) {
        ("MODEL", Some(model), _) => model.display().to_string(),
        ("DATA", _, Some(data)) => data.display().to_string(),
        _ => word.into(),
    }
}

/// This program with other arguments.
fn own<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Result<Output> {
    let program = std::env::current_exe().context("this program")?;
    Command::new(program).args(args).env("NODEVICE_SELECT", "1").output().context("this program cannot be started")
}

fn fill(
    report: &mut String,
    failed: &mut Vec<&'static str>,
    title: &'static str,
    who: &str,
    output: &Output,
) -> Result<()> {
    writeln!(report, "{who}:\n\n```\n{}```\n", String::from_utf8_lossy(&output.stdout))?;
    if !output.status.success() {
        writeln!(report, "FAILED: {}\n", last_line(&output.stderr))?;
        failed.push(title);
    }
    Ok(())
}

fn last_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output).lines().last().unwrap_or("it said nothing").to_string()
}

/// A path as one word of a shell command.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
