//! Sums of squared differences, vectorized by the compiler.
//!
//! The number of lanes is fixed, and multiplications are not fused into additions, so every level of vector
//! instructions gives the same bits.

use std::ops::{AddAssign, Mul, Sub};

use crate::cpu::{for_row_blocks, vectorized};
use crate::{Result, Tensor};

/// Partial sums of one distance.
const LANES: usize = 32;

/// Rows of y that stay in a cache while the rows of x go by.
const Y_ROWS: usize = 64;

pub(crate) fn distances(x: &Tensor, y: &Tensor, n: usize, m: usize, dim: usize, squared: bool) -> Result<Tensor> {
    let mut d = Tensor::output([n, m])?;
    let out = d.as_mut_slice()?;
    if x.as_f64().is_some() || y.as_f64().is_some() {
        let (x, y) = (x.to_vec_f64()?, y.to_vec_f64()?);
        for_row_blocks(out, m, |first, d| block_f64(&x[first * dim..], &y, dim, squared, d));
    } else {
        let (x, y) = (x.as_slice()?, y.as_slice()?);
        for_row_blocks(out, m, |first, d| block_f32(&x[first * dim..], y, dim, squared, d));
    }
    Ok(d)
}

vectorized! {
    fn block_f32(x: &[f32], y: &[f32], dim: usize, squared: bool, d: &mut [f32]) {
        block(x, y, dim, d, |x, y| {
            let sum = sum_of_squares::<f32>(x, y);
            if squared { sum } else { sum.sqrt() }
        });
    }
}

vectorized! {
    fn block_f64(x: &[f64], y: &[f64], dim: usize, squared: bool, d: &mut [f32]) {
        block(x, y, dim, d, |x, y| {
            let sum = sum_of_squares::<f64>(x, y);
            (if squared { sum } else { sum.sqrt() }) as f32
        });
    }
}

/// `d[i][j] = f(x_i, y_j)`, for as many rows of x as d has.
#[inline(always)]
fn block<T>(x: &[T], y: &[T], dim: usize, d: &mut [f32], f: impl Fn(&[T], &[T]) -> f32) {
    let m = y.len() / dim;
    for (tile, y) in y.chunks(Y_ROWS * dim).enumerate() {
        for (x, d) in x.chunks_exact(dim).zip(d.chunks_exact_mut(m)) {
            for (y, d) in y.chunks_exact(dim).zip(&mut d[tile * Y_ROWS..]) {
                *d = f(x, y);
            }
        }
    }
}

/// The sum of (x - y)^2, in S.
#[inline(always)]
pub(crate) fn sum_of_squares<S>(x: &[impl Copy + Into<S>], y: &[impl Copy + Into<S>]) -> S
where
    S: Copy + Default + Sub<Output = S> + Mul<Output = S> + AddAssign,
{
    let mut lanes = [S::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for l in 0..LANES {
            let d = x[l].into() - y[l].into();
            lanes[l] += d * d;
        }
    }
    for ((x, y), lane) in x_rest.iter().zip(y_rest).zip(&mut lanes) {
        let d = (*x).into() - (*y).into();
        *lane += d * d;
    }
    // The lanes are added as a tree.
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
        width /= 2;
    }
    lanes[0]
}
