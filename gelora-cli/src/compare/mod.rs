//! `gelora compare`: several ways to train (arms), each at several learning rates, on several seeds.
//!
//! | file | holds |
//! |---|---|
//! | `arms` | what each arm trains: a new one is a variant there |
//! | `plan` | which runs there are, and the rows of each |
//! | `run` | one run: measurement, training, score |
//! | `jobs` | several runs at a time |
//! | `mechanism` | what trained updates need, beside what was known before |
//! | `results` | results.jsonl, so that a killed compare goes on |
//! | `table` | what the finished runs show |
//! | `stats` | intervals and tests of paired differences |

pub mod arms;
mod jobs;
pub mod mechanism;
pub mod plan;
pub mod results;
pub mod run;
mod stats;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use gelora_model::distributed::Processes;

use crate::ui::{self, Progress};
use arms::{Arm, Needs};
use jobs::in_jobs;
use plan::{Plan, Run};
use results::{Part, Results};
use run::{Bench, Measured};
use table::{Metric, chosen_rate};

/// What was measured on the rows of each part and seed.
type Measurements = BTreeMap<(Part, u64), Measured>;

/// How the runs of a study are made.
pub struct Execution {
    /// Runs at a time.
    pub jobs: usize,
    pub quiet: bool,
    /// Those that the runs are dealt out to.
    pub processes: Processes,
}

impl Execution {
    /// The runs of this process: as many as of each other, and one after the other in the plan, since those of one seed
    /// share a measurement.
    fn share(&self, runs: &[Run]) -> Vec<Run> {
        let (rank, world) = (self.processes.rank(), self.processes.world());
        runs[runs.len() * rank / world..runs.len() * (rank + 1) / world].to_vec()
    }
}

/// Makes the runs of a plan that are not in the results yet: those that choose the rates, then the final ones. Several
/// processes share them, and all have all results in the end.
///
/// # Errors
/// As [`Bench::measure`], [`Bench::ranks`] and [`Bench::run`]; if a result cannot be written.
pub fn run_all(
    bench: &Bench<'_>,
    plan: &Plan,
    metric: &Metric,
    results: &mut Results,
    execution: &Execution,
) -> Result<()> {
    let mut measured = Measurements::new();
    let pending = |runs: Vec<Run>, results: &Results| -> Vec<Run> {
        runs.into_iter().filter(|run| results.get(&run.key()).is_none()).collect()
    };
    let choosing = pending(plan.choosing(), results);
    // A final run whose rate is not chosen yet is a pending one, whatever its rate: its ranks can be had, or not,
    // already.
    let any_rate = |arm| chosen_rate(results, plan, arm, metric).or(plan.rates.first().copied());
    let choosing = execution.share(&choosing);
    let expected = [choosing.clone(), execution.share(&pending(plan.finals(any_rate), results))].concat();
    // What does not fit where no dimension grows never fits.
    check_ranks(bench, &expected, &measured)?;
    measure(bench, &expected, &mut measured, execution)?;
    check_ranks(bench, &expected, &measured)?;

    train(bench, "choosing rates", &choosing, &measured, metric, results, execution)?;
    results.exchange(&execution.processes)?;
    let finals = execution.share(&pending(plan.finals(|arm| chosen_rate(results, plan, arm, metric)), results));
    measure(bench, &finals, &mut measured, execution)?;
    train(bench, "final runs", &finals, &measured, metric, results, execution)?;
    results.exchange(&execution.processes)
}

/// Measures what the arms of these runs need and is not there.
fn measure(bench: &Bench<'_>, runs: &[Run], measured: &mut Measurements, execution: &Execution) -> Result<()> {
    let needs: Vec<Needs> = runs.iter().map(|run| run.arm.needs()).collect();
    let needing = runs.iter().filter(|run| run.arm.needs() != Needs::Nothing).map(|run| (run.part, run.seed));
    let missing: BTreeSet<(Part, u64)> = needing.filter(|key| !measured.contains_key(key)).collect();
    let missing: Vec<(Part, u64)> = missing.into_iter().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let bar = Progress::new(execution.quiet, "measuring", missing.len() as u64);
    let work = |&(part, seed): &(Part, u64)| Ok(((part, seed), bench.measure(part, seed, &needs)?));
    in_jobs(&missing, execution.jobs, work, |(key, found)| {
        if found.lacks_plateau {
            let (arm, seed) = (Arm::Plateau.name(), key.1);
            ui::warn(format!("seed {seed}: no state has a plateau; the arm {arm} takes the growths at all rows"));
        }
        measured.insert(key, found);
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}

/// Trains a uniform rank on every seed that `path` has no line of, and adds its updates.
///
/// # Errors
/// As [`Bench::measure`] and [`Bench::updates`]; if a line cannot be written.
pub fn run_mechanism(
    bench: &Bench<'_>,
    path: &Path,
    seeds: u64,
    lr: f64,
    rank: usize,
    execution: &Execution,
) -> Result<()> {
    let mut all = mechanism::read(path, bench.study)?;
    // What a killed run left of a line goes.
    mechanism::without_torn_line(path)?;
    all.retain(|updates| updates.rank == rank && updates.lr == lr && updates.seed < seeds);
    let missing: Vec<u64> = (0..seeds).filter(|seed| all.iter().all(|updates| updates.seed != *seed)).collect();
    let bar = Progress::new(execution.quiet, "updates", missing.len() as u64);
    let work = |&seed: &u64| {
        let measured = bench.measure(Part::Final, seed, &[Needs::Growths, Needs::Gradient])?;
        bench.updates(seed, lr, rank, &measured)
    };
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    in_jobs(&missing, execution.jobs, work, |updates| {
        // One call writes the whole line.
        let line = format!("{}\n", serde_json::to_string(&updates)?);
        file.write_all(line.as_bytes()).with_context(|| path.display().to_string())?;
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}

/// Checks that every run can have its ranks, before any is made.
fn check_ranks(bench: &Bench<'_>, runs: &[Run], measured: &Measurements) -> Result<()> {
    runs.iter().try_for_each(|run| {
        bench.ranks(run.arm, run.seed, measured.get(&(run.part, run.seed)))?;
        Ok(())
    })
}

fn train(
    bench: &Bench<'_>,
    label: &'static str,
    runs: &[Run],
    measured: &Measurements,
    metric: &Metric,
    results: &mut Results,
    execution: &Execution,
) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let bar = Progress::new(execution.quiet, label, runs.len() as u64);
    let work = |run: &Run| bench.run(run, measured.get(&(run.part, run.seed)));
    in_jobs(runs, execution.jobs, work, |result| {
        let score = result.metrics.get(&metric.name);
        let score = score.map_or("diverged".into(), |score| format!("{} {score:.4}", metric.name));
        bar.message(format!("({} at {:e}, seed {}: {score})", result.arm, result.lr, result.seed));
        results.add(result)?;
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}
