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
/// their variance. A resumed training has the ranks that it was begun with; the checkpoint has its values.
pub fn start(
    args: &TrainArgs,
    (out, resume): (&OutDir, bool),
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
    processes: &Processes,
) -> Result<Start> {
    let (quiet, path) = (args.output.quiet, out.file(EVA_NAME));
    let is_known = processes.is_first() && resume && path.is_file();
    if processes.any(is_known)? {
        let known: Option<BTreeMap<String, ModuleRank>> = is_known.then(|| read_json(&path)).transpose()?;
        let ranks = shared(processes, known)?;
        let infos = model.transformer().linear_infos();
        let mut factors = BTreeMap::new();
        for info in infos.iter().filter(|info| ranks.contains_key(&info.name)) {
            factors.insert(info.name.clone(), Tensor::zeros([ranks[&info.name].rank, info.c_in], &Device::Cpu)?);
        }
        return Ok(Start { ranks, factors });
    }
    let batch_size = args.batch_size().div_ceil(args.accumulate);
    let options = EvaOptions { batch_size, seed: args.seed, ..EvaOptions::default() };
    let mut screen = Screen::new(quiet);
    let mut progress = |event: gelora_model::Event<'_>| screen.show(event);
    let explained = explained_inputs(model, rows, ranks, &options, &mut progress).context("--init eva")?;
    let start = Start::by_explained_variance(ranks, &explained).context("--init eva")?;
    if processes.is_first() {
        out.write_json(EVA_NAME, &start.ranks)?;
    }
    let given: Vec<usize> = start.ranks.values().map(|module| module.rank).collect();
    let (least, most) = (given.iter().min().copied().unwrap_or(0), given.iter().max().copied().unwrap_or(0));
    let without = ranks.len() - start.ranks.len();
    let rest = if without == 0 { String::new() } else { format!("; {without} modules get none") };
    ui::note(quiet, format!("EVA: ranks of {least} to {most} by the variance of the inputs{rest}"));
    Ok(start)
}
