//! From the runs of a study to what they show: the rate of every arm, its scores, and its difference to the reference.

use std::collections::BTreeMap;

use serde::Serialize;

use super::arms::Arm;
use super::mechanism::{Correlation, Updates};
use super::plan::Plan;
use super::results::{Key, Part, Results, RunResult};
use super::stats;
use crate::ui::{self, TableStyle};

/// Confidence of the intervals.
const CONFIDENCE: f64 = 0.95;
/// Level of the adjusted p-values.
const LEVEL: f64 = 0.05;

/// What runs are scored by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: String,
    pub lower_is_better: bool,
}

/// A study, or as much of it as is finished.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub study: String,
    pub metric: String,
    pub lower_is_better: bool,
    pub reference: String,
    pub confidence: f64,
    pub runs_finished: usize,
    pub runs_planned: usize,
    pub arms: Vec<ArmRow>,
    /// What speaks against the numbers.
    pub remarks: Vec<String>,
    /// What trained updates need (`--mechanism`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub correlations: Vec<Correlation>,
    /// The updates behind it.
    #[serde(skip)]
    pub updates: Vec<Updates>,
}

/// What is known of an arm.
#[derive(Clone, Debug, Serialize)]
pub struct ArmRow {
    pub arm: String,
    pub what: String,
    /// Mean score of every rate on the parts cut from train; empty if there is one rate.
    pub curve: Vec<RatePoint>,
    /// The chosen rate; None while no seed has all rates, or if all diverged.
    pub lr: Option<f64>,
    /// Scores on the held-out rows by seed.
    pub scores: BTreeMap<u64, f64>,
    /// Final runs that diverged.
    pub diverged: usize,
    pub mean: Option<f64>,
    pub standard_deviation: Option<f64>,
    /// Means over the final runs.
    pub parameters: Option<f64>,
    pub train_loss: Option<f64>,
    pub train_seconds: Option<f64>,
    pub measure_seconds: Option<f64>,
    /// Ranks by step, of every seed.
    pub ranks: BTreeMap<u64, Vec<f64>>,
    /// None for the reference, and below two seeds.
    pub difference: Option<Difference>,
}

/// A learning rate with its mean score.
#[derive(Clone, Debug, Serialize)]
pub struct RatePoint {
    pub lr: f64,
    /// None if a run diverged or none is finished.
    pub mean: Option<f64>,
    /// Runs behind it.
    pub seeds: usize,
}

/// Score of an arm - score of the reference, paired by seed.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub seeds: usize,
    pub mean: f64,
    /// [`stats::bootstrap_interval`].
    pub interval: [f64; 2],
    /// [`stats::wilcoxon`].
    pub p: f64,
    /// [`stats::holm`] over the arms.
    pub p_holm: f64,
    /// [`stats::least_detectable`].
    pub least_detectable: f64,
    pub verdict: Verdict,
}

/// What may be said of a difference. It needs an adjusted p-value below 5 % and an interval without 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Better,
    Worse,
    NoDifference,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "no difference seen",
        }
    }
}

impl Metric {
    /// Whether score `a` is better than `b`.
    fn is_better(&self, a: f64, b: f64) -> bool {
        if self.lower_is_better { a < b } else { a > b }
    }

    fn score(&self, run: &RunResult) -> Option<f64> {
        run.metrics.get(&self.name).copied().filter(|score| score.is_finite())
    }
}

/// The mean score of every rate of an arm, over the seeds of which every rate is finished.
fn curve(results: &Results, plan: &Plan, arm: Arm, metric: &Metric) -> Vec<RatePoint> {
    if plan.rates.len() < 2 {
        return Vec::new();
    }
    let run = |lr: f64, seed: u64| results.get(&Key::new(Part::Choose, arm.name(), lr, seed));
    let is_whole = |seed: &u64| plan.rates.iter().all(|lr| run(*lr, *seed).is_some());
    let seeds: Vec<u64> = (0..plan.choose_seeds).filter(is_whole).collect();
    let point = |&lr: &f64| {
        let scores: Option<Vec<f64>> = seeds.iter().map(|seed| metric.score(run(lr, *seed)?)).collect();
        let mean = scores.filter(|scores| !scores.is_empty()).map(|scores| stats::mean(&scores));
        RatePoint { lr, mean, seeds: seeds.len() }
    };
    plan.rates.iter().map(point).collect()
}

