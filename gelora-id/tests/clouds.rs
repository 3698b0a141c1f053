//! Clouds of known dimension, and what must not change the answer.
#![allow(clippy::print_stdout)] // coverages are worth seeing when a test fails

use gelora_id::estimators::two_nn_fit::TwoNnFit;
use gelora_id::estimators::two_nn_mle::TwoNnMle;
use gelora_id::{Error, Estimator, Neighborhood, Options, Result, estimate, manifolds};
use gelora_kernels::{Tensor, random::Stream};
use proptest::prelude::*;

const FIT: Options = Options { estimator: Estimator::TwoNnFit(TwoNnFit { discard: 0.1 }), confidence: 0.95 };
const MLE: Options = Options { estimator: Estimator::TwoNnMle(TwoNnMle), confidence: 0.95 };

/// n points uniform in the unit cube of a dimension.
fn cube(seed: u64, n: usize, dim: usize) -> Vec<f64> {
    let mut random = Stream::at(seed, &[dim as u64]);
    (0..n * dim).map(|_| random.uniform()).collect()
}

/// The further the dimension, the more points lie at the boundary, the lower the estimate: the ranges follow it down.
#[test]
fn cubes_have_their_dimension_less_the_known_bias() -> Result<()> {
    for (dim, lowest, highest) in [(2, 1.85, 2.15), (5, 4.5, 5.3), (10, 8.3, 10.0), (20, 13.5, 17.5)] {
        let points = Tensor::from_f64(cube(1, 2000, dim), [2000, dim])?;
        let neighborhood = Neighborhood::of(&points)?;
        for options in [FIT, MLE] {
            let got = neighborhood.estimate(&options)?;
            assert!(lowest < got.id && got.id < highest, "dimension {dim}: {got:?}");
            assert!(got.interval[0] < got.id && got.id < got.interval[1], "{got:?}");
            assert_eq!((got.n, got.duplicates, &got), (2000, 0, &estimate(&points, &options)?));
        }
    }
    Ok(())
}

#[test]
fn more_columns_do_not_add_dimensions() -> Result<()> {
    let flat = cube(2, 1000, 3);
    let wide: Vec<f64> = flat.chunks_exact(3).flat_map(|p| [p[0], 0.0, p[1], 5.0, p[2], p[0] + p[1]]).collect();
    let got = estimate(&Tensor::from_f64(wide, [1000, 6])?, &FIT)?;
    assert!((2.6..3.3).contains(&got.id), "{got:?}");
    Ok(())
}

#[test]
fn f32_points_have_the_id_of_f64_points() -> Result<()> {
    let values = cube(3, 500, 8);
    let single = Tensor::from_vec(values.iter().map(|&v| v as f32).collect(), [500, 8])?;
    for options in [FIT, MLE] {
        let got = [&Tensor::from_f64(values.clone(), [500, 8])?, &single].map(|points| estimate(points, &options));
        let [double, single] = got;
        approx::assert_relative_eq!(double?.id, single?.id, max_relative = 1e-5);
    }
    Ok(())
}

