//! Adapters that begin along the inputs of their modules (EVA).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use gelora_model::eva::{EvaOptions, Start, explained_inputs};
use gelora_model::measure::ModuleRank;
use gelora_model::{Rows, TaskModel};

use super::screen::Screen;
use crate::args::TrainArgs;
use crate::ui;

/// Measures the inputs of the modules that have a rank, and spends the ranks on the directions that explain the most of
/// their variance.
pub fn start(
    args: &TrainArgs,
    model: &mut TaskModel,
    rows: &dyn Rows,
    ranks: &BTreeMap<String, ModuleRank>,
) -> Result<Start> {
    let quiet = args.output.quiet;
    let options = EvaOptions { batch_size: args.batch_size(), seed: args.seed, ..EvaOptions::default() };
    let mut screen = Screen::new(quiet);
    let mut progress = |event: gelora_model::Event<'_>| screen.show(event);
    let explained = explained_inputs(model, rows, ranks, &options, &mut progress).context("--init eva")?;
    let start = Start::by_explained_variance(ranks, &explained, options.rho).context("--init eva")?;
    let given: Vec<usize> = start.ranks.values().map(|module| module.rank).collect();
    let (least, most) = (given.iter().min().copied().unwrap_or(0), given.iter().max().copied().unwrap_or(0));
    let without = ranks.len() - start.ranks.len();
    let none = if without == 0 { String::new() } else { format!("; {without} modules get none") };
    ui::note(quiet, format!("EVA: ranks of {least} to {most} by the variance of the inputs{none}"));
    Ok(start)
}
