//! `cargo xtask verify`: the registry of cases on every device.

mod compile;
mod matrix;
#[cfg(any(test, feature = "cuda-compile"))]
mod sass;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gelora_kernels::verify::{Case, Verdict, cases};
use gelora_kernels::{Device, DeviceKind};
use serde_json::json;

use crate::say;
use matrix::Matrix;

#[derive(clap::Args)]
pub struct Args {
    /// Devices, by commas: cpu, wgpu, cuda, or cuda-compile, which compiles every kernel for CUDA without a GPU. One
    /// that cannot be opened fails the run [default: cpu, wgpu and cuda, as far as there are any]
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,...")]
    device: Vec<DeviceKind>,
    /// Only operators whose name begins with this
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    op: Vec<String>,
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Perturb every result on purpose: the run must fail
    #[arg(long)]
    inject_fault: bool,
    /// With --device cuda-compile: disassemble every kernel instance, count the instructions of its main loop, and
    /// compare with the committed table, xtask/sass.jsonl. An instance that became worse fails the run
    #[arg(long)]
    sass: bool,
    /// With --sass: replace the committed table
    #[arg(long, requires = "sass")]
    update_sass: bool,
}

impl Args {
    fn wants(&self, op: &str) -> bool {
        self.op.is_empty() || self.op.iter().any(|name| op.starts_with(name.as_str()))
    }

    /// All operators on all devices that there are.
    pub fn everything() -> Self {
        Self { device: Vec::new(), op: Vec::new(), json: None, inject_fault: false, sass: false, update_sass: false }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if args.device.contains(&DeviceKind::CudaCompile) {
        if args.device.len() > 1 {
            bail!("--device cuda-compile computes nothing to compare; give it alone");
        }
        return compile::run(args);
    }
    if args.sass {
        bail!("--sass is for --device cuda-compile");
    }
    let devices = open(&args.device)?;
    let cases: Vec<_> = cases().into_iter().filter(|case| args.wants(case.op)).collect();
    if let Some(name) = args.op.iter().find(|name| !cases.iter().any(|case| case.op.starts_with(name.as_str()))) {
        bail!("--op {name}: no operator's name begins so");
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["operator", "shape", "dtype", "device", "error", "bound", "verdict"]);
    let (mut results, mut failures, mut skips) = (Vec::new(), Vec::new(), BTreeMap::<String, usize>::new());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut matrix = Matrix::default();
    for device in &devices {
        let kind = device.kind();
        let large = |case: &Case| case.near_limit && kind == DeviceKind::Cpu;
        for case in cases.iter().filter(|case| !large(case)) {
            let (error, verdict, reason) = match case.check(device, args.inject_fault).verdict {
                Verdict::Passed { error } => (Some(error), "passed", None),
                Verdict::Failed { error, reason } => (error, "FAILED", Some(reason)),
                Verdict::Skipped { reason } => (None, "skipped", Some(reason)),
            };
            match (verdict, &reason) {
                ("passed", _) => passed += 1,
                ("skipped", reason) => {
                    skipped += 1;
                    let reason = reason.as_deref().unwrap_or_default();
                    *skips.entry(format!("{kind}: {} ({reason})", case.op)).or_default() += 1;
                }
                (_, reason) => {
                    failed += 1;
                    let reason = reason.as_deref().unwrap_or_default();
                    failures.push(format!("{} {} {} {kind}: {reason}", case.op, case.shape, case.dtype));
                }
            }
            matrix.add(case, kind, verdict);
            results.push(json!({"op": case.op, "shape": case.shape, "dtype": case.dtype.to_string(),
                "device": kind.to_string(), "error": error.filter(|e| e.is_finite()), "bound": case.bound,
                "verdict": verdict.to_lowercase(), "reason": reason}));
            if verdict == "skipped" {
                continue; // summed up below the table
            }
            table.add_row([
                case.op.to_string(),
                case.shape.clone(),
                case.dtype.to_string(),
                kind.to_string(),
                error.map_or("-".into(), |e| format!("{e:.1e}")),
                format!("{:.1e}", case.bound),
                verdict.to_string(),
            ]);
        }
    }
    for column in 4..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    say(table.to_string());
    say(matrix.table());
    for (what, count) in &skips {
        say(format!("skipped {count} x {what}"));
    }
    for failure in &failures {
        say(format!("FAILED {failure}"));
    }
    for device in &devices {
        say(format!("{}: {}", device.kind(), device.name()));
    }
    say(format!("{passed} passed, {failed} failed, {skipped} skipped"));
    if let Some(path) = &args.json {
        let json = json!({"passed": passed, "failed": failed, "skipped": skipped, "cases": results});
        std::fs::write(path, serde_json::to_vec_pretty(&json)?).with_context(|| path.display().to_string())?;
    }
    if failed > 0 {
        bail!("verify: {failed} of {} checks failed", passed + failed);
    }
    Ok(())
}

/// The devices asked for, or the CPU and every GPU there is.
fn open(asked: &[DeviceKind]) -> Result<Vec<Device>> {
    if !asked.is_empty() {
        return asked.iter().map(|kind| Device::open(*kind).with_context(|| format!("--device {kind}"))).collect();
    }
    let mut devices = vec![Device::Cpu];
    for kind in [DeviceKind::Wgpu, DeviceKind::Cuda] {
        match Device::open(kind) {
            Ok(device) => devices.push(device),
            Err(e) => say(format!("without {kind}: {e}")),
        }
    }
    Ok(devices)
}
