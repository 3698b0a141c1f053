//! `cargo xtask test`: all that must hold before a commit lands.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{cargo, say, testbed, tidy, verify};

/// Tests on real weights are compiled in.
const TESTBED: [&str; 2] = ["--features", "gelora-model/testbed,gelora-cli/testbed"];

pub fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    cargo(
        &[&["clippy", "--release", "--workspace", "--all-targets"], &TESTBED[..], &["--", "-D", "warnings"]].concat(),
    )?;
    cargo(&["check", "--release", "-p", "gelora-id", "--no-default-features"])?;
    testbed::prepare()?;
    let tests = if nextest() { &["nextest", "run"][..] } else { &["test", "--lib", "--bins", "--tests"] };
    cargo(&[tests, &["--release", "--workspace"], &TESTBED].concat())?;
    cargo(&["test", "--release", "--workspace", "--doc"])?;
    verify::run(&verify::Args::everything())?;
    say("\nall good");
    Ok(())
}

fn nextest() -> bool {
    let version =
        Command::new("cargo").args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
