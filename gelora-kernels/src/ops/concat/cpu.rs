//! Copies of rows.

use super::Block;
use crate::{Result, Tensor};

pub(crate) fn assemble(shape: [usize; 2], blocks: &[(&Tensor, Block)]) -> Result<Tensor> {
    let mut y = Tensor::output(shape)?;
    let out = y.as_mut_slice()?;
    for (x, block) in blocks {
        let x = x.as_slice()?;
        for row in 0..block.rows {
            let (from, to) = (block.from.0 + row * block.from.1, block.to.0 + row * block.to.1);
            out[to..to + block.width].copy_from_slice(&x[from..from + block.width]);
        }
    }
    Ok(y)
}
