//! `cargo xtask tidy`: rules of this repository that no lint knows.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{circles, licenses, root, say};

/// Lines of a Rust file, above which it should be two files.
const LONGEST: usize = 500;
/// The crates of the workspace, lowest first.
const CRATES: [&str; 6] = ["gelora-kernels", "gelora-id", "gelora-lora", "gelora-model", "gelora-cli", "xtask"];
/// Columns of a line of code or text. Rows of Markdown tables may be wider: they cannot be broken.
const WIDEST: usize = 120;
/// Bytes of a committed file, above which it should be fetched or made instead.
const LARGEST: u64 = 1_000_000;

pub fn run() -> Result<()> {
    let mut problems = Vec::new();
    for path in tracked_files()? {
        let full = root().join(&path);
        let shown = path.display();
        let Ok(metadata) = full.metadata() else { continue }; // deleted, not committed yet
        if metadata.len() > LARGEST {
            problems.push(format!("{shown}: {} bytes; committed files stay below {LARGEST}", metadata.len()));
        }
        if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&full).with_context(|| shown.to_string())?;
            problems.extend(rust_problems(&path, &text));
        }
        if path.extension().is_some_and(|e| ["rs", "md", "toml"].iter().any(|ending| e == *ending)) {
            let text = std::fs::read_to_string(&full).with_context(|| shown.to_string())?;
            problems.extend(wide_lines(&path, &text));
        }
    }
    problems.extend(cubecl_outside_kernels()?);
    problems.extend(licenses::problems()?);
    problems.extend(circles::problems(&root(), &CRATES)?);
    if !problems.is_empty() {
        bail!("tidy:\n{}", problems.join("\n"));
    }
    say("tidy: ok");
    Ok(())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output().context("git")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().map(PathBuf::from).collect())
}

fn wide_lines(path: &Path, text: &str) -> Vec<String> {
    let is_wide = |line: &str| line.chars().count() > WIDEST && !line.starts_with('|');
    let wide = text.lines().enumerate().filter(|(_, line)| is_wide(line));
    wide.map(|(i, _)| format!("{}:{}: a line of more than {WIDEST} columns", path.display(), i + 1)).collect()
}

fn rust_problems(path: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST {
        problems.push(format!("{}: {lines} lines; files stay below {LONGEST}", path.display()));
    }
    // Put together here, so that this file passes its own rule.
    for (first, second) in
        [("#[ign", "ore"), ("#[should_", "panic"), ("todo", "!("), ("unimplemented", "!("), ("```ign", "ore")]
    {
        let word = format!("{first}{second}");
        for (i, _) in text.lines().enumerate().filter(|(_, line)| line.contains(&word)) {
            problems.push(format!("{}:{}: {word} is not used here", path.display(), i + 1));
        }
    }
    problems
}

/// Only gelora-kernels names CubeCL, and without features no library depends on it.
fn cubecl_outside_kernels() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for name in ["gelora-id", "gelora-lora", "gelora-model", "gelora-cli", "xtask"] {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml"))?;
        if manifest.contains("cubecl") {
            problems.push(format!("{name}/Cargo.toml: only gelora-kernels depends on CubeCL"));
        }
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    for name in ["gelora-id", "gelora-lora", "gelora-model"] {
        let tree = Command::new(&cargo)
            .args(["tree", "--locked", "-p", name, "--no-default-features", "--prefix", "none"])
            .current_dir(root())
            .output()
            .context("cargo tree")?;
        if !tree.status.success() {
            bail!("cargo tree -p {name}: {}", String::from_utf8_lossy(&tree.stderr));
        }
        if String::from_utf8_lossy(&tree.stdout).contains("cubecl") {
            problems.push(format!("{name} --no-default-features depends on CubeCL"));
        }
    }
    Ok(problems)
}
