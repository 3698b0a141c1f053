//! The table, and rotations row by row.

use rayon::prelude::*;

use super::{Angles, Positions};
use crate::cpu::{for_row_blocks, vectorized};
use crate::{Error, Result, Tensor};

/// (cos, sin), each (positions, D/2), computed in f64.
pub(crate) fn table(inverse_frequencies: &[f32], positions: usize) -> Result<(Tensor, Tensor)> {
    let angle = |p: usize, f: f32| f64::from(p as f32 * f);
    let values = |function: fn(f64) -> f64| -> Vec<f32> {
        let row = |p: usize| inverse_frequencies.iter().map(move |f| function(angle(p, *f)) as f32);
        (0..positions).into_par_iter().flat_map_iter(row).collect()
    };
    let shape = [positions, inverse_frequencies.len()];
    Ok((Tensor::from_vec(values(f64::cos), shape)?, Tensor::from_vec(values(f64::sin), shape)?))
}

pub(crate) fn rotate(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let cols = x.cols();
    #[allow(irrefutable_let_patterns, clippy::infallible_destructuring_match)]
    // without GPU features there is one variant
    let Positions::Host(positions) = &angles.positions else {
        return Err(Error::MixedDevices { op: "rotary", left: "cpu".into(), right: "gpu".into() });
    };
    let mut y = Tensor::output(x.shape())?;
    let (x, cos, sin) = (x.as_slice()?, angles.table.cos.as_slice()?, angles.table.sin.as_slice()?);
    let half = angles.table.cos.cols();
    for_row_blocks(y.as_mut_slice()?, cols, |row, y| {
        let block = row * cols..row * cols + y.len();
        rotate_rows(&x[block], cos, sin, &positions[row..], cols, half, sign, y);
    });
    Ok(y)
}

vectorized! {
    /// Rotates whole rows, by `sign` times their angles.
    fn rotate_rows(
        x: &[f32],
        cos: &[f32],
        sin: &[f32],
        positions: &[u32],
        cols: usize,
        half: usize,
        sign: f32,
        y: &mut [f32],
    ) {
        for ((x, y), position) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(positions) {
            let first = *position as usize * half;
            let (cos, sin) = (&cos[first..first + half], &sin[first..first + half]);
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
                for j in 0..half {
                    let (cos, sin) = (cos[j], sign * sin[j]);
                    y1[j] = x1[j] * cos - x2[j] * sin;
                    y2[j] = x2[j] * cos + x1[j] * sin;
                }
            }
        }
    }
}
