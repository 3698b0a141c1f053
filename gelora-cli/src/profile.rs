//! `--profile`: the time that a run spends in each phase, step and operator.
//!
//! A process makes one run, so the record is global, like that of [`gelora_kernels::profile`]. Without `--profile`
//! there is no record, and a mark costs a lock.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use gelora_kernels::cpu::peak;
use gelora_kernels::profile::{self, Entry};
use serde::Serialize;

use crate::args::ProfileArgs;
use crate::output;
use crate::ui::{self, TableStyle};

static RECORD: Mutex<Option<Record>> = Mutex::new(None);

/// Times of the run so far.
struct Record {
    started: SystemTime,
    began: Instant,
    phases: Vec<Phase>,
    steps: Vec<Step>,
    /// Start of the step in progress.
    step_began: Instant,
}

/// Contents of the file of --profile=FILE.json.
#[derive(Serialize)]
struct Report<'a> {
    /// Start of the program, in seconds since 1970.
    started: f64,
    /// Wall-clock seconds of the whole run.
    seconds: f64,
    phases: &'a [Phase],
    steps: &'a [Step],
    operators: Vec<Operator>,
}

#[derive(Serialize)]
struct Phase {
    phase: &'static str,
    /// Seconds from the start of the program to the end of the phase.
    end: f64,
}

#[derive(Serialize)]
struct Step {
    /// Wall-clock milliseconds since the end of the previous step. Includes the wait for the batch, but no evaluations.
    ms: f64,
    tokens: usize,
}

#[derive(Serialize)]
struct Operator {
    op: &'static str,
    calls: u64,
    seconds: f64,
    flops: f64,
    bytes: f64,
}

/// Runs a command, and records and reports its times if `--profile` is given.
///
/// # Errors
/// Returns the errors of the command, and an error if the record cannot be written.
pub fn run(args: &ProfileArgs, command: impl FnOnce() -> Result<()>) -> Result<()> {
    // Of several processes, the first one measures its own time.
    let Some(file) = args.profile.as_ref().filter(|_| !ui::is_silent()) else { return command() };
    let began = Instant::now();
    *record() =
        Some(Record { started: SystemTime::now(), began, phases: Vec::new(), steps: Vec::new(), step_began: began });
    profile::start();
    command()?;
    let entries = profile::stop();
    let Some(record) = record().take() else { return Ok(()) };
    record.report(file.as_deref(), &entries)
}

/// Marks the end of a phase.
pub fn mark(phase: &'static str) {
    if let Some(record) = record().as_mut() {
        record.mark(phase);
    }
}

/// Marks the end of an optimizer step on `tokens` tokens.
pub fn step(tokens: usize) {
    if let Some(record) = record().as_mut() {
        let now = Instant::now();
        record.steps.push(Step { ms: (now - record.step_began).as_secs_f64() * 1e3, tokens });
        if record.steps.len() == 1 {
            record.mark("first step");
        }
        record.step_began = now;
    }
}

/// Excludes the time since the last step from the next step, for example an evaluation.
pub fn skip() {
    if let Some(record) = record().as_mut() {
        record.step_began = Instant::now();
    }
}

/// Locks the record. A panic while the lock is held leaves the record valid.
fn record() -> MutexGuard<'static, Option<Record>> {
    RECORD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Record {
    fn mark(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.phases.push(Phase { phase, end: (now - self.began).as_secs_f64() });
        self.step_began = now;
    }

    fn report(&self, file: Option<&Path>, entries: &[Entry]) -> Result<()> {
        let total = self.began.elapsed();
        let Some(path) = file else {
            ui::note(false, phase_table(&self.phases, total));
            ui::note(false, operator_table(entries, total, peak::gflops_f32(), peak::bandwidth_gbs()));
            return Ok(());
        };
        let operators = entries.iter().map(|e| {
            let Entry { op, calls, time, flops, bytes } = *e;
            Operator { op, calls, seconds: time.as_secs_f64(), flops, bytes }
        });
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        output::write_json(
            path,
            &Report {
                started,
                seconds: total.as_secs_f64(),
                phases: &self.phases,
                steps: &self.steps,
                operators: operators.collect(),
            },
        )
    }
}

/// Returns the table of phase durations. Time after the last mark is the rest.
fn phase_table(phases: &[Phase], total: Duration) -> String {
    let mut rows = Vec::new();
    let mut last = 0.0;
    for (phase, end) in phases.iter().map(|p| (p.phase, p.end)).chain([("the rest", total.as_secs_f64())]) {
        rows.push(vec![phase.to_string(), format!("{:.3}", end - last)]);
        last = end;
    }
    ui::table(&["until", "seconds"], &rows, TableStyle::of_stdout())
}

/// Returns the table of operators: time, rates, and the time that the work would take at this machine's peaks, in
/// GFLOP/s of f32 and in GB/s of memory. An operator whose time is near the greater of the two bounds cannot get much
/// faster.
fn operator_table(entries: &[Entry], total: Duration, gflops: f64, gbs: f64) -> String {
    let header = ["operator", "calls", "ms", "share", "GFLOP/s", "GB/s", "compute-bound ms", "memory-bound ms"];
    let or_empty = |value: f64, decimals: usize| match value > 0.0 {
        true => format!("{value:.decimals$}"),
        false => String::new(),
    };
    let row = |e: &Entry| {
        let seconds = e.time.as_secs_f64();
        vec![
            e.op.to_string(),
            ui::count(e.calls),
            format!("{:.1}", seconds * 1e3),
            format!("{:.1} %", 100.0 * seconds / total.as_secs_f64()),
            or_empty(e.flops / seconds / 1e9, 1),
            or_empty(e.bytes / seconds / 1e9, 1),
            or_empty(e.flops / gflops / 1e6, 1),
            or_empty(e.bytes / gbs / 1e6, 1),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    let table = ui::table(&header, &rows, TableStyle::of_stdout());
    format!("{table}\n{:.3} s in all; peaks here: {gflops:.0} GFLOP/s in f32, {gbs:.1} GB/s", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_work_over_peak() {
        let entry = Entry { op: "linear", calls: 1200, time: Duration::from_millis(50), flops: 2e9, bytes: 3e8 };
        let text = operator_table(&[entry], Duration::from_millis(200), 100.0, 10.0);
        let row: Vec<&str> = text.lines().nth(2).unwrap().split('|').map(str::trim).collect();
        assert_eq!(row, ["linear", "1,200", "50.0", "25.0 %", "40.0", "6.0", "20.0", "30.0"]);
    }

    #[test]
    fn phases_are_differences() {
        let phases = [Phase { phase: "data read", end: 0.25 }, Phase { phase: "model loaded", end: 1.0 }];
        let text = phase_table(&phases, Duration::from_secs(3));
        let seconds: Vec<&str> =
            text.lines().skip(2).filter_map(|line| line.split_once('|')).map(|(_, s)| s.trim()).collect();
        assert_eq!(seconds, ["0.250", "0.750", "2.000"]);
    }
}
