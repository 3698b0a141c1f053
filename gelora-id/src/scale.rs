//! How the dimension depends on the scale at which it is measured.
//!
//! There are two curves. The decimation curve estimates from n, n / 2, n / 4, .. points, with several disjoint draws of
//! each size: fewer points are further apart. The GRIDE curve estimates from the neighbors of orders 1 and 2, 2 and 4,
//! 4 and 8, .. of all points. Small scales show noise, large scales show curvature and the boundary. Between them a
//! cloud that has a dimension shows a plateau.
//!
//! The rule ([`plateau`]): a plateau is a run of at least 3 adjacent scales (a factor of 4 in points or neighbors)
//! over which the largest estimate is at most 1.1 times the smallest. Of several runs the longest counts, and of
//! equally long runs the finest. The dimension of a plateau is that at its finest scale, which has the most points.
//! Without a plateau, an estimate depends as much on the number of points as on the cloud.
//!
//! Sources: Facco et al. 2017 for decimation; Denti et al. 2022 for GRIDE's curve. The numbers 3 and 1.1 are ours.

use gelora_kernels::{DType, Tensor, random::Stream};
use serde::{Deserialize, Serialize};

use crate::estimators::gride::Gride;
use crate::{Error, Estimate, NearCopies, Neighborhood, Options, Result};

/// The smallest number of scales in a plateau.
pub const SHORTEST: usize = 3;
/// The largest ratio of two estimates in a plateau.
pub const FLAT: f64 = 1.1;
/// The most draws of one size.
const DRAWS: usize = 8;

/// An estimate at one scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtScale {
    /// Number of points (decimation), or order of the outer neighbor (GRIDE).
    pub scale: usize,
    /// The dimension: the geometric mean over the draws.
    pub id: f64,
    /// Its interval, at the confidence asked for.
    pub interval: [f64; 2],
    /// Number of draws.
    pub draws: usize,
}

/// A run of scales over which the dimension does not depend on the scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// The dimension at its finest scale.
    pub id: f64,
    /// The interval there.
    pub interval: [f64; 2],
    /// Its finest and its coarsest scale.
    pub scales: [usize; 2],
}

/// The estimates from n, n / 2, n / 4, .. points down to `least`, finest first. At each scale at most 8 disjoint draws
/// are taken from the n rows that the cloud was given. Rows that the cloud left out (identical rows, near copies) are
/// left out of the draws, too, so a draw may have a few points less than its scale says.
///
/// The first estimate of the curve is `whole`, the estimate of the cloud itself with the same options.
///
/// # Errors
/// If an option is out of range or the device fails; a draw that has no estimate is left out.
pub fn decimation(
    cloud: &Neighborhood,
    whole: &Estimate,
    options: &Options,
    least: usize,
    seed: u64,
) -> Result<Vec<AtScale>> {
    options.check()?;
    let n = cloud.given();
    let mut curve = vec![AtScale { scale: n, id: whole.id, interval: whole.interval, draws: 1 }];
    let mut place = vec![None; n];
    cloud.rows().iter().enumerate().for_each(|(at, &row)| place[row as usize] = Some(at));
    let estimate_of = |rows: &[usize]| -> Result<Estimate> {
        let mut points: Vec<usize> = rows.iter().filter_map(|&row| place[row]).collect();
        // In the order of the rows, so that the first row of identical ones does not depend on the draw.
        points.sort_unstable();
        if points.len() < 3 {
            return Err(Error::TooFew { distinct: points.len(), points: rows.len() });
        }
        let drawn = subset(cloud.points(), &points)?;
        let k = options.estimator.neighbors();
        Neighborhood::keeping(&drawn, k, NearCopies::Keep)?.estimate_alone(options)
    };
    let mut parts = 2;
    while n / parts >= least.max(3) {
        let size = n / parts;
        let mut draws = Vec::new();
        for rows in self::draws(n, size, seed) {
            match estimate_of(&rows) {
                Ok(estimate) => draws.push(estimate),
                Err(Error::Kernels(e)) => return Err(e.into()),
                Err(_) => {}
            }
        }
        if !draws.is_empty() {
            let mean = |of: &dyn Fn(usize) -> f64| (0..draws.len()).map(of).sum::<f64>() / draws.len() as f64;
            let id = mean(&|i| draws[i].id.ln()).exp();
            // The draws are disjoint, so the error of their mean is smaller by the root of their number.
            let end = |end: usize| mean(&|i| (draws[i].interval[end] / draws[i].id).ln()) / (draws.len() as f64).sqrt();
            curve.push(AtScale { scale: size, id, interval: [0, 1].map(|e| id * end(e).exp()), draws: draws.len() });
        }
        parts *= 2;
    }
    Ok(curve)
}

