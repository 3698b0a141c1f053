//! One loop over values.

use crate::cpu::for_row_blocks;
use crate::{Result, Tensor};

pub(crate) fn forward(c: f32, x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output(x.shape())?;
    let x = x.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, 1, |first, y| {
        y.iter_mut().zip(&x[first..]).for_each(|(y, x)| *y = c * x);
    });
    Ok(y)
}

pub(crate) fn in_place(c: f32, x: &mut Tensor) -> Result<()> {
    for_row_blocks(x.as_mut_slice()?, 1, |_, x| x.iter_mut().for_each(|x| *x *= c));
    Ok(())
}
