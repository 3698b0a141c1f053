//! From points to dimensions, with what tells how far to trust them.
//!
//! Near copies are a state's own: two texts that share a premise may be one point before the first layer and two
//! after the last, and a copy that stayed in one state because another tells the rows apart would spoil exactly the
//! dimension that a growth is made of. What pairs growths is the groups of the jackknife, which depend on an
//! example's row and nothing else, so the states' replicates leave out the same examples whatever each has left out
//! before. The price is that two neighbouring states may count a few per cent of the examples differently, which
//! moves a dimension by less than its error.

use gelora_id::scale::{self, AtScale, Plateau};
use gelora_id::{Estimate, Estimator, Growth, NearCopies, Neighbourhood, Options, Summary};
use gelora_kernels::{DeviceKind, Tensor};
use serde::{Deserialize, Serialize};

use crate::event::Report;
use crate::{Error, Event, Result, Work};

/// The fewest points that a decimation goes down to.
const LEAST: usize = 60;
/// Neighbours for the curve of GRIDE, on the CPU and on a GPU.
const REACH: [usize; 2] = [64, 16];

/// The dimension of a hidden state. In JSON it has the fields of an [`Estimate`] and more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// "embeddings", "after layer 0", "after attention 0".
    pub name: String,
    /// The dimension and its interval.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// The estimate from n, n / 2, n / 4, .. points.
    pub decimation: Vec<AtScale>,
    /// The estimate from neighbours of orders 1 and 2, 2 and 4, ..
    pub gride: Vec<AtScale>,
    /// Where the decimation curve is flat, if anywhere.
    pub plateau: Option<Plateau>,
}

impl State {
    /// Whether it is one and the same point for every example.
    pub fn is_constant(&self) -> bool {
        self.estimate.n == 1
    }
}

/// How dimensions are estimated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimation {
    pub estimator: Estimator,
    pub confidence: f64,
    pub near_copies: NearCopies,
    pub seed: u64,
}

/// The measurement of all states.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub states: Vec<State>,
    /// The replicates of each state, of which growths are made.
    pub summaries: Vec<Summary>,
    /// For each state, which examples it left out as near copies.
    pub near_copies: Vec<Vec<bool>>,
}

impl Estimation {
    fn options(&self) -> Options {
        Options { estimator: self.estimator, confidence: self.confidence }
    }
}

/// Every state with its curves, and its replicates, of which growths are made. A state that is one and the same point
/// for every example (the first token before block 0) has no dimension; it is given as 0, that of a single point.
pub(super) fn measure(
    points: &[Tensor],
    names: Vec<String>,
    how: &Estimation,
    report: &mut Report<'_>,
) -> Result<Measured> {
    report(Event::Began { work: Work::Dimensions, units: points.len() })?;
    let mut measured = Measured { states: Vec::new(), summaries: Vec::new(), near_copies: Vec::new() };
    for (s, (points, name)) in points.iter().zip(names).enumerate() {
        let reach = REACH[usize::from(points.device().kind() != DeviceKind::Cpu)];
        let cloud = match Neighbourhood::keeping(points, how.estimator.neighbours().max(reach), how.near_copies) {
            Err(gelora_id::Error::Identical { points, .. }) if s == 0 => {
                let estimate = constant_estimate(how.estimator, how.confidence, points);
                let (decimation, gride) = (Vec::new(), Vec::new());
                measured.states.push(State { name, estimate, decimation, gride, plateau: None });
                measured.summaries.push(Summary::of_a_point());
                measured.near_copies.push(vec![false; points]);
                report(Event::Advanced { units: 1 })?;
                continue;
            }
            other => other.map_err(|source| Error::state(s, &name, source))?,
        };
        let of_state = || -> gelora_id::Result<(State, Summary)> {
            let estimate = cloud.estimate(&how.options())?;
            let summary = cloud.replicates(&how.estimator)?;
            let decimation = scale::decimation(&cloud, &how.options(), LEAST, how.seed)?;
            // On points with many ties a coarser scale may have no finite dimension.
            let gride = scale::gride(&cloud, how.confidence).unwrap_or_default();
            let plateau = scale::plateau(&decimation);
            Ok((State { name: name.clone(), estimate, decimation, gride, plateau }, summary))
        };
        let (state, summary) = of_state().map_err(|source| Error::state(s, &name, source))?;
        measured.states.push(state);
        measured.summaries.push(summary);
        measured.near_copies.push(cloud.near_copy_marks());
        report(Event::Advanced { units: 1 })?;
    }
    Ok(measured)
}

/// The replicates of every state from some of the examples and nothing else: what ranks are made of. The near copies
/// of all examples are left out, so none are looked for again.
pub(super) fn summaries(
    points: &[Tensor],
    near_copies: &[Vec<bool>],
    rows: &[usize],
    estimator: &Estimator,
) -> Result<Vec<Summary>> {
    let of_state = |(s, (points, marks)): (usize, (&Tensor, &Vec<bool>))| {
        let gone: Vec<bool> = rows.iter().map(|&row| marks[row]).collect();
        match Neighbourhood::without(&scale::subset(points, rows)?, estimator.neighbours(), &gone) {
            Err(gelora_id::Error::Identical { .. }) if s == 0 => Ok(Summary::of_a_point()),
            cloud => Ok(cloud?.replicates(estimator)?),
        }
    };
    points.iter().zip(near_copies).enumerate().map(of_state).collect()
}

/// The replicates of every state at a scale: the mean over the draws of so many points that the decimation took.
pub(super) fn at_scale(
    points: &[Tensor],
    near_copies: &[Vec<bool>],
    size: usize,
    how: &Estimation,
) -> Result<Vec<Summary>> {
    let n = points.first().map_or(0, Tensor::rows);
    let mut draws = Vec::new();
    for rows in scale::draws(n, size, how.seed) {
        draws.push(summaries(points, near_copies, &rows, &how.estimator)?);
    }
    let of_state = |s: usize| {
        let of_draws: Vec<Summary> = draws.iter().map(|draw| draw[s].clone()).collect();
        Summary::mean(&of_draws)
            .ok_or_else(|| Error::Value(format!("hidden state {s}: no draw of {size} points has a dimension")))
    };
    (0..points.len()).map(of_state).collect()
}

/// The growth of the dimension in every step.
pub(super) fn growths(summaries: &[Summary], confidence: f64) -> Vec<Growth> {
    summaries.windows(2).map(|pair| pair[0].growth(&pair[1], confidence)).collect()
}

/// The estimate for a cloud whose `points` rows are all the same: the dimension 0 of a single point.
pub fn constant_estimate(estimator: Estimator, confidence: f64, points: usize) -> Estimate {
    let (estimator, interval) = (estimator.to_string(), [0.0, 0.0]);
    let (duplicates, near_copies, id_with_near_copies) = (points - 1, 0, None);
    Estimate { estimator, id: 0.0, interval, confidence, n: 1, duplicates, near_copies, id_with_near_copies }
}
