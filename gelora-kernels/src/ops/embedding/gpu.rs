//! One unit an element of y, one launch a table: tables of any mix of types, in the order given.

use cubecl::prelude::*;

use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, by_dtype, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
fn add_kernel<W: Float>(table: &Array<W>, ids: &Array<u32>, y: &mut Array<f32>, c: usize, #[comptime] first: bool) {
    if ABSOLUTE_POS < y.len() {
        let value = f32::cast_from(table[ids[ABSOLUTE_POS / c] as usize * c + ABSOLUTE_POS % c]);
        if comptime!(first) {
            y[ABSOLUTE_POS] = value;
        } else {
            y[ABSOLUTE_POS] += value;
        }
    }
}

pub fn forward<R: Backend>(gpu: &Gpu<R>, tables: &[(&Tensor, &[u32])], n: usize, c: usize) -> Result<Tensor> {
    const OP: &str = "embedding";
    let y = gpu.output([n, c])?;
    for (i, (table, ids)) in tables.iter().enumerate() {
        by_dtype!(table.dtype(), W => add_kernel::launch::<W, R>(
            gpu.client(),
            elementwise(n * c),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            table.gpu(OP)?.arg(),
            gpu.upload_u32(ids).arg(),
            y.gpu(OP)?.arg(),
            c,
            i == 0,
        ));
    }
    Ok(y)
}
