//! What the machine with the GPU needs, in one folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{built, root, say, testbed};

/// Rows of the texts.
const ROWS: usize = 4000;

/// What runs there. Libraries of CUDA may come with the toolkit or as Python packages.
const SCRIPT: &str = r#"#!/usr/bin/env bash
# Writes gpu-report.md and gpu-report.jsonl into the folder OUT, by default this one; takes at most ten minutes.
set -euo pipefail
cd "$(dirname "$0")"
export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
python='import os, nvidia; print(os.path.join(list(nvidia.__path__)[0], "cu13", "lib"))'
packages=$(python3 -c "$python" 2>/dev/null || true)
export LD_LIBRARY_PATH=$CUDA_PATH/lib64:$packages:${LD_LIBRARY_PATH:-}
for program in gelora xtask; do
    [ -x $program ] || { xz -dc $program.xz > $program && chmod +x $program; }
done
exec ./xtask gpu-report --python "$(command -v python3)" --gelora ./gelora --tokenizer tokenizer --data reviews.jsonl \
    --out "${OUT:-.}/gpu-report.md" "$@"
"#;

/// Builds both programs for CUDA and packs them with a tokenizer, texts and the script.
pub fn pack(folder: &Path) -> Result<()> {
    let testbed = testbed::prepare()?;
    // CUDA 13.0 is what data-centre drivers have at present; left alone, the bindings ask for the symbols of the newest
    // that they know.
    let version = std::env::var("CUDARC_CUDA_VERSION").unwrap_or_else(|_| "13000".into());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", "gelora-cli", "-p", "xtask", "--features", "gelora-cli/cuda,xtask/cuda"])
        .env("CUDARC_CUDA_VERSION", version)
        .current_dir(root())
        .status()
        .context("cargo cannot be started")?;
    if !status.success() {
        bail!("the programs were not built ({status})");
    }
    fs::create_dir_all(folder.join("tokenizer")).with_context(|| folder.display().to_string())?;
    for program in ["gelora", "xtask"] {
        let (from, to) = (built(program), folder.join(program));
        run("strip", &["-o".as_ref(), to.as_ref(), from.as_ref()])?;
        run("xz", &["-6".as_ref(), "-f".as_ref(), to.as_ref()])?;
    }
    for entry in fs::read_dir(testbed.join("minilm"))?.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text != "config.json" && (text.ends_with(".json") || text == "vocab.txt") {
            fs::copy(entry.path(), folder.join("tokenizer").join(&name))?;
        }
    }
    let reviews = fs::read_to_string(testbed.join("reviews/train.jsonl"))?;
    let rows: Vec<&str> = reviews.lines().take(ROWS).collect();
    fs::write(folder.join("reviews.jsonl"), rows.join("\n") + "\n")?;
    fs::write(folder.join("run.sh"), SCRIPT)?;
    say(format!("take {} to the machine with the GPU and run `bash run.sh` in it", folder.display()));
    Ok(())
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| format!("{program} cannot be started"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}
