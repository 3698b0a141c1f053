use gelora_kernels::{Tensor, ops::pairwise};

use super::*;
use crate::{Result, manifolds};

fn left_out(points: &Tensor) -> Result<Vec<bool>> {
    let found = pairwise::nearest(points, SEARCHED.min(points.rows() - 1))?;
    Ok(find(&found.distances, &found.indices, found.k))
}

#[test]
fn smooth_clouds_keep_every_point() -> Result<()> {
    for n in [60, 600] {
        for seed in 0..5 {
            let clouds = [
                manifolds::cube(n, 1, seed)?,
                manifolds::cube(n, 2, seed)?,
                manifolds::cube(n, 20, seed)?,
                manifolds::sphere(n, 5, seed)?,
                manifolds::swiss_roll(n, seed)?,
                manifolds::noisy(&manifolds::swiss_roll(n, seed)?, 0.3, seed)?,
                manifolds::nonlinear(n, 2, 8, seed)?,
            ];
            for (c, cloud) in clouds.iter().enumerate() {
                assert_eq!(left_out(cloud)?.iter().filter(|gone| **gone).count(), 0, "cloud {c}, n {n}, seed {seed}");
            }
        }
    }
    Ok(())
}

#[test]
fn of_a_group_the_first_row_stays() -> Result<()> {
    for size in [2, 3, 5, 10] {
        let (points, copies) = manifolds::with_near_copies(&manifolds::cube(600, 8, 2)?, 0.05, size, 0.02, 3)?;
        let gone = left_out(&points)?;
        // The copies stand at the end.
        assert!(gone[..600 - copies].iter().all(|gone| !gone), "groups of {size}");
        assert!(gone[600 - copies..].iter().all(|gone| *gone), "groups of {size}");
    }
    Ok(())
}

#[test]
fn grids_and_tiny_clouds_are_left_alone() -> Result<()> {
    let grid: Vec<f64> = (0..400).flat_map(|i| [f64::from(i % 20), f64::from(i / 20)]).collect();
    assert!(left_out(&Tensor::from_f64(grid, [400, 2])?)?.iter().all(|gone| !gone));
    let (few, copies) = manifolds::with_near_copies(&manifolds::cube(19, 3, 1)?, 0.2, 2, 1e-6, 1)?;
    assert!(copies > 0 && left_out(&few)?.iter().all(|gone| !gone));
    Ok(())
}

#[test]
fn the_same_cloud_loses_the_same_rows() -> Result<()> {
    // In the plane at a fifth of the usual distance some of the pairs are chance, and a hash decides.
    let (points, _) = manifolds::with_near_copies(&manifolds::cube(1000, 2, 4)?, 0.2, 2, 0.2, 5)?;
    assert_eq!(left_out(&points)?, left_out(&points)?);
    Ok(())
}

#[test]
fn names_parse_and_print() {
    for choice in [NearCopies::Drop, NearCopies::Keep] {
        assert_eq!(choice.to_string().parse::<NearCopies>().ok(), Some(choice));
    }
    assert!("merge".parse::<NearCopies>().unwrap_err().to_string().contains("drop or keep, got \"merge\""));
}
