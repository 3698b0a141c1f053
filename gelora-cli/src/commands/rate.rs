//! `--lr auto`: takes the learning rate from short trainings.
//!
//! A fifth of the training rows is set aside. A fresh model is trained on the others at each of six rates, for as many
//! steps as the training has, at most 100, and scored on the rows that were set aside.

use anyhow::{Context, Result, bail};
use gelora_kernels::random::Stream;
use gelora_model::evaluate::Metric;
use gelora_model::train::{Keep, Length};
use gelora_model::{Error as Failure, Event, Rows, TaskModel, TokenRows, TrainOptions, Trainer, evaluate};
use serde::{Deserialize, Serialize};

use super::read_json;
use super::screen::Screen;
use crate::args::Rate;
use crate::output::OutDir;
use crate::ui;

/// The file with the rates that were tried.
pub const RATES_NAME: &str = "lr.json";
/// The rates: those of `gelora compare`.
const RATES: [f64; 6] = [1e-4, 3.13e-4, 9.79e-4, 3.06e-3, 9.59e-3, 3e-2];
/// The most steps at a rate, and the most rows that it takes part of.
const STEPS: usize = 100;
const ROWS: usize = 5000;
/// The fewest rows that can be divided.
const FEWEST: usize = 10;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Tried {
    /// The rate that was chosen.
    lr: f64,
    metric: String,
    steps: usize,
    train_rows: usize,
    scored_rows: usize,
    /// Rate and score; none if the training diverged.
    rates: Vec<(f64, Option<f64>)>,
}

/// Chooses the rate with the best score, the lowest of several. A resumed training takes the one that it was begun
/// with.
pub fn chosen(
    (out, resume, quiet): (&OutDir, bool, bool),
    options: &TrainOptions,
    rows: &dyn Rows,
    metric: Metric,
    fresh: impl Fn() -> Result<TaskModel>,
) -> Result<f64> {
    let path = out.file(RATES_NAME);
    let is_known = options.processes.is_first() && resume && path.is_file();
    if options.processes.any(is_known)? {
        let known: Option<Tried> = is_known.then(|| read_json(&path)).transpose()?;
        return shared(options, known.map(|known| known.lr));
    }
    if resume {
        bail!(
            "--resume: {} is missing, so the training was not begun with --lr auto; expected its rate",
            path.display()
        );
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    Stream::at(options.seed, &[0x7261_7465]).shuffle(&mut order); // "rate"
    order.truncate(ROWS);
    let scored = order.split_off(order.len() - order.len() / 5);
    let (train, scored) = (TokenRows::part_of(rows, &order)?, TokenRows::part_of(rows, &scored)?);
    let whole = match options.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => (rows.len() as f64 / options.batch_size as f64 * epochs).ceil() as usize,
        _ => STEPS,
    };
    let steps = whole.clamp(1, STEPS);
    let options = TrainOptions {
        eval_every: None,
        metric: None,
        keep: Keep::Last,
        patience: None,
        checkpoints: None,
        ..options.clone().for_steps(steps, rows.len())
    };
    let mut rates: Vec<(f64, Option<f64>)> = Vec::new();
    let mut best: Option<(f64, f64)> = None;
    for lr in RATES {
        let (mut model, mut screen) = (fresh()?, Screen::new(quiet));
        let mut progress = |event: Event<'_>| screen.show(event);
        let trained = Trainer::new(&mut model, &train, TrainOptions { lr, ..options.clone() })
            .and_then(|mut trainer| trainer.run(&mut progress));
        let score = match trained {
            Err(Failure::Diverged { .. }) => None,
            Err(failure) => return Err(failure).context("--lr auto"),
            Ok(_) => {
                let evaluation = evaluate(&model, &scored, options.batch_size, &mut |_: Event<'_>| ())?;
                let of_metric = evaluation.metrics.iter().find(|(name, _)| *name == metric.name);
                of_metric.map(|(_, score)| *score).filter(|score| score.is_finite())
            }
        };
        let text = score.map_or("diverged".to_owned(), |score| format!("{} {score:.4}", metric.name));
        ui::note(quiet, format!("--lr auto: {text} at {lr:e}"));
        if let Some(score) = score.filter(|score| metric.is_better(*score, best.map(|(_, best)| best))) {
            best = Some((lr, score));
        }
        rates.push((lr, score));
    }
    let Some((lr, _)) = best else {
        bail!("--lr auto: the training diverges at every rate from {:e} to {:e}", RATES[0], RATES[RATES.len() - 1]);
    };
    if lr == RATES[0] || lr == RATES[RATES.len() - 1] {
        ui::warn(format!("--lr auto chose {lr:e}, the end of its range; a rate beyond it may be better"));
    }
    let best = best.map(|(_, score)| score);
    let tied = rates.iter().filter(|(_, score)| *score == best).count();
    if tied > 1 {
        ui::warn(format!("--lr auto: {tied} rates have the best score on {} rows; the lowest is taken", scored.len()));
    }
    let count = |rows: &TokenRows| ui::count(rows.len() as u64);
    let (trained, scored_on) = (count(&train), count(&scored));
    ui::note(quiet, format!("--lr auto: {lr:e} ({steps} steps on {trained} rows, scored on {scored_on})"));
    if options.processes.is_first() {
        let (train_rows, scored_rows) = (train.len(), scored.len());
        let tried = Tried { lr, metric: metric.name.into(), steps, train_rows, scored_rows, rates };
        out.write_json(RATES_NAME, &tried)?;
    }
    shared(&options, Some(lr))
}

/// Checks that there are enough rows.
pub fn check(lr: Rate, rows: usize) -> Result<()> {
    if lr == Rate::Auto && rows < FEWEST {
        bail!("--lr auto sets a fifth of the training rows aside; expected at least {FEWEST} rows, got {rows}");
    }
    Ok(())
}

/// The rate of the first process.
fn shared(options: &TrainOptions, lr: Option<f64>) -> Result<f64> {
    let bytes = options.processes.broadcast(lr.unwrap_or_default().to_le_bytes().to_vec())?;
    let bytes: [u8; 8] = bytes.try_into().ok().context("the first process sent no learning rate")?;
    Ok(f64::from_le_bytes(bytes))
}
