//! Adapters that begin along the inputs of their modules (EVA).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use gelora_kernels::{Device, Tensor};
use gelora_model::distributed::Processes;
use gelora_model::eva::{EvaOptions, Start, explained_inputs};
use gelora_model::measure::ModuleRank;
use gelora_model::{Rows, TaskModel};

use super::chosen_ranks::shared;
use super::read_json;
use super::screen::Screen;
use crate::args::TrainArgs;
use crate::output::OutDir;
use crate::ui;

/// The file with the ranks that the modules got.
pub const EVA_NAME: &str = "eva.json";

/// Measures the inputs of the modules that have a rank, and spends the ranks on the directions that explain the most of
/// their variance. The first of several processes measures. A resumed training has the ranks that it was begun with;
/// the checkpoint has its values.
pub fn start(
    args: &TrainArgs,
    (out, resume): (&OutDir, bool),
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
    processes: &Processes,
) -> Result<Start> {
    let path = out.file(EVA_NAME);
    let is_known = processes.is_first() && resume && path.is_file();
    let begun = processes.any(is_known)?;
    let own: Option<Start> = match (processes.is_first(), begun) {
        (true, true) => Some(Start { ranks: read_json(&path)?, factors: BTreeMap::new() }),
        (true, false) => Some(measured(args, out, model, rows, ranks)?),
        (false, _) => None,
    };
    let ranks = shared(processes, own.as_ref().map(|start| start.ranks.clone()))?;
    let mut factors = own.map(|start| start.factors).unwrap_or_default();
    for info in model.transformer().linear_infos().iter().filter(|info| ranks.contains_key(&info.name)) {
        let shape = [ranks[&info.name].rank, info.c_in];
        let values = match factors.remove(&info.name) {
            Some(own) => own.to_vec()?,
            None => vec![0.0; shape[0] * shape[1]],
        };
        let bytes: Vec<u8> = if begun { Vec::new() } else { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let sent = processes.broadcast(bytes)?;
        let (sent, _) = sent.as_chunks::<4>();
        let factor = match begun {
            true => Tensor::zeros(shape, &Device::Cpu)?,
            false => Tensor::from_vec(sent.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), shape)?,
        };
        factors.insert(info.name.clone(), factor);
    }
    Ok(Start { ranks, factors })
}

fn measured(
    args: &TrainArgs,
    out: &OutDir,
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
) -> Result<Start> {
    let quiet = args.output.quiet;
    let options = EvaOptions { batch_size: args.part_size(), seed: args.seed, ..EvaOptions::default() };
    let mut screen = Screen::new(quiet);
    let mut progress = |event: gelora_model::Event<'_>| screen.show(event);
    let explained = explained_inputs(model, rows, ranks, &options, &mut progress).context("--init eva")?;
    let start = Start::by_explained_variance(ranks, &explained).context("--init eva")?;
    out.write_json(EVA_NAME, &start.ranks)?;
    let given: Vec<usize> = start.ranks.values().map(|module| module.rank).collect();
    let (least, most) = (given.iter().min().copied().unwrap_or(0), given.iter().max().copied().unwrap_or(0));
    let without = ranks.len() - start.ranks.len();
    let rest = if without == 0 { String::new() } else { format!("; {without} modules get none") };
    ui::note(quiet, format!("EVA: ranks of {least} to {most} by the variance of the inputs{rest}"));
    Ok(start)
}
