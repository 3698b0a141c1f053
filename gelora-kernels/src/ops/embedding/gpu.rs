//! One unit for each element of y, or for four elements if the table is quantized. Each table is one launch, in the
//! given order, so tables may have different types.

use cubecl::prelude::*;

use crate::gpu::quantized::decode;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, by_dtype, elementwise};
use crate::quantized::planes::Packing;
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

/// Adds rows of a quantized table of `len` values, from its planes.
#[cube(launch)]
fn add_decoded_kernel(
    table: &Array<Vector<u32, Const<1>>>,
    ids: &Array<u32>,
    y: &mut Array<f32>,
    c: usize,
    len: usize,
    #[comptime] first: bool,
    #[comptime] packing: Packing,
) {
    let first_element = ABSOLUTE_POS * 4;
    if first_element < y.len() {
        let four =
            decode::<u32, Const<1>>(table, ids[first_element / c] as usize * c + first_element % c, len, packing);
        #[unroll]
        for e in 0..4usize {
            if comptime!(first) {
                y[first_element + e] = four[e];
            } else {
                y[first_element + e] += four[e];
            }
        }
    }
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, tables: &[(&Tensor, &[u32])], n: usize, c: usize) -> Result<Tensor> {
    const OP: &str = "embedding";
    let y = gpu.output([n, c])?;
    for (i, (table, ids)) in tables.iter().enumerate() {
        if gpu.tally().plans_cpu() {
            table.gpu(OP)?.touch(n);
        }
        if let Some(packing) = Packing::of(table.dtype()) {
            add_decoded_kernel::launch::<R>(
                gpu.client(),
                elementwise(n * c / 4),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                table.gpu(OP)?.arg(),
                gpu.upload_u32(ids).arg(),
                y.gpu(OP)?.arg(),
                c,
                table.len(),
                i == 0,
                packing,
            );
            continue;
        }
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
