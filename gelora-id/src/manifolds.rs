//! Clouds of known dimension, to try estimators on. The same seed gives the same points.
//!
//! Each function returns n points as a matrix (n, D) in f64. [`noisy`] adds Gaussian noise to any of them.

use std::f64::consts::PI;

use gelora_kernels::{Tensor, random::Stream};

use crate::{Error, NearCopies, Neighborhood, Result};

/// Uniform in the unit cube of dimension `dim`.
///
/// # Errors
/// If n or `dim` is 0.
pub fn cube(n: usize, dim: usize, seed: u64) -> Result<Tensor> {
    let mut random = Stream::at(seed, &[0x6375_6265, dim as u64]); // "cube"
    Ok(Tensor::from_f64((0..n * dim).map(|_| random.uniform()).collect(), [n, dim])?)
}

/// Uniform in the ball of radius 1 of dimension `dim`: a direction by normal numbers, a radius by u^(1 / dim).
///
/// # Errors
/// If n or `dim` is 0.
pub fn ball(n: usize, dim: usize, seed: u64) -> Result<Tensor> {
    let mut random = Stream::at(seed, &[0x6261_6c6c, dim as u64]); // "ball"
    let mut values = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let radius = (1.0 - random.uniform()).powf(1.0 / dim as f64);
        values.extend(direction(&mut random, dim).map(|v| v * radius));
    }
    Ok(Tensor::from_f64(values, [n, dim])?)
}

/// Uniform on the sphere of radius 1 and dimension `dim`, in `dim` + 1 columns. It has no boundary.
///
/// # Errors
/// If n is 0.
pub fn sphere(n: usize, dim: usize, seed: u64) -> Result<Tensor> {
    let mut random = Stream::at(seed, &[0x7370_6865, dim as u64]); // "sphe"
    let values = (0..n).flat_map(|_| direction(&mut random, dim + 1).collect::<Vec<_>>()).collect();
    Ok(Tensor::from_f64(values, [n, dim + 1])?)
}

/// The Swiss roll: a plane rolled up in three columns, (t cos t, h, t sin t) with t in 1.5 pi (1 + 2 u) and h in 21 u.
///
/// # Errors
/// If n is 0.
pub fn swiss_roll(n: usize, seed: u64) -> Result<Tensor> {
    let mut random = Stream::at(seed, &[0x726f_6c6c]); // "roll"
    let point = |_| {
        let (t, h) = (1.5 * PI * (1.0 + 2.0 * random.uniform()), 21.0 * random.uniform());
        [t * t.cos(), h, t * t.sin()]
    };
    Ok(Tensor::from_f64((0..n).flat_map(point).collect(), [n, 3])?)
}

/// A torus bent through `columns` dimensions, without a boundary. The angles u are uniform in (0, 2 pi)^dim, and column
/// c is sin(a_c . u + b_c) with integers a_c from -2 to 2 (not all 0) and phases b_c. The first 2 `dim` columns are cos
/// and sin of each angle, so that different angles are different points. The torus depends on `dim` and `columns`, and
/// the points on it depend on the seed.
///
/// # Errors
/// If n or `dim` is 0.
pub fn nonlinear(n: usize, dim: usize, columns: usize, seed: u64) -> Result<Tensor> {
    let columns = columns.max(2 * dim);
    let mut random = Stream::at(0, &[0x6265_6e64, dim as u64, columns as u64]); // "bend"
    let waves: Vec<(Vec<f64>, f64)> = (0..columns)
        .map(|c| {
            let mut a: Vec<f64> = (0..dim).map(|_| random.below(5) as f64 - 2.0).collect();
            let phase = 2.0 * PI * random.uniform();
            if c < 2 * dim {
                a = (0..dim).map(|i| f64::from(i == c / 2)).collect();
                return (a, if c % 2 == 0 { 0.5 * PI } else { 0.0 });
            }
            if a.iter().all(|a| *a == 0.0) {
                a[c % dim] = 1.0;
            }
            (a, phase)
        })
        .collect();
    let mut random = Stream::at(seed, &[0x6265_6e64, dim as u64]);
    let mut values = Vec::with_capacity(n * columns);
    for _ in 0..n {
        let u: Vec<f64> = (0..dim).map(|_| 2.0 * PI * random.uniform()).collect();
        let at = |(a, phase): &(Vec<f64>, f64)| (a.iter().zip(&u).map(|(a, u)| a * u).sum::<f64>() + phase).sin();
        values.extend(waves.iter().map(at));
    }
    Ok(Tensor::from_f64(values, [n, columns])?)
}

