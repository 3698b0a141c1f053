use gelora_kernels::random::Stream;

use super::*;
use crate::estimators::corr_dim::CorrDim;
use crate::estimators::gride::Gride;
use crate::estimators::levina_bickel::LevinaBickel;
use crate::estimators::local_pca::LocalPca;
use crate::{Estimator, Options, manifolds, scale};

#[test]
fn one_copy_of_each_row_stays() -> Result<()> {
    // 0 and -0 are one place; the origin stays a neighbor of (3, 4).
    let values = [0.0, 0.0, 3.0, 4.0, -0.0, 0.0, 0.0, -0.0, 6.0, 8.0, 3.0, 4.0];
    let cloud = Neighborhood::of(&Tensor::from_f64(values.to_vec(), [6, 2])?)?;
    assert_eq!((cloud.column(0), cloud.column(1)), (Some(vec![5.0; 3]), Some(vec![10.0, 5.0, 10.0])));
    assert_eq!((cloud.duplicates(), cloud.column(2), cloud.rows(), cloud.given()), (3, None, &[0, 1, 4][..], 6));
    assert!((1.0..=2.0).contains(&cloud.inflation()));
    let single = Neighborhood::of(&Tensor::from_vec(values.map(|v| v as f32).to_vec(), [6, 2])?)?;
    assert_eq!((cloud.distances, cloud.indices, cloud.groups), (single.distances, single.indices, single.groups));
    Ok(())
}

#[test]
fn near_twins_are_not_twins() -> Result<()> {
    let values = vec![1.0, 1.0 + f64::EPSILON, 2.0, 4.0];
    let cloud = Neighborhood::of(&Tensor::from_f64(values, [4, 1])?)?;
    assert_eq!((cloud.duplicates(), cloud.distances_of(0)[0]), (0, f64::EPSILON));
    Ok(())
}

#[test]
fn distances_are_those_of_brute_force_in_every_type() -> Result<()> {
    for (n, columns) in [(3, 1), (7, 3), (64, 20), (257, 65)] {
        let mut random = Stream::at(2, &[n as u64]);
        let values = (0..n * columns).map(|_| random.normal() + 100.0).collect();
        let points = Tensor::from_f64(values, [n, columns])?;
        for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
            // Half precision leaves some rows the same where there are few columns.
            let points = points.to_dtype(dtype)?;
            let values = points.to_vec_f64()?;
            let rows: Vec<usize> =
                distinct_rows(&values, columns, &vec![false; n]).iter().map(|r| *r as usize).collect();
            let Ok(cloud) = Neighborhood::of(&points) else {
                assert!(rows.len() < 3);
                continue;
            };
            assert_eq!((cloud.len(), cloud.duplicates()), (rows.len(), n - rows.len()));
            for (at, &i) in rows.iter().enumerate() {
                let (r1, r2) = brute_force(&values, columns, &rows, i);
                approx::assert_relative_eq!(cloud.distances_of(at)[0], r1, max_relative = 1e-12);
                approx::assert_relative_eq!(cloud.distances_of(at)[1], r2, max_relative = 1e-12);
            }
        }
    }
    Ok(())
}

fn brute_force(values: &[f64], columns: usize, rows: &[usize], i: usize) -> (f64, f64) {
    let row = |i: usize| &values[i * columns..][..columns];
    let squared = |j: usize| row(i).iter().zip(row(j)).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
    let mut distances: Vec<f64> = rows.iter().filter(|&&j| j != i).map(|&j| squared(j).sqrt()).collect();
    distances.sort_by(f64::total_cmp);
    (distances[0], distances[1])
}

#[test]
fn bad_points_say_what_is_wrong() -> Result<()> {
    let message = |values: &[f64], shape: &[usize]| -> Result<String> {
        Ok(Neighborhood::of(&Tensor::from_f64(values.to_vec(), shape)?).unwrap_err().to_string())
    };
    assert!(message(&[1.0; 8], &[2, 2, 2])?.contains("[2, 2, 2]"));
    assert!(message(&[1.0, 2.0, 3.0, 4.0, f64::NAN, 6.0], &[2, 3])?.contains("NaN in row 1, column 1"));
    assert!(message(&[1.0, f64::INFINITY, 3.0], &[3, 1])?.contains("inf in row 1, column 0"));
    assert!(message(&[7.0; 10], &[5, 2])?.contains("all 5 points are identical"));
    assert!(message(&[7.0; 2], &[1, 2])?.contains("got 1 among 1"));
    assert!(message(&[1.0, 1.0, 2.0, 2.0], &[4, 1])?.contains("got 2 among 4"));
    Ok(())
}

#[test]
fn mutual_neighbors_widen_the_interval() -> Result<()> {
    // Three pairs of mutual neighbors whose ratios are alike, and far from those of other pairs.
    let (r1, r2) = ([1.0; 6], [2.0, 2.0, 8.0, 8.0, 3.0, 3.0]);
    assert!((inflation(&r1, &r2, |i| [1, 0, 3, 2, 5, 4][i]) - 2.0).abs() < 1e-12, "c_i c_j(i) = c_i^2 for every point");
    assert_eq!(inflation(&r1, &r2, |i| [1, 2, 3, 4, 5, 0][i]), 1.0, "no one is mutual");
    let mut cloud = Neighborhood::of(&manifolds::cube(50, 2, 1)?)?;
    cloud.inflation = 1.0;
    let narrow = cloud.estimate(&Options::default())?;
    cloud.inflation = 2.0;
    let wide = cloud.estimate(&Options::default())?;
    assert_eq!(narrow.id, wide.id);
    assert!(wide.interval[0] < narrow.interval[0] && narrow.interval[1] < wide.interval[1]);
    Ok(())
}

