//! `--device cuda-compile`: every kernel that a case launches, compiled for CUDA with no GPU at hand.

#[cfg(not(feature = "cuda-compile"))]
pub use again::run;
#[cfg(feature = "cuda-compile")]
pub use here::run;

/// NVRTC and CUDA's headers as Python packages.
#[cfg(not(feature = "cuda-compile"))]
mod packages {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use anyhow::{Context, Result};

    use crate::root;
    use crate::testbed::{Package, fetch, open};

    const PACKAGES: [Package; 4] = [
        Package {
            name: "nvidia-cuda-nvrtc",
            version: "13.0.88",
            sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        },
        Package {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        },
        Package {
            name: "nvidia-cuda-crt",
            version: "13.0.88",
            sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        },
        Package {
            name: "nvidia-cuda-cccl",
            version: "13.3.5.0.6",
            sha256: "d5230098fa2df5021e1a00c0c4eee41797671a91119d31e892463e5ccf3ee326",
        },
    ];

    /// Fetches and unpacks what is not there yet; the folder with lib and include.
    pub fn prepare() -> Result<PathBuf> {
        let folder = root().join("target/nvrtc");
        let there = folder.join("nvidia/cu13");
        // Written last: that it is there says that all of it is.
        let done = folder.join("complete");
        if done.is_file() {
            return Ok(there);
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for package in &PACKAGES {
            unpack(&fetch(package, &folder)?, &folder)?;
        }
        fs::write(&done, "")?;
        Ok(there)
    }

    fn unpack(wheel: &Path, to: &Path) -> Result<()> {
        let mut archive = open(wheel)?;
        for i in 0..archive.len() {
            let mut file = archive.by_index(i)?;
            let Some(name) = file.enclosed_name() else { continue };
            if !name.starts_with("nvidia") || file.is_dir() {
                continue;
            }
            let path = to.join(name);
            fs::create_dir_all(path.parent().unwrap_or(to))?;
            std::io::copy(&mut file, &mut File::create(&path).with_context(|| path.display().to_string())?)?;
        }
        Ok(())
    }
}

/// Built without the compiling device: fetches the compiler and runs this task again with the device in it.
#[cfg(not(feature = "cuda-compile"))]
mod again {
    use std::process::Command;

    use anyhow::{Context, Result, bail};

    use super::packages;
    use crate::{root, say};

    /// Runs `cargo xtask verify` with the same arguments.
    pub fn run(_: &super::super::Args) -> Result<()> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut command = Command::new(&cargo);
        command.args(["run", "--quiet", "--release", "--bin", "xtask", "--features", "xtask/cuda-compile", "--"]);
        command.args(std::env::args_os().skip(1)).current_dir(root()).env("NODEVICE_SELECT", "1");
        if std::env::var_os("GELORA_NVRTC").is_none() {
            command.env("GELORA_NVRTC", packages::prepare()?);
        }
        say("building with the feature cuda-compile");
        let status = command.status().with_context(|| format!("{cargo} cannot be started"))?;
        if !status.success() {
            bail!("verify --device cuda-compile failed ({status})");
        }
        Ok(())
    }
}

#[cfg(feature = "cuda-compile")]
mod here {
    use std::collections::BTreeMap;

    use anyhow::{Context, Result, anyhow, bail};
    use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
    use gelora_kernels::cuda_compile::{ARCHITECTURES, Compiled, compiled, forget_failures, open};
    use gelora_kernels::peak::Peak;
    use gelora_kernels::verify::cases;
    use gelora_kernels::{Device, Error};
    use serde_json::{Value, json};

    use crate::say;

    /// The instances of one kernel for one architecture.
    #[derive(Default)]
    struct Summary {
        instances: usize,
        registers: u32,
        shared: u32,
        spills: u32,
        failed: usize,
    }

