//! Loops over elements, vectorized by the compiler.

use super::Dropout;
use crate::cpu::{for_row_blocks, vectorized};
use crate::dropout::factor;
use crate::{Result, Tensor};

pub(crate) fn apply(x: &Tensor, d: Dropout) -> Result<Tensor> {
    let mut y = Tensor::output(x.shape())?;
    let x = x.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, 1, |first, y| {
        let len = y.len();
        block(d, first as u32, &x[first..first + len], y);
    });
    Ok(y)
}

vectorized! {
    /// y = x mask / (1 - p), for the elements from index `first` on.
    pub(crate) fn block(d: Dropout, first: u32, x: &[f32], y: &mut [f32]) {
        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
            *y = x * factor(d, first.wrapping_add(i as u32));
        }
    }
}

vectorized! {
    /// y += x mask / (1 - p), for the elements from index `first` on.
    pub(crate) fn add_block(d: Dropout, first: u32, x: &[f32], y: &mut [f32]) {
        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
            *y += x * factor(d, first.wrapping_add(i as u32));
        }
    }
}
