//! `gelora devices`.

use anyhow::Result;
use gelora_kernels::Device;
use serde_json::json;

use crate::args::OutputArgs;
use crate::launch::{self, Launch};
use crate::ui::{self, TableStyle};

const GIB: f64 = (1u64 << 30) as f64;

pub fn run(args: &OutputArgs, launch: Option<&Launch>) -> Result<()> {
    let devices = Device::list();
    let engines = launch::ENGINES.map(|(name, is_there)| format!("{name}: {}", if is_there { "yes" } else { "no" }));
    if args.json {
        let all: Vec<_> = devices
            .iter()
            .map(|d| {
                json!({"device": d.kind.to_string(), "name": d.name, "hardware_gpu": d.hardware_gpu, "memory": d.memory,
                       "features": d.features, "available": d.status.is_ok(), "problem": d.status.as_ref().err()})
            })
            .collect();
        return Ok(ui::result(serde_json::to_string(&all)?)?);
    }
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|d| {
            let status = match &d.status {
                Ok(()) if d.hardware_gpu || d.kind == gelora_kernels::DeviceKind::Cpu => "available".to_string(),
                Ok(()) => "available, but software: used only if named".to_string(),
                Err(problem) => problem.clone(),
            };
            let memory = d.memory.map_or("-".to_string(), |bytes| format!("{:.1} GiB", bytes as f64 / GIB));
            vec![d.kind.to_string(), d.name.clone(), memory, d.features.join(", "), status]
        })
        .collect();
    ui::result(ui::table(&["device", "name", "memory", "features", "status"], &rows, TableStyle::of_stdout()))?;
    ui::result(format!("--device auto means {}", Device::auto().kind()))?;
    ui::result(format!("engines for several processes in this build: {}", engines.join(", ")))?;
    ui::result(match launch {
        Some(launch) => format!("launched by {launch}"),
        None => "launched as one process".to_owned(),
    })?;
    Ok(())
}