/// The GRIDE estimates from neighbors of orders 1 and 2, 2 and 4, .. as far as neighbors are known, finest first.
///
/// # Errors
/// As [`Neighborhood::estimate`].
pub fn gride(cloud: &Neighborhood, confidence: f64) -> Result<Vec<AtScale>> {
    let orders = std::iter::successors(Some(1), |n1| Some(2 * n1)).take_while(|n1| 2 * n1 <= cloud.k());
    orders
        .map(|order| {
            let e = cloud.estimate_alone(&Options { estimator: Gride { order }.into(), confidence })?;
            Ok(AtScale { scale: 2 * order, id: e.id, interval: e.interval, draws: 1 })
        })
        .collect()
}

/// The plateau of a curve, finest scale first, by the rule at the head of this module.
#[must_use]
pub fn plateau(curve: &[AtScale]) -> Option<Plateau> {
    let mut best: Option<&[AtScale]> = None;
    for start in 0..curve.len() {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        let flat = curve[start..].iter().take_while(|at| {
            (low, high) = (low.min(at.id), high.max(at.id));
            high <= FLAT * low
        });
        let run = &curve[start..start + flat.count()];
        if run.len() >= SHORTEST && best.is_none_or(|best| run.len() > best.len()) {
            best = Some(run);
        }
    }
    let (first, last) = (best?.first()?, best?.last()?);
    Some(Plateau { id: first.id, interval: first.interval, scales: [first.scale, last.scale] })
}

/// The scale at which to compare several clouds: of the scales that lie in the most plateaus, the finest. None if no
/// curve has a plateau.
#[must_use]
pub fn common(curves: &[Vec<AtScale>]) -> Option<usize> {
    let plateaus: Vec<Plateau> = curves.iter().filter_map(|curve| plateau(curve)).collect();
    let inside = |scale: usize| plateaus.iter().filter(|p| p.scales[1] <= scale && scale <= p.scales[0]).count();
    let scales = curves.iter().flatten().map(|at| at.scale);
    scales.filter(|scale| inside(*scale) > 0).max_by_key(|scale| (inside(*scale), *scale))
}

/// How much the estimate changes when three quarters of the points are taken away: the ratio of the larger to the
/// smaller estimate. None if the curve has fewer than 3 scales.
#[must_use]
pub fn drift(curve: &[AtScale]) -> Option<f64> {
    let (a, b) = (curve.first()?.id, curve.get(2)?.id);
    Some((a / b).max(b / a))
}

/// The disjoint draws of `size` out of n rows that [`decimation`] takes: at most 8 draws.
#[must_use]
pub fn draws(n: usize, size: usize, seed: u64) -> Vec<Vec<usize>> {
    let parts = n / size.max(1);
    let mut order: Vec<usize> = (0..n).collect();
    if parts > 1 {
        Stream::at(seed, &[0x6465_6369, parts as u64]).shuffle(&mut order); // "deci"
    }
    order.chunks_exact(size.max(1)).take(DRAWS).map(<[usize]>::to_vec).collect()
}

