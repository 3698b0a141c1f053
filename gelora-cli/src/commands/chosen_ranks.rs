//! Ranks of the adapters of a training: given, from a file, measured, or those of an adapter.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use gelora_lora::ranks::check_rank;
use gelora_lora::{Adapter, LoraLayer};
use gelora_model::MeasureOptions;
use gelora_model::distributed::Processes;
use gelora_model::measure::{ModuleRank, PolicyChoice, TargetModules};
use serde::Deserialize;

use super::measuring::Measuring;
use super::read_json;
use crate::args::{TrainArgs, measure_options};
use crate::output::OutDir;
use crate::report::{RANKS_NAME, RanksFile, text};
use crate::ui;

/// Returns rank and alpha of every module of an adapter.
pub fn ranks_of(adapter: &Adapter) -> BTreeMap<String, ModuleRank> {
    let rank_of = |layer: &LoraLayer| {
        let (rank, scaling) = (layer.rank(), f64::from(layer.scaling));
        let divisor = if adapter.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        ModuleRank { rank, alpha: scaling * divisor }
    };
    adapter.layers.iter().map(|(name, layer)| (name.clone(), rank_of(layer))).collect()
}

/// Returns the ranks that the first process measured or read.
pub fn shared(
    processes: &Processes,
    ranks: Option<BTreeMap<String, ModuleRank>>,
) -> Result<BTreeMap<String, ModuleRank>> {
    // JSON may be off in the last bit of a float, so alpha is sent as its bits.
    let sent: BTreeMap<String, (usize, u64)> =
        ranks.unwrap_or_default().into_iter().map(|(name, m)| (name, (m.rank, m.alpha.to_bits()))).collect();
    let received = processes.broadcast(serde_json::to_vec(&sent)?)?;
    let received: BTreeMap<String, (usize, u64)> = serde_json::from_slice(&received)?;
    let module = |(rank, alpha)| ModuleRank { rank, alpha: f64::from_bits(alpha) };
    Ok(received.into_iter().map(|(name, bits)| (name, module(bits))).collect())
}

/// The part of ranks.json that training reads.
#[derive(Deserialize)]
struct RanksOfModules {
    modules: BTreeMap<String, ModuleRank>,
}

/// Returns rank and alpha of every module: the same for all, from a file, or measured now.
pub fn module_ranks(
    args: &TrainArgs,
    resume: bool,
    measuring: &Measuring<'_>,
    out: &OutDir,
    processes: &Processes,
) -> Result<BTreeMap<String, ModuleRank>> {
    let (model, dataset) = (measuring.model, measuring.dataset);
    let infos = model.linear_infos();
    let policy = args.policy.choice(args.rank)?;
    if let Some(rank) = args.rank {
        let alpha = args.targets.alpha().of(rank);
        let (layers, granularity) = (model.config().layers, args.measure.granularity.into());
        let targets = TargetModules::new(&infos, layers, granularity, &args.targets.target_modules)
            .context("--target-modules")?;
        return targets
            .modules
            .into_iter()
            .map(|(info, _)| {
                check_rank(&info.name, rank, info.c_in, info.c_out)?;
                Ok((info.name.clone(), ModuleRank { rank, alpha }))
            })
            .collect();
    }
    let Some(path) = &args.ranks else {
        let measured = out.file(RANKS_NAME);
        let is_measured = processes.is_first() && resume && measured.is_file();
        if processes.any(is_measured)? {
            let ranks = is_measured.then(|| read_json::<RanksOfModules>(&measured)).transpose()?;
            return shared(processes, ranks.map(|ranks| ranks.modules));
        }
        let policy = match policy {
            PolicyChoice::Gradient(budget)
            | PolicyChoice::Signal(budget)
            | PolicyChoice::Eva(budget)
            | PolicyChoice::Prune(budget)
                if args.dry_run =>
            {
                let note = "the measurement of modules is not part of this dry run, which spends the budget at random";
                ui::note(args.output.quiet, note);
                PolicyChoice::Random(Some(budget))
            }
            policy => policy,
        };
        let mut options = MeasureOptions {
            policy,
            scale: args.policy.scale(),
            ..measure_options(&args.measure, &args.targets, args.part_size(), args.seed)
        };
        if args.dry_run {
            options.cache = None;
        }
        options.processes = processes.clone();
        let Some(ranks) = measuring.ranks(&options, None)? else { return shared(processes, None) };
        let ranks = RanksFile { data: dataset.path.display().to_string(), dataset: None, ranks, serve: None };
        if !args.dry_run {
            out.write_json(RANKS_NAME, &ranks)?;
        }
        ui::note(args.output.quiet, text::table(&ranks));
        ui::note(args.output.quiet, text::summary(&ranks));
        return shared(processes, Some(ranks.module_ranks()));
    };
    // A folder from `gelora rank` means the ranks.json in it.
    let path = &if path.is_dir() { path.join(RANKS_NAME) } else { path.clone() };
    let ranks: RanksOfModules = read_json(path).context("--ranks expects a ranks.json from `gelora rank`")?;
    for (name, module) in &ranks.modules {
        let Some(info) = infos.iter().find(|i| i.name == *name) else {
            bail!(
                "{}: module {name} is not in {}; the ranks are of another model",
                path.display(),
                args.model.name.display()
            );
        };
        check_rank(name, module.rank, info.c_in, info.c_out)?;
    }
    Ok(ranks.modules)
}