/// The rate of an arm: the only one, or the one with the best mean score on the parts cut from train, of equal ones the
/// least.
pub fn chosen_rate(results: &Results, plan: &Plan, arm: Arm, metric: &Metric) -> Option<f64> {
    if let [only] = plan.rates[..] {
        return Some(only);
    }
    let curve = curve(results, plan, arm, metric);
    let scored = curve.iter().filter_map(|point| Some((point.lr, point.mean?)));
    scored.reduce(|best, next| if metric.is_better(next.1, best.1) { next } else { best }).map(|(lr, _)| lr)
}

/// Number of runs of the plan that are finished: the results may have runs of other arms and rates too.
pub fn finished(results: &Results, plan: &Plan, metric: &Metric) -> usize {
    let finals = plan.finals(|arm| chosen_rate(results, plan, arm, metric));
    plan.choosing().iter().chain(&finals).filter(|run| results.get(&run.key()).is_some()).count()
}

impl Comparison {
    /// What the finished runs show.
    pub fn new(study: &str, results: &Results, plan: &Plan, metric: &Metric, reference: Arm) -> Self {
        let mut arms: Vec<ArmRow> = plan.arms.iter().map(|arm| ArmRow::new(results, plan, *arm, metric)).collect();
        let base =
            arms.iter().find(|row| row.arm == reference.name()).map(|row| row.scores.clone()).unwrap_or_default();
        for row in arms.iter_mut().filter(|row| row.arm != reference.name()) {
            row.difference = Difference::new(&row.scores, &base, plan.arms.len() - 1);
        }
        let p_values: Vec<f64> = arms.iter().filter_map(|row| Some(row.difference.as_ref()?.p)).collect();
        let compared = arms.iter_mut().filter_map(|row| row.difference.as_mut());
        for (difference, p_holm) in compared.zip(stats::holm(&p_values)) {
            difference.p_holm = p_holm;
            difference.verdict = difference.judge(metric);
        }
        let finished = finished(results, plan, metric);
        let mut comparison = Self {
            study: study.to_owned(),
            metric: metric.name.clone(),
            lower_is_better: metric.lower_is_better,
            reference: reference.name().to_owned(),
            confidence: CONFIDENCE,
            runs_finished: finished,
            runs_planned: plan.len(),
            arms,
            remarks: Vec::new(),
            correlations: Vec::new(),
            updates: Vec::new(),
        };
        comparison.remarks = comparison.remarks(plan);
        comparison
    }

    fn remarks(&self, plan: &Plan) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.runs_finished < self.runs_planned {
            remarks.push(format!("Unfinished: {} of {} runs.", self.runs_finished, self.runs_planned));
        }
        for row in &self.arms {
            let (least, greatest) = (plan.rates.first(), plan.rates.last());
            let is_end = plan.rates.len() > 1 && (row.lr.as_ref() == least || row.lr.as_ref() == greatest);
            if let Some(lr) = row.lr.filter(|_| is_end) {
                let arm = &row.arm;
                remarks.push(format!(
                    "{arm}: the rate {lr:e} is at the end of those tried; a wider --lrs may find a better one."
                ));
            }
            let best = row.lr.and_then(|lr| row.curve.iter().find(|point| point.lr == lr)?.mean);
            let ties = row.curve.iter().filter(|point| best.is_some() && point.mean == best).count();
            if let Some(lr) = row.lr.filter(|_| ties > 1) {
                let arm = &row.arm;
                remarks.push(format!(
                    "{arm}: {ties} rates scored the same, and better than the others; the least of them, {lr:e}, was \
                     taken, and may not be the best."
                ));
            }
            let mut scores = row.scores.values();
            let first = scores.next();
            if let Some(score) = first.filter(|first| row.scores.len() > 1 && scores.all(|other| other == *first)) {
                let arm = &row.arm;
                remarks.push(format!("{arm}: every seed scored {score}; it may have learned one answer for all rows."));
            } else if row.difference.as_ref().is_some_and(|d| d.interval == [0.0; 2]) {
                let (arm, reference) = (&row.arm, &self.reference);
                remarks
                    .push(format!("{arm}: every seed scored exactly as {reference} did; their ranks may be the same."));
            }
            if row.diverged > 0 {
                remarks.push(format!("{}: {} final runs diverged and are left out.", row.arm, row.diverged));
            }
        }
        let (seeds, others) = (plan.seeds as usize, plan.arms.len() - 1);
        let least = stats::least_p(seeds, others);
        if least > LEVEL {
            remarks.push(format!(
                "{seeds} seeds cannot show a difference: with {others} arms beside the reference the least adjusted \
                 p-value is {least:.3}."
            ));
        }
        remarks
    }

    /// The table as text, with the remarks.
    pub fn text(&self, style: TableStyle) -> String {
        let difference = "difference";
        let header = [
            "arm",
            "parameters",
            "rate",
            &self.metric,
            difference,
            "95 % interval",
            "p",
            "p (Holm)",
            "least seen",
            "train s",
            "measure s",
            "verdict",
        ];
        let number =
            |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
        let row = |row: &ArmRow| {
            let d = row.difference.as_ref();
            let interval = d.map_or(String::new(), |d| format!("{:+.4} to {:+.4}", d.interval[0], d.interval[1]));
            let verdict = if row.arm == self.reference { "reference" } else { d.map_or("", |d| d.verdict.words()) };
            vec![
                row.arm.clone(),
                row.parameters.map_or(String::new(), |mean| ui::count(mean.round() as u64)),
                row.lr.map_or(String::new(), |lr| format!("{lr:e}")),
                number(row.mean, 4),
                d.map_or(String::new(), |d| format!("{:+.4}", d.mean)),
                interval,
                number(d.map(|d| d.p), 3),
                number(d.map(|d| d.p_holm), 3),
                number(d.map(|d| d.least_detectable), 4),
                number(row.train_seconds, 1),
                number(row.measure_seconds, 1),
                verdict.to_owned(),
            ]
        };
        let rows: Vec<Vec<String>> = self.arms.iter().map(row).collect();
        let mut lines = vec![ui::table(&header, &rows, style)];
        lines.extend(self.remarks.iter().cloned());
        lines.join("\n")
    }
}