/// The points mapped into `columns` columns by a random matrix of normal numbers over sqrt(columns), which keeps
/// distances approximately.
///
/// # Errors
/// If the points are not a matrix, or `columns` is 0.
pub fn embedded(points: &Tensor, columns: usize, seed: u64) -> Result<Tensor> {
    let (n, dim) = matrix(points)?;
    if columns == 0 {
        return Err(Error::Option { name: "the number of columns", expected: "at least 1", got: 0.0 });
    }
    let values = points.to_vec_f64()?;
    let mut random = Stream::at(seed, &[0x656d_6265]); // "embe"
    let map: Vec<f64> = (0..dim * columns).map(|_| random.normal() / (columns as f64).sqrt()).collect();
    let mut out = vec![0.0; n * columns];
    for (row, out) in values.chunks_exact(dim).zip(out.chunks_exact_mut(columns)) {
        for (x, map) in row.iter().zip(map.chunks_exact(columns)) {
            out.iter_mut().zip(map).for_each(|(out, m)| *out += x * m);
        }
    }
    Ok(Tensor::from_f64(out, [n, columns])?)
}

/// The points with Gaussian noise of standard deviation `deviation` added to every value.
///
/// # Errors
/// If the points are not a matrix.
pub fn noisy(points: &Tensor, deviation: f64, seed: u64) -> Result<Tensor> {
    let shape = matrix(points)?;
    let mut random = Stream::at(seed, &[0x6e6f_6973]); // "nois"
    let values = points.to_vec_f64()?.into_iter().map(|v| v + deviation * random.normal());
    Ok(Tensor::from_f64(values.collect(), [shape.0, shape.1])?)
}

/// The points with near copies in place of the last rows, and the number of copies, about `share` of all rows.
///
/// Every group has `size` rows: an original and its copies. Each copy is moved from its original in a random direction,
/// by `distance` times the median distance of a point to its nearest neighbor. Without the last rows the cloud has no
/// near copies.
///
/// # Errors
/// If the points are not a matrix or fewer than 3; if `share` is not in [0, 1), `size` not at least 2 or the distance
/// not positive; if there are fewer rows left than originals needed.
pub fn with_near_copies(points: &Tensor, share: f64, size: usize, distance: f64, seed: u64) -> Result<(Tensor, usize)> {
    let (n, dim) = matrix(points)?;
    let wrong = |name, expected, got| Err(Error::Option { name, expected, got });
    if !(0.0..1.0).contains(&share) {
        return wrong("the share of near copies", "at least 0 and below 1", share);
    }
    if size < 2 {
        return wrong("the size of a group", "at least 2", size as f64);
    }
    if !(distance > 0.0 && distance < f64::INFINITY) {
        return wrong("the distance of near copies", "positive and finite", distance);
    }
    let groups = (n as f64 * share / (size - 1) as f64).round() as usize;
    let copies = groups * (size - 1);
    let originals = n.saturating_sub(copies);
    if originals < groups {
        return wrong("the share of near copies", "small enough to leave an original for each group", share);
    }
    let mut nearest = Neighborhood::keeping(points, 2, NearCopies::Keep)?.column(0).unwrap_or_default();
    nearest.sort_unstable_by(f64::total_cmp);
    let length = distance * nearest[nearest.len() / 2];
    let mut values = points.to_vec_f64()?;
    values.truncate(originals * dim);
    let mut random = Stream::at(seed, &[0x636f_7079]); // "copy"
    let mut order: Vec<usize> = (0..originals).collect();
    random.shuffle(&mut order);
    for original in order.into_iter().take(groups) {
        for _ in 1..size {
            let step: Vec<f64> = direction(&mut random, dim).map(|v| v * length).collect();
            values.extend((0..dim).map(|c| values[original * dim + c] + step[c]).collect::<Vec<_>>());
        }
    }
    Ok((Tensor::from_f64(values, [n, dim])?, copies))
}

/// n and D of a matrix.
fn matrix(points: &Tensor) -> Result<(usize, usize)> {
    match *points.shape() {
        [n, columns] => Ok((n, columns)),
        _ => Err(Error::Shape { got: points.shape().to_vec() }),
    }
}

