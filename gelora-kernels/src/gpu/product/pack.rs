//! Packing of operands for the matrix units: rounding to bf16, and padding to whole vectors and stages.

use cubecl::prelude::*;
use half::bf16;

use super::super::quantized::decode;
use super::super::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, cubes};
use super::shape::WIDTH;
use crate::quantized::planes::Packing;
use crate::{DType, Result};

/// Number of 8-bit parts of an f32.
pub(crate) const PARTS: usize = 3;

/// The content of the padded matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fill {
    /// The matrix once, then zeros.
    Once,
    /// Along the rows: the first 8 bits of all values, the next 8, the last 8, then zeros.
    Parts,
    /// The matrix three times side by side, then zeros: the right factor of `Parts`.
    Beside,
    /// The matrix three times one below the other, then zeros.
    Below,
}

/// The sizes of a packed matrix.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct PackExtent {
    rows: usize,
    cols: usize,
    to_rows: usize,
    to_vectors: usize,
}

/// One unit for each vector of the packed matrix.
#[cube(launch_unchecked)]
fn pack_kernel<F: Float, NF: Size, N: Size>(
    from: &Array<Vector<F, NF>>,
    to: &mut Array<Vector<bf16, N>>,
    extent: &PackExtent,
    scale: f32,
    #[comptime] fill: Fill,
    #[comptime] vector: usize,
) {
    if ABSOLUTE_POS < extent.to_rows * extent.to_vectors {
        let row = ABSOLUTE_POS / extent.to_vectors;
        let first = ABSOLUTE_POS % extent.to_vectors * comptime!(WIDTH);
        let mut packed = Vector::<bf16, N>::new(bf16::new(0.0));
        if comptime!(fill == Fill::Once && vector > 1) {
            #[unroll]
            for part in 0..comptime!(WIDTH / vector) {
                let col = first + comptime!(part * vector);
                // Rows divide into vectors, so a vector that begins inside a row ends inside it.
                if row < extent.rows && col < extent.cols {
                    let values = from[(row * extent.cols + col) / vector];
                    #[unroll]
                    for e in 0..vector {
                        packed[comptime!(part * vector + e)] = bf16::cast_from(f32::cast_from(values[e]) * scale);
                    }
                }
            }
        } else {
            #[unroll]
            for e in 0..comptime!(WIDTH) {
                let (to_col, to_row) = (first + e, row);
                let mut from_col = to_col;
                let mut from_row = to_row;
                let mut part = 0usize;
                if comptime!(fill == Fill::Parts || fill == Fill::Beside) {
                    part = to_col / extent.cols;
                    from_col = to_col % extent.cols;
                } else if comptime!(fill == Fill::Below) {
                    part = to_row / extent.rows;
                    from_row = to_row % extent.rows;
                }
                if part < comptime!(PARTS) && from_row < extent.rows && from_col < extent.cols {
                    let index = from_row * extent.cols + from_col;
                    let value = from[index / vector][index % vector];
                    let mut rest = f32::cast_from(value) * scale;
                    if comptime!(fill == Fill::Parts) {
                        for _ in 0..part {
                            rest -= f32::cast_from(bf16::cast_from(rest));
                        }
                    }
                    packed[e] = bf16::cast_from(rest);
                }
            }
        }
        to[ABSOLUTE_POS] = packed;
    }
}

/// [`pack_kernel`] for a quantized matrix, filled once.
#[cube(launch_unchecked)]
fn pack_decoded_kernel<N: Size>(
    from: &Array<Vector<u32, Const<1>>>,
    to: &mut Array<Vector<bf16, N>>,
    extent: &PackExtent,
    scale: f32,
    #[comptime] packing: Packing,
) {
    if ABSOLUTE_POS < extent.to_rows * extent.to_vectors {
        let row = ABSOLUTE_POS / extent.to_vectors;
        let first = ABSOLUTE_POS % extent.to_vectors * comptime!(WIDTH);
        let mut packed = Vector::<bf16, N>::new(bf16::new(0.0));
        #[unroll]
        for part in 0..comptime!(WIDTH / 4) {
            let col = first + comptime!(4 * part);
            if row < extent.rows && col < extent.cols {
                let (first_value, len) = (row * extent.cols + col, extent.rows * extent.cols);
                let four = decode::<u32, Const<1>>(from, first_value, len, packing);
                #[unroll]
                for e in 0..4usize {
                    packed[comptime!(4 * part + e)] = bf16::cast_from(four[e] * scale);
                }
            }
        }
        to[ABSOLUTE_POS] = packed;
    }
}

/// A matrix (rows, cols) times `scale`, as bf16 in a matrix of `to_rows` rows and `to_vectors` vectors.
pub(crate) fn pack<R: Backend>(
    gpu: &Gpu<R>,
    from: &GpuBuffer,
    [rows, cols]: [usize; 2],
    [to_rows, to_vectors]: [usize; 2],
    scale: f32,
    fill: Fill,
) -> Result<GpuBuffer> {
    if let Some(packing) = Packing::of(from.dtype) {
        debug_assert_eq!(fill, Fill::Once, "weights are no adapters");
        let to = gpu.scratch_bf16(to_rows * to_vectors * WIDTH)?;
        // SAFETY: as in `launch`.
        unsafe {
            pack_decoded_kernel::launch_unchecked::<R>(
                gpu.client(),
                cubes((to_rows * to_vectors).div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                WIDTH,
                from.arg(),
                to.arg(),
                PackExtentLaunch::new(rows, cols, to_rows, to_vectors),
                scale,
                packing,
            );
        }
        return Ok(to);
    }
    match from.dtype {
        DType::Bf16 => launch::<R, bf16>(gpu, from, [rows, cols], [to_rows, to_vectors], scale, fill),
        DType::F16 => launch::<R, half::f16>(gpu, from, [rows, cols], [to_rows, to_vectors], scale, fill),
        _ => launch::<R, f32>(gpu, from, [rows, cols], [to_rows, to_vectors], scale, fill),
    }
}

fn launch<R: Backend, F: Float>(
    gpu: &Gpu<R>,
    from: &GpuBuffer,
    [rows, cols]: [usize; 2],
    [to_rows, to_vectors]: [usize; 2],
    scale: f32,
    fill: Fill,
) -> Result<GpuBuffer> {
    let to = gpu.scratch_bf16(to_rows * to_vectors * WIDTH)?;
    let vector = if cols.is_multiple_of(4) && fill == Fill::Once { 4 } else { 1 };
    // SAFETY: a unit beyond the packed matrix does nothing, and reads stay inside the matrix, whose size is that of the
    // tensor.
    unsafe {
        pack_kernel::launch_unchecked::<F, R>(
            gpu.client(),
            cubes((to_rows * to_vectors).div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            vector,
            WIDTH,
            from.arg(),
            to.arg(),
            PackExtentLaunch::new(rows, cols, to_rows, to_vectors),
            scale,
            fill,
            vector,
        );
    }
    Ok(to)
}
