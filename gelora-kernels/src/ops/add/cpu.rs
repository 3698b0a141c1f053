//! One loop over values.

use crate::cpu::for_row_blocks;
use crate::{Result, Tensor};

pub(crate) fn forward(x: &Tensor, z: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output(x.shape())?;
    let (x, z) = (x.as_slice()?, z.as_slice()?);
    for_row_blocks(y.as_mut_slice()?, 1, |first, y| {
        for ((y, x), z) in y.iter_mut().zip(&x[first..]).zip(&z[first..]) {
            *y = x + z;
        }
    });
    Ok(y)
}

pub(crate) fn accumulate(acc: &mut Tensor, x: &Tensor) -> Result<()> {
    let x = x.as_slice()?;
    for_row_blocks(acc.as_mut_slice()?, 1, |first, acc| {
        for (acc, x) in acc.iter_mut().zip(&x[first..]) {
            *acc += x;
        }
    });
    Ok(())
}
