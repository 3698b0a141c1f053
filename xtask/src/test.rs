//! `cargo xtask test`: all that must hold before a commit lands.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use gelora_kernels::cpu;

use crate::{cargo, licenses, note, say, testbed, tidy, verify};

/// Tests on real weights are compiled in.
const TESTBED: &str = "gelora-model/testbed,gelora-cli/testbed";
/// Tests of several processes are compiled in where MPI is installed.
const MPI: &str = "gelora-cli/mpi";
/// Variable that makes a missing MPI an error.
const REQUIRE_MPI: &str = "GELORA_REQUIRE_MPI";

pub fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    licenses::deny()?;
    let all_features = match has("mpicc") && has("mpirun") {
        true => format!("{TESTBED},{MPI}"),
        false if std::env::var_os(REQUIRE_MPI).is_some() => {
            bail!("{REQUIRE_MPI}: mpicc and mpirun are not installed (Debian: libopenmpi-dev openmpi-bin libclang-dev)")
        }
        false => {
            note("note: mpicc and mpirun are not installed, so tests of several processes are left out");
            TESTBED.to_owned()
        }
    };
    let features = ["--features", &all_features];
    cargo(
        &[&["clippy", "--release", "--workspace", "--all-targets"], &features[..], &["--", "-D", "warnings"]].concat(),
    )?;
    cargo(&["check", "--release", "-p", "gelora-id", "--no-default-features"])?;
    testbed::prepare()?;
    // The cases of the kernels take minutes on a software GPU; `verify` below runs them.
    let (tests, but_cases) = match nextest() {
        true => (&["nextest", "run"][..], ["-E", "not test(every_case_passes)"]),
        false => (&["test", "--lib", "--bins", "--tests"][..], ["--", "--skip=every_case_passes"]),
    };
    cargo(&[tests, &["--release", "--workspace"], &features, &but_cases].concat())?;
    cargo(&["test", "--release", "--workspace", "--doc"])?;
    verify::run(&verify::Args::everything())?;
    for level in ["avx512", "avx2", "portable"] {
        lower(level)?;
    }
    say("\nall good");
    Ok(())
}

/// Verifies the CPU paths with no more than these vector instructions: what they are is decided once a process.
fn lower(level: &str) -> Result<()> {
    say(format!("$ {}={level} cargo xtask verify --device cpu", cpu::VARIABLE));
    let mut verify = Command::new(std::env::current_exe()?);
    let output = verify.args(["verify", "--device", "cpu"]).env(cpu::VARIABLE, level).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !output.status.success() {
        bail!("verify with {level}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    say(last);
    Ok(())
}

/// Whether a program of MPI is installed.
fn has(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

fn nextest() -> bool {
    let version =
        Command::new("cargo").args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
