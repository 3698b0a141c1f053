//! `cargo xtask test`: all that must hold before a commit lands.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use gelora_kernels::cpu;

use crate::{cargo, licenses, say, testbed, tidy, verify};

/// Tests on real weights are compiled in.
const TESTBED: [&str; 2] = ["--features", "gelora-model/testbed,gelora-cli/testbed"];

pub fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    licenses::deny()?;
    cargo(
        &[&["clippy", "--release", "--workspace", "--all-targets"], &TESTBED[..], &["--", "-D", "warnings"]].concat(),
    )?;
    cargo(&["check", "--release", "-p", "gelora-id", "--no-default-features"])?;
    testbed::prepare()?;
    // The cases of the kernels take minutes on a software GPU; `verify` below runs them.
    let (tests, but_cases) = match nextest() {
        true => (&["nextest", "run"][..], ["-E", "not test(every_case_passes)"]),
        false => (&["test", "--lib", "--bins", "--tests"][..], ["--", "--skip=every_case_passes"]),
    };
    cargo(&[tests, &["--release", "--workspace"], &TESTBED, &but_cases].concat())?;
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

fn nextest() -> bool {
    let version =
        Command::new("cargo").args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