    /// Launches every case, then says what became of its kernels.
    pub fn run(args: &super::super::Args) -> Result<()> {
        let mut problems = std::thread::scope(|scope| {
            let threads = ARCHITECTURES.map(|architecture| scope.spawn(move || launch_all(args, architecture)));
            let mut problems = Vec::new();
            for thread in threads {
                problems.extend(thread.join().map_err(|_| anyhow!("a launch panicked"))??);
            }
            Ok::<_, anyhow::Error>(problems)
        })?;
        let all = compiled();
        say(table(&all));
        for Compiled { kernel, architecture, outcome } in &all {
            if let Err(problem) = outcome {
                problems.push(format!("{kernel} sm_{architecture}: {problem}"));
            }
        }
        problems.iter().for_each(|problem| say(format!("FAILED {problem}")));
        say(format!("{} kernel instances compiled, {} failed", all.len(), problems.len()));
        if let Some(path) = &args.json {
            let instances: Vec<Value> = all.iter().map(as_json).collect();
            let json = json!({"compiled": all.len(), "failed": problems.len(), "kernels": instances});
            std::fs::write(path, serde_json::to_vec_pretty(&json)?).with_context(|| path.display().to_string())?;
        }
        if all.is_empty() || !problems.is_empty() {
            bail!("verify: {} of {} kernel instances failed", problems.len(), all.len());
        }
        Ok(())
    }

    /// Launches every case on the device of an architecture; what went wrong before there was a kernel.
    fn launch_all(args: &super::super::Args, architecture: u32) -> Result<Vec<String>> {
        let (device, mut problems) = (open(architecture)?, Vec::new());
        for case in cases().into_iter().filter(|case| args.wants(case.op)) {
            let launched = case.prepare(&device).and_then(|inputs| case.launch(&inputs)).and_then(|outputs| {
                device.wait()?; // what CubeCL's thread could not compile
                Ok(outputs)
            });
            match launched {
                Ok(_) | Err(Error::Unsupported { .. }) => {}
                Err(problem) => {
                    problems.push(format!("{case:?} sm_{architecture}: {problem}"));
                    forget_failures();
                }
            }
        }
        if args.wants("peak") {
            ceilings(&device)?;
        }
        Ok(problems)
    }

    /// The kernels that measure a device's ceilings have no cases.
    fn ceilings(device: &Device) -> Result<()> {
        // What it measures means nothing here.
        Peak::of(device).map(|_| ()).context("the kernels that measure ceilings")
    }

    fn as_json(compiled: &Compiled) -> Value {
        let Compiled { kernel, architecture, outcome } = compiled;
        match outcome {
            Ok(r) => json!({"kernel": kernel, "sm": architecture, "registers": r.registers, "shared": r.shared,
                "spills": r.spills}),
            Err(problem) => json!({"kernel": kernel, "sm": architecture, "problem": problem}),
        }
    }

    fn table(all: &[Compiled]) -> String {
        let mut kernels = BTreeMap::<(&str, u32), Summary>::new();
        for Compiled { kernel, architecture, outcome } in all {
            let summary = kernels.entry((kernel, *architecture)).or_default();
            summary.instances += 1;
            match outcome {
                Ok(r) => {
                    summary.registers = summary.registers.max(r.registers);
                    summary.shared = summary.shared.max(r.shared);
                    summary.spills = summary.spills.max(r.spills);
                }
                Err(_) => summary.failed += 1,
            }
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["kernel", "sm", "instances", "registers", "shared bytes", "spilled bytes", "verdict"]);
        for ((kernel, architecture), s) in kernels {
            let verdict = if s.failed == 0 { "compiled".to_string() } else { format!("{} FAILED", s.failed) };
            let numbers =
                [architecture as usize, s.instances, s.registers as usize, s.shared as usize, s.spills as usize];
            let mut row = vec![kernel.to_string()];
            row.extend(numbers.map(|n| n.to_string()));
            row.push(verdict);
            table.add_row(row);
        }
        for column in 1..6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\nthe largest of each kernel's instances")
    }
}