impl ArmRow {
    fn new(results: &Results, plan: &Plan, arm: Arm, metric: &Metric) -> Self {
        let lr = chosen_rate(results, plan, arm, metric);
        let of_seed = |seed| results.get(&Key::new(Part::Final, arm.name(), lr?, seed));
        let runs: Vec<&RunResult> = (0..plan.seeds).filter_map(of_seed).collect();
        let scores: BTreeMap<u64, f64> = runs.iter().filter_map(|run| Some((run.seed, metric.score(run)?))).collect();
        let values: Vec<f64> = scores.values().copied().collect();
        let mean_of = |value: fn(&RunResult) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(|run| value(run)).collect();
            (!values.is_empty()).then(|| stats::mean(&values))
        };
        Self {
            arm: arm.name().to_owned(),
            what: arm.what().to_owned(),
            curve: curve(results, plan, arm, metric),
            lr,
            diverged: runs.len() - scores.len(),
            mean: (!values.is_empty()).then(|| stats::mean(&values)),
            standard_deviation: stats::standard_deviation(&values),
            scores,
            parameters: mean_of(|run| Some(run.parameters as f64)),
            train_loss: mean_of(|run| run.train_loss),
            train_seconds: mean_of(|run| Some(run.train_seconds)),
            measure_seconds: mean_of(|run| Some(run.measure_seconds)),
            ranks: runs.iter().map(|run| (run.seed, run.ranks.clone())).collect(),
            difference: None,
        }
    }
}

impl Difference {
    /// None below two seeds that both have. `arms` are compared with the reference.
    fn new(scores: &BTreeMap<u64, f64>, reference: &BTreeMap<u64, f64>, arms: usize) -> Option<Self> {
        let of_seed = |(seed, score): (&u64, &f64)| Some(score - reference.get(seed)?);
        let differences: Vec<f64> = scores.iter().filter_map(of_seed).collect();
        let p = stats::wilcoxon(&differences);
        let scatter = stats::standard_deviation(&differences)?;
        Some(Self {
            seeds: differences.len(),
            mean: stats::mean(&differences),
            interval: stats::bootstrap_interval(&differences, CONFIDENCE)?,
            p,
            p_holm: p,
            least_detectable: stats::least_detectable(scatter, differences.len(), arms)?,
            verdict: Verdict::NoDifference,
        })
    }

    fn judge(&self, metric: &Metric) -> Verdict {
        let [low, high] = self.interval;
        if self.p_holm >= LEVEL || (low <= 0.0 && high >= 0.0) {
            Verdict::NoDifference
        } else if metric.is_better(self.mean, 0.0) {
            Verdict::Better
        } else {
            Verdict::Worse
        }
    }
}

#[cfg(test)]
mod tests;
