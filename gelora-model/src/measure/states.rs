//! Estimates the dimension of every hidden state, with diagnostics of its reliability.
//!
//! Near copies are determined for each state separately. Two texts with a common premise may be one point before the
//! first layer and two points after the last layer. If a copy stayed in one state because another state tells the rows
//! apart, it would bias the dimension from which a growth is computed. Growths are paired by the groups of the
//! jackknife. A group depends on an example's row alone, so the replicates of all states leave out the same examples,
//! whatever near copies each state leaves out. The cost: two neighboring states may differ in a few per cent of their
//! examples, which moves a dimension by less than its standard error.

use gelora_id::scale::{self, AtScale, Plateau};
use gelora_id::{Estimate, Estimator, Growth, Jackknife, NearCopies, Neighborhood, Options};
use gelora_kernels::{DeviceKind, Tensor};
use serde::{Deserialize, Serialize};

use crate::event::Report;
use crate::{Error, Event, Result, Work};

/// Smallest number of points in a decimation.
const MIN_POINTS: usize = 60;
/// Number of neighbors for the GRIDE curve, on the CPU and on a GPU.
const REACH: [usize; 2] = [64, 16];

/// The dimension of a hidden state. Its JSON form has the fields of an [`Estimate`] and others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Name of the state: "embeddings", "after layer 0", "after attention 0".
    pub name: String,
    /// The dimension and its interval.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Estimates from n, n / 2, n / 4, .. points.
    pub decimation: Vec<AtScale>,
    /// Estimates from neighbors of orders 1 and 2, 2 and 4, ..
    pub gride: Vec<AtScale>,
    /// The flat part of the decimation curve, if there is one.
    pub plateau: Option<Plateau>,
}

impl State {
    /// Whether the state is the same point for all examples.
    pub fn is_constant(&self) -> bool {
        self.estimate.n == 1
    }
}

/// Options of the estimates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimation {
    pub estimator: Estimator,
    pub confidence: f64,
    pub near_copies: NearCopies,
    pub seed: u64,
}

/// The measurements of all states.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub states: Vec<State>,
    /// Replicates of each state, from which growths are computed.
    pub summaries: Vec<Jackknife>,
    /// For each state, the marks of examples that were left out as near copies.
    pub near_copies: Vec<Vec<bool>>,
}

impl Estimation {
    fn options(&self) -> Options {
        Options { estimator: self.estimator, confidence: self.confidence }
    }
}

/// Estimates the dimension, the curves and the replicates of every state. The first state may be the same point for all
/// examples (the first token before block 0). It has no estimate; its dimension is 0, that of a single point.
pub(super) fn measure(
    points: &[Tensor],
    names: Vec<String>,
    estimation: &Estimation,
    report: &mut Report<'_>,
) -> Result<Measured> {
    report(Event::Began { work: Work::Dimensions, units: points.len() })?;
    let mut measured = Measured { states: Vec::new(), summaries: Vec::new(), near_copies: Vec::new() };
    for (s, (points, name)) in points.iter().zip(names).enumerate() {
        let reach = REACH[usize::from(points.device().kind() != DeviceKind::Cpu)];
        let cloud =
            match Neighborhood::keeping(points, estimation.estimator.neighbors().max(reach), estimation.near_copies) {
                Err(gelora_id::Error::Identical { points, .. }) if s == 0 => {
                    let estimate = constant_estimate(estimation.estimator, estimation.confidence, points);
                    let (decimation, gride) = (Vec::new(), Vec::new());
                    measured.states.push(State { name, estimate, decimation, gride, plateau: None });
                    measured.summaries.push(Jackknife::of_a_point());
                    measured.near_copies.push(vec![false; points]);
                    report(Event::Advanced { units: 1 })?;
                    continue;
                }
                other => other.map_err(|source| Error::state(s, &name, source))?,
            };
        let estimate_state = || -> gelora_id::Result<(State, Jackknife)> {
            let (estimate, summary) = cloud.estimate_and_replicates(&estimation.options())?;
            let decimation = scale::decimation(&cloud, &estimate, &estimation.options(), MIN_POINTS, estimation.seed)?;
            // A coarser scale may have no finite dimension if many distances are equal.
            let gride = scale::gride(&cloud, estimation.confidence).unwrap_or_default();
            let plateau = scale::plateau(&decimation);
            Ok((State { name: name.clone(), estimate, decimation, gride, plateau }, summary))
        };
        let (state, summary) = estimate_state().map_err(|source| Error::state(s, &name, source))?;
        measured.states.push(state);
        measured.summaries.push(summary);
        measured.near_copies.push(cloud.near_copy_marks());
        report(Event::Advanced { units: 1 })?;
    }
    Ok(measured)
}

/// Computes the replicates of every state from a subset of the examples. It takes the near copies that were found among
/// all examples and does not search for others.
pub(super) fn summaries(
    points: &[Tensor],
    near_copies: &[Vec<bool>],
    rows: &[usize],
    estimator: &Estimator,
) -> Result<Vec<Jackknife>> {
    let replicates_of_state = |(s, (points, marks)): (usize, (&Tensor, &Vec<bool>))| {
        let gone: Vec<bool> = rows.iter().map(|&row| marks[row]).collect();
        match Neighborhood::without(&scale::subset(points, rows)?, estimator.neighbors(), &gone) {
            Err(gelora_id::Error::Identical { .. }) if s == 0 => Ok(Jackknife::of_a_point()),
            cloud => Ok(cloud?.replicates(estimator)?),
        }
    };
    points.iter().zip(near_copies).enumerate().map(replicates_of_state).collect()
}

/// Computes the replicates of every state at a scale: the mean over draws of `size` points, the same draws as in the
/// decimation.
pub(super) fn at_scale(
    points: &[Tensor],
    near_copies: &[Vec<bool>],
    size: usize,
    estimation: &Estimation,
) -> Result<Vec<Jackknife>> {
    let n = points.first().map_or(0, Tensor::rows);
    let mut draws = Vec::new();
    for rows in scale::draws(n, size, estimation.seed) {
        draws.push(summaries(points, near_copies, &rows, &estimation.estimator)?);
    }
    let mean_over_draws = |s: usize| {
        let of_state: Vec<Jackknife> = draws.iter().map(|draw| draw[s].clone()).collect();
        Jackknife::mean(&of_state)
            .ok_or_else(|| Error::Value(format!("hidden state {s}: no draw of {size} points has a dimension")))
    };
    (0..points.len()).map(mean_over_draws).collect()
}

/// Returns the growth of the dimension across every step.
pub(super) fn growths(summaries: &[Jackknife], confidence: f64) -> Vec<Growth> {
    summaries.windows(2).map(|pair| pair[0].growth(&pair[1], confidence)).collect()
}

/// Returns the estimate for `points` identical rows: dimension 0, that of a single point.
pub fn constant_estimate(estimator: Estimator, confidence: f64, points: usize) -> Estimate {
    let (estimator, interval) = (estimator.to_string(), [0.0, 0.0]);
    let (duplicates, near_copies, id_with_near_copies) = (points - 1, 0, None);
    Estimate { estimator, id: 0.0, interval, confidence, n: 1, duplicates, near_copies, id_with_near_copies }
}