/// Some rows of a matrix (n, D), on its device; f64 stays f64, every other type becomes f32.
///
/// # Errors
/// If `points` is not a matrix, `rows` is empty, a row does not exist, or the device fails.
pub fn subset(points: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let [_, columns] = *points.shape() else { return Err(Error::Shape { got: points.shape().to_vec() }) };
    if let Some(&row) = rows.iter().find(|row| **row >= points.rows()) {
        return Err(Error::Row { row, rows: points.rows() });
    }
    let shape = [rows.len(), columns];
    if let Some(values) = points.as_f64() {
        let taken = rows.iter().flat_map(|&row| &values[row * columns..][..columns]).copied();
        return Ok(Tensor::from_f64(taken.collect(), shape)?);
    }
    let read;
    let values = match points.as_slice() {
        Ok(values) => values,
        // On a GPU, or of half precision.
        Err(_) => {
            read = points.to_dtype(DType::F32)?.to_vec()?;
            &read
        }
    };
    let taken = rows.iter().flat_map(|&row| &values[row * columns..][..columns]).copied();
    Ok(Tensor::from_vec(taken.collect(), shape)?.to_device(points.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifolds;

    fn curve(ids: &[f64]) -> Vec<AtScale> {
        let at = |(i, &id): (usize, &f64)| AtScale { scale: 1024 >> i, id, interval: [id - 1.0, id + 1.0], draws: 1 };
        ids.iter().enumerate().map(at).collect()
    }

    fn decimation_of(cloud: &Neighborhood, least: usize) -> Result<Vec<AtScale>> {
        let options = Options::default();
        decimation(cloud, &cloud.estimate(&options)?, &options, least, 0)
    }

    #[test]
    fn the_rule_by_hand() {
        assert_eq!(plateau(&curve(&[30.0, 20.0, 12.0, 8.0])), None);
        assert_eq!(plateau(&curve(&[10.0, 10.0])), None, "two scales are no plateau");
        // Within 1.1 from the second on; the first is outside.
        let found = plateau(&curve(&[15.0, 12.0, 11.5, 11.0, 5.0])).unwrap();
        assert_eq!((found.id, found.scales, found.interval), (12.0, [512, 128], [11.0, 13.0]));
        // Of two of the same length the finer; the longer wins over the finer.
        assert_eq!(plateau(&curve(&[5.0, 5.0, 5.0, 9.0, 9.0, 9.0])).unwrap().scales, [1024, 256]);
        assert_eq!(plateau(&curve(&[5.0, 5.0, 5.0, 9.0, 9.0, 9.0, 9.0])).unwrap().scales, [128, 16]);
        let three = [curve(&[9.0, 5.0, 5.0, 5.0]), curve(&[5.0, 5.0, 5.0, 9.0]), curve(&[9.0, 6.0, 5.0, 3.0])];
        assert_eq!((common(&three), common(&three[2..])), (Some(512), None));
        assert_eq!(drift(&curve(&[30.0, 20.0, 12.0])), Some(2.5));
        assert_eq!(drift(&curve(&[30.0, 20.0])), None);
    }

    #[test]
    fn a_noisy_roll_has_its_plateau_above_the_noise() -> Result<()> {
        // Noise of 0.3 fills the third dimension where neighbors are 0.4 apart, and not where they are 3 apart.
        let roll = manifolds::noisy(&manifolds::swiss_roll(4000, 1)?, 0.3, 2)?;
        let curve = decimation_of(&Neighborhood::of(&roll)?, 50)?;
        assert_eq!(curve.iter().map(|at| at.scale).collect::<Vec<_>>(), [4000, 2000, 1000, 500, 250, 125, 62]);
        assert_eq!(curve.iter().map(|at| at.draws).collect::<Vec<_>>(), [1, 2, 4, 8, 8, 8, 8]);
        assert!(curve[0].id > 2.5, "{curve:?}");
        let found = plateau(&curve).unwrap();
        assert!((1.8..2.4).contains(&found.id) && found.scales[0] <= 2000, "{found:?} {curve:?}");
        Ok(())
    }

    #[test]
    fn rows_that_the_cloud_left_out_are_in_no_draw() -> Result<()> {
        let (points, copies) = manifolds::with_near_copies(&manifolds::cube(800, 6, 1)?, 0.2, 2, 1e-4, 2)?;
        let cloud = Neighborhood::of(&points)?;
        assert_eq!((cloud.near_copies(), copies), (160, 160));
        let curve = decimation_of(&cloud, 60)?;
        let clean = subset(&points, &(0..640).collect::<Vec<_>>())?;
        let clean = decimation_of(&Neighborhood::of(&clean)?, 60)?;
        assert_eq!(curve.iter().map(|at| at.scale).collect::<Vec<_>>(), [800, 400, 200, 100]);
        assert_eq!(curve[0].id, clean[0].id);
        for (with, without) in curve.iter().zip(&clean) {
            assert!((with.id / without.id - 1.0).abs() < 0.15, "{with:?} {without:?}");
        }
        Ok(())
    }

    #[test]
    fn a_row_that_is_not_there_is_named() -> Result<()> {
        let message = subset(&manifolds::cube(10, 2, 1)?, &[3, 10]).unwrap_err().to_string();
        assert!(message.contains("row 10 of a matrix of 10 rows"), "{message}");
        Ok(())
    }

    #[test]
    fn gride_goes_as_far_as_neighbors_are_known() -> Result<()> {
        let cloud = Neighborhood::with_neighbors(&manifolds::sphere(1500, 3, 1)?, 32)?;
        let curve = gride(&cloud, 0.95)?;
        assert_eq!(curve.iter().map(|at| at.scale).collect::<Vec<_>>(), [2, 4, 8, 16, 32]);
        assert!(curve.iter().all(|at| at.interval[0] < at.id && at.id < at.interval[1]));
        assert!((2.7..3.2).contains(&plateau(&curve).unwrap().id), "{curve:?}");
        Ok(())
    }
}