#[test]
fn a_grid_has_no_finite_dimension() -> Result<()> {
    let grid: Vec<f64> = (0..100).flat_map(|i| [f64::from(i % 10), f64::from(i / 10)]).collect();
    for options in [FIT, MLE] {
        let error = estimate(&Tensor::from_f64(grid.clone(), [100, 2])?, &options).unwrap_err();
        assert!(matches!(error, Error::AllRatiosOne { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn wrong_options_are_told_before_the_search() -> Result<()> {
    let points = Tensor::from_f64(vec![f64::NAN; 6], [3, 2])?;
    let error = estimate(&points, &Options { confidence: 95.0, ..FIT }).unwrap_err();
    assert!(error.to_string().contains("confidence must be strictly between 0 and 1, got 95"), "{error}");
    Ok(())
}

#[test]
fn three_points_are_enough() -> Result<()> {
    for options in [FIT, MLE] {
        let got = estimate(&Tensor::from_f64(vec![0.0, 1.0, 3.0], [3, 1])?, &options)?;
        assert!(got.n == 3 && got.id > 0.0 && got.interval.iter().all(|v| v.is_finite()), "{got:?}");
    }
    Ok(())
}

/// Both estimates of (60, 6) points.
fn ids(values: &[f64]) -> Result<[f64; 2]> {
    let neighborhood = Neighborhood::of(&Tensor::from_f64(values.to_vec(), [60, 6])?)?;
    Ok([neighborhood.estimate(&FIT)?.id, neighborhood.estimate(&MLE)?.id])
}

fn same(values: &[f64], moved: &[f64]) {
    for (id, moved) in ids(values).unwrap().into_iter().zip(ids(moved).unwrap()) {
        assert!((moved / id - 1.0).abs() < 1e-9, "{id} became {moved}");
    }
}

/// Turns every point in the plane of two columns.
fn rotate(values: &mut [f64], (a, b): (usize, usize), angle: f64) {
    let (sin, cos) = angle.sin_cos();
    for point in values.chunks_exact_mut(6) {
        (point[a], point[b]) = (cos * point[a] - sin * point[b], sin * point[a] + cos * point[b]);
    }
}

fn plane() -> impl Strategy<Value = (usize, usize)> {
    (0usize..6, 1usize..6).prop_map(|(a, step)| (a, (a + step) % 6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn translation_changes_nothing(seed in any::<u64>(), shift in prop::array::uniform6(-50.0..50.0)) {
        let values = cube(seed, 60, 6);
        let moved: Vec<f64> = values.iter().enumerate().map(|(i, v)| v + shift[i % 6]).collect();
        same(&values, &moved);
    }

    #[test]
    fn rotation_changes_nothing(seed in any::<u64>(), planes in [plane(), plane()], angles in [0.0..6.3, 0.0..6.3]) {
        let values = cube(seed, 60, 6);
        let mut moved = values.clone();
        rotate(&mut moved, planes[0], angles[0]);
        rotate(&mut moved, planes[1], angles[1]);
        same(&values, &moved);
    }

    #[test]
    fn scale_changes_nothing(seed in any::<u64>(), log_scale in -60.0..60.0) {
        let values = cube(seed, 60, 6);
        let scale = f64::exp(log_scale);
        same(&values, &values.iter().map(|v| v * scale).collect::<Vec<_>>());
    }

    #[test]
    fn order_changes_nothing(seed in any::<u64>(), order in Just((0..60).collect::<Vec<usize>>()).prop_shuffle()) {
        let values = cube(seed, 60, 6);
        let moved: Vec<f64> = order.iter().flat_map(|&row| values[row * 6..][..6].to_vec()).collect();
        same(&values, &moved);
    }

    #[test]
    fn copies_of_rows_change_only_their_count(
        seed in any::<u64>(), copies in prop::collection::vec(0usize..60, 1..20),
    ) {
        let values = cube(seed, 60, 6);
        let rows = copies.iter().copied().chain(0..60);
        let with_copies: Vec<f64> = rows.flat_map(|r| values[r * 6..][..6].to_vec()).collect();
        let points = Tensor::from_f64(with_copies, [60 + copies.len(), 6]).unwrap();
        let got = estimate(&points, &FIT).unwrap();
        prop_assert_eq!((got.n, got.duplicates), (60, copies.len()));
        prop_assert!((got.id / ids(&values).unwrap()[0] - 1.0).abs() < 1e-12);
    }
}

/// The share of draws in which something held.
fn share(held: impl Iterator<Item = bool>) -> f64 {
    let all: Vec<bool> = held.collect();
    all.iter().filter(|h| **h).count() as f64 / all.len() as f64
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len() as f64
}

/// An interval of 90 % holds the mean of all estimates nine times in ten, or more: the jackknife is on the wide side.
/// Too narrow by a fifth would be 81 %.
#[test]
fn every_interval_covers_what_it_promises() -> Result<()> {
    let draws: Vec<Vec<_>> = (0..150)
        .map(|seed| {
            let cloud = Neighborhood::for_estimators(&manifolds::sphere(300, 3, seed)?, &Estimator::ALL)?;
            let of = |e: &Estimator| cloud.estimate(&Options { estimator: *e, confidence: 0.9 });
            Estimator::ALL.iter().map(of).collect()
        })
        .collect::<Result<_>>()?;
    for (e, estimator) in Estimator::ALL.iter().enumerate() {
        let mean = mean(draws.iter().map(|draw| draw[e].id));
        let covered = share(draws.iter().map(|draw| draw[e].interval[0] <= mean && mean <= draw[e].interval[1]));
        println!("{estimator}: {covered:.2}");
        assert!(covered >= 0.86, "{estimator}: {covered}");
    }
    Ok(())
}

/// The growth from three columns of a cube to all five, of the same points.
#[test]
fn growths_cover_what_they_promise() -> Result<()> {
    let n = 300;
    let draws: Vec<_> = (0..150)
        .map(|seed| {
            let all = cube(seed, n, 5);
            let three: Vec<f64> = all.chunks_exact(5).flat_map(|p| p[..3].to_vec()).collect();
            let of = |values: Vec<f64>, dim| {
                let cloud = Neighborhood::of(&Tensor::from_f64(values, [n, dim])?)?;
                cloud.replicates(&Estimator::default())
            };
            Ok(of(three, 3)?.growth(&of(all, 5)?, 0.9))
        })
        .collect::<Result<_>>()?;
    let truth = mean(draws.iter().map(|g| g.delta));
    let covered = share(draws.iter().map(|g| g.interval[0] <= truth && truth <= g.interval[1]));
    let below = share(draws.iter().map(|g| truth <= g.upper));
    println!("growth {truth:.2}: interval {covered:.2}, upper bound {below:.2}");
    assert!(covered >= 0.86 && below >= 0.86, "{covered} {below}");
    Ok(())
}