/// Leaving a group out of the lists is searching the points without it.
#[test]
fn replicates_are_estimates_of_the_points_without_a_group() -> Result<()> {
    let (n, dim) = (300, 4);
    let points = manifolds::cube(n, dim, 3)?;
    let estimators: [Estimator; 3] =
        [Gride { order: 1 }.into(), Gride { order: 4 }.into(), LevinaBickel { k: 12 }.into()];
    let cloud = Neighborhood::for_estimators(&points, &estimators)?;
    let values = points.to_vec_f64()?;
    for group in [0, 17] {
        let rows: Vec<usize> = (0..n).filter(|&i| cloud.group_of(i) != group).collect();
        let rest: Vec<f64> = rows.iter().flat_map(|&i| values[i * dim..][..dim].to_vec()).collect();
        let rest = Neighborhood::for_estimators(&Tensor::from_f64(rest, [rows.len(), dim])?, &estimators)?;
        for estimator in &estimators {
            let (all, alone) = (cloud.replicates(estimator)?, rest.replicates(estimator)?.value);
            approx::assert_relative_eq!(all.without[group as usize], alone, max_relative = 1e-12);
            let id = cloud.estimate(&Options { estimator: *estimator, confidence: 0.9 })?.id;
            approx::assert_relative_eq!(all.value, id, max_relative = 1e-12);
        }
    }
    Ok(())
}

#[test]
fn an_estimator_that_needs_more_neighbors_says_so() -> Result<()> {
    let few = Neighborhood::of(&manifolds::cube(12, 2, 1)?)?;
    let options = Options { estimator: LevinaBickel { k: 20 }.into(), confidence: 0.95 };
    let message = few.estimate(&options).unwrap_err().to_string();
    assert!(message.contains("mle needs 20 neighbors") && message.contains("12 distinct points"), "{message}");
    Ok(())
}

#[test]
fn wrong_numbers_of_neighbors_are_named() -> Result<()> {
    let cloud = Neighborhood::with_neighbors(&manifolds::cube(60, 2, 1)?, 20)?;
    let fails =
        |estimator: Estimator| cloud.estimate(&Options { estimator, confidence: 0.95 }).unwrap_err().to_string();
    assert!(fails(Gride { order: 0 }.into()).contains("the order of gride must be at least 1, got 0"));
    assert!(fails(LevinaBickel { k: 1 }.into()).contains("k of mle must be at least 2, got 1"));
    assert!(fails(LocalPca { k: 0, threshold: 0.05 }.into()).contains("k of local-pca"));
    assert!(fails(CorrDim { inner: 0, outer: 5 }.into()).contains("inner order"));
    Ok(())
}

#[test]
fn three_points_have_an_estimate_but_no_error() -> Result<()> {
    let cloud = Neighborhood::of(&Tensor::from_f64(vec![0.0, 1.0, 3.0], [3, 1])?)?;
    let all = cloud.replicates(&Estimator::default())?;
    assert!(all.value.is_finite() && all.without.is_empty() && all.log_error().is_infinite());
    Ok(())
}

#[test]
fn near_copies_are_left_out_and_counted() -> Result<()> {
    let (points, copies) = manifolds::with_near_copies(&manifolds::cube(400, 3, 5)?, 0.1, 2, 1e-6, 1)?;
    let cloud = Neighborhood::of(&points)?;
    assert_eq!((cloud.len(), cloud.near_copies(), cloud.duplicates(), copies), (360, 40, 0, 40));
    assert_eq!(cloud.near_copy_marks(), (0..400).map(|row| row >= 360).collect::<Vec<_>>());
    let clean = scale::subset(&points, &(0..360).collect::<Vec<_>>())?;
    let clean = Neighborhood::of(&clean)?;
    assert_eq!((clean.near_copies(), clean.with_near_copies().is_none()), (0, true));
    let estimate = cloud.estimate(&Options::default())?;
    assert_eq!((estimate.id, estimate.near_copies), (clean.estimate(&Options::default())?.id, 40));
    let kept = Neighborhood::keeping(&points, 2, NearCopies::Keep)?;
    assert_eq!((kept.len(), kept.near_copies()), (400, 0));
    assert_eq!(estimate.id_with_near_copies, Some(kept.estimate(&Options::default())?.id));
    assert!(estimate.id_with_near_copies < Some(0.8 * estimate.id), "{estimate:?}");
    // What was marked once needs no search for near copies again, and keeps its groups.
    let again = Neighborhood::without(&points, 2, &cloud.near_copy_marks())?;
    assert_eq!(
        (again.rows(), &again.groups, again.estimate(&Options::default())?.id),
        (cloud.rows(), &cloud.groups, estimate.id)
    );
    assert!(Neighborhood::without(&points, 2, &[false]).unwrap_err().to_string().contains("400 rows, got 1"));
    Ok(())
}

#[test]
fn a_copy_of_a_near_copy_does_not_take_its_place() -> Result<()> {
    let (points, _) = manifolds::with_near_copies(&manifolds::cube(200, 3, 5)?, 0.05, 2, 1e-6, 1)?;
    let mut values = points.to_vec_f64()?;
    values.extend_from_within(values.len() - 30..);
    let cloud = Neighborhood::of(&Tensor::from_f64(values, [210, 3])?)?;
    assert_eq!((cloud.len(), cloud.near_copies(), cloud.duplicates()), (190, 10, 10));
    assert_eq!(cloud.near_copy_marks().iter().filter(|gone| **gone).count(), 20);
    Ok(())
}
