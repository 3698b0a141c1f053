//! `gelora devices`.

use anyhow::Result;
use gelora_kernels::Device;
use serde_json::json;

use crate::args::OutputArgs;
use crate::ui::{self, TableStyle};

pub fn run(args: &OutputArgs) -> Result<()> {
    let devices = Device::list();
    if args.json {
        let all: Vec<_> = devices
            .iter()
            .map(|d| {
                json!({"device": d.kind.to_string(), "name": d.name, "hardware_gpu": d.hardware_gpu,
                       "available": d.status.is_ok(), "problem": d.status.as_ref().err()})
            })
            .collect();
        return Ok(ui::result(serde_json::to_string(&all)?)?);
    }
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|d| {
            let status = match &d.status {
                Ok(()) if d.hardware_gpu || d.kind == gelora_kernels::DeviceKind::Cpu => "available".to_string(),
                Ok(()) => "available, but software: used only when asked for".to_string(),
                Err(problem) => problem.clone(),
            };
            vec![d.kind.to_string(), d.name.clone(), status]
        })
        .collect();
    ui::result(ui::table(&["device", "name", "status"], &rows, TableStyle::of_stdout()))?;
    ui::result(format!("--device auto means {}", Device::auto().kind()))?;
    Ok(())
}
