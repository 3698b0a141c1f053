//! `cargo xtask`: everything that is done with the repository.

mod bench;
mod circles;
mod demo;
mod gpu_report;
mod licenses;
mod test;
mod testbed;
mod tidy;
mod verify;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check every kernel against its f64 reference, on every device
    Verify(verify::Args),
    /// Formatting, lints, tests, doctests, verify: what CI runs
    Test,
    /// Measure time and memory, alone or in turns with another program
    Bench(bench::Args),
    /// Verify and all benches on a GPU, beside PyTorch there, as a Markdown file
    GpuReport(gpu_report::Args),
    /// Fetch a real model and real reviews, then rank, train, evaluate and merge
    Demo,
    /// Fetch the model and data of the demo and the tests into target/testbed
    Testbed,
    /// Check what clippy does not: sizes of files, stubs, circles of imports, licenses, who depends on CubeCL
    Tidy,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Verify(args) => verify::run(&args),
        Task::Test => test::run(),
        Task::Bench(args) => bench::run(&args),
        Task::GpuReport(args) => gpu_report::run(&args),
        Task::Demo => demo::run(),
        Task::Testbed => testbed::prepare().map(|_| ()),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A program of this workspace, as `cargo build --release` leaves it.
fn built(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target).join("release").join(name)
}

/// A line for the user.
#[allow(clippy::print_stdout)] // the one place that prints
fn say(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

/// A remark, apart from what is printed.
#[allow(clippy::print_stderr)] // likewise
fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Runs a command in the repository, showing it first; its failure is an error.
fn shell(program: &str, args: &[&str]) -> Result<()> {
    say(format!("$ {program} {}", args.join(" ")));
    // Mesa's device-select layer writes an error to stderr where there is no desktop.
    let status = Command::new(program).args(args).current_dir(root()).env("NODEVICE_SELECT", "1").status();
    let status = status.with_context(|| format!("{program} cannot be started; is it installed?"))?;
    if !status.success() {
        bail!("`{program} {}` failed ({status})", args.join(" "));
    }
    Ok(())
}

/// The cargo that runs this.
fn cargo(args: &[&str]) -> Result<()> {
    shell(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args)
}