/// A unit vector in a uniformly random direction.
fn direction(random: &mut Stream, dim: usize) -> impl Iterator<Item = f64> + use<> {
    let v: Vec<f64> = (0..dim).map(|_| random.normal()).collect();
    let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
    v.into_iter().map(move |v| v / norm)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    fn norms(points: &Tensor) -> Vec<f64> {
        let values = points.to_vec_f64().unwrap();
        values.chunks_exact(points.cols()).map(|p| p.iter().map(|v| v * v).sum::<f64>().sqrt()).collect()
    }

    #[test]
    fn spheres_and_balls_have_their_radii() -> Result<()> {
        norms(&sphere(50, 4, 1)?).into_iter().for_each(|r| assert_relative_eq!(r, 1.0, max_relative = 1e-12));
        let radii = norms(&ball(4000, 3, 1)?);
        assert!(radii.iter().all(|r| *r <= 1.0));
        // Half of the volume is inside 0.5^(1/3).
        let inside = radii.iter().filter(|r| **r < 0.5f64.cbrt()).count();
        assert!((1900..2100).contains(&inside), "{inside}");
        Ok(())
    }

    #[test]
    fn the_same_seed_gives_the_same_points() -> Result<()> {
        for of in [|s| swiss_roll(20, s), |s| nonlinear(20, 2, 9, s), |s| ball(20, 5, s), |s| cube(20, 5, s)] {
            assert_eq!(of(3)?.to_vec_f64()?, of(3)?.to_vec_f64()?);
            assert_ne!(of(3)?.to_vec_f64()?, of(4)?.to_vec_f64()?);
        }
        Ok(())
    }

    #[test]
    fn noise_and_columns_are_what_was_asked_for() -> Result<()> {
        let flat = Tensor::from_f64(vec![0.0; 4000], [2000, 2])?;
        let squares: f64 = noisy(&flat, 0.1, 5)?.to_vec_f64()?.iter().map(|v| v * v).sum();
        assert_relative_eq!((squares / 4000.0).sqrt(), 0.1, max_relative = 0.05);
        assert_eq!(embedded(&swiss_roll(10, 1)?, 40, 2)?.shape(), [10, 40]);
        assert_eq!(nonlinear(10, 3, 2, 1)?.shape(), [10, 6]);
        Ok(())
    }

    #[test]
    fn near_copies_stand_where_they_should() -> Result<()> {
        let cloud = cube(300, 4, 1)?;
        let (points, copies) = with_near_copies(&cloud, 0.1, 4, 0.01, 2)?;
        assert_eq!((points.shape(), copies), (&[300, 4][..], 30));
        let values = points.to_vec_f64()?;
        assert_eq!(values[..270 * 4], cloud.to_vec_f64()?[..270 * 4]);
        let row = |i: usize| &values[i * 4..][..4];
        let apart = |i, j| row(i).iter().zip(row(j)).map(|(x, y): (&f64, &f64)| (x - y).powi(2)).sum::<f64>().sqrt();
        let to_original = |i| (0..270).map(|j| apart(i, j)).fold(f64::INFINITY, f64::min);
        let lengths: Vec<f64> = (270..300).map(to_original).collect();
        lengths.iter().for_each(|length| assert_relative_eq!(*length, lengths[0], max_relative = 1e-9));
        let fails = |share, size, distance| with_near_copies(&cloud, share, size, distance, 1).unwrap_err().to_string();
        assert!(fails(1.0, 2, 0.1).contains("share") && fails(0.1, 1, 0.1).contains("size of a group"));
        assert!(fails(0.6, 2, 0.1).contains("an original for each") && fails(0.1, 2, 0.0).contains("distance"));
        Ok(())
    }

    #[test]
    fn what_is_no_matrix_is_an_error() -> Result<()> {
        let solid = Tensor::from_f64(vec![0.0; 8], [2, 2, 2])?;
        for got in
            [embedded(&solid, 4, 1), noisy(&solid, 0.1, 1), with_near_copies(&solid, 0.1, 2, 0.1, 1).map(|c| c.0)]
        {
            assert!(matches!(got, Err(Error::Shape { .. })), "{got:?}");
        }
        assert!(embedded(&cube(4, 2, 1)?, 0, 1).is_err());
        Ok(())
    }
}
