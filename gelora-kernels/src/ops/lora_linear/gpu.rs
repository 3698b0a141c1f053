//! Forward is a thin product (xa) and one fused pass over the tiles of y; backward a thin product (dxa), one fused pass
//! over the tiles of dX, and two products whose long sums over N are split into parts that are added in order.
//!
//! Every product is [`accumulate`] over tiles in shared memory. Weights are widened to f32 as they are copied there.

use cubecl::prelude::*;
use half::{bf16, f16};

use super::{LoraLinear, Sizes};
use crate::gpu::tile::{Lines, Sum, Tile, accumulate, staging, unit_origin, zeros};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::ops::dropout::gpu::{Mask, MaskLaunch, factor, mask, no_mask};
use crate::{DType, Result, Tensor};

const OP: &str = "lora_linear";

/// Rows that one part of dA or dB sums, at least, and parts, at most. They depend on N alone.
const PART: usize = 512;
const MAX_PARTS: usize = 16;

/// out (parts, rows, cols) = scale * left right, each part over its `part` steps of `depth`.
#[cube(launch)]
fn product_kernel(
    left: &Array<f32>,
    right: &Array<f32>,
    out: &mut Array<f32>,
    dropout: &Mask,
    rows: usize,
    left_pitch: usize,
    cols: usize,
    right_pitch: usize,
    depth: usize,
    part: usize,
    scale: f32,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let mut left_staged = staging(tile.rows, tile);
    let mut right_staged = staging(tile.cols, tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let col = CUBE_POS_X as usize * comptime!(tile.cols);
    let from = CUBE_POS_Z as usize * part;
    for block in range_stepped(CUBE_POS_Y as usize, rows.div_ceil(tile.rows), CUBE_COUNT_Y as usize) {
        let row = block * comptime!(tile.rows);
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            left,
            right,
            &mut left_staged,
            &mut right_staged,
            dropout,
            row,
            rows,
            left_pitch,
            col,
            cols,
            right_pitch,
            from,
            (from + part).min(depth),
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let at_row = row + unit_row + i;
                let at_col = col + unit_col + comptime!(j * tile.units_x());
                if at_row < rows && at_col < cols {
                    let at = (CUBE_POS_Z as usize * rows + at_row) * cols + at_col;
                    out[at] = scale * sums[comptime!(i * tile.unit_cols + j)];
                }
            }
        }
    }
}

/// out_i = sum over parts, in order.
#[cube(launch)]
fn add_parts_kernel(parts: &Array<f32>, out: &mut Array<f32>, count: usize) {
    let len = out.len();
    if ABSOLUTE_POS < len {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[part * len + ABSOLUTE_POS];
        }
        out[ABSOLUTE_POS] = sum;
    }
}

/// y = x W^T + b + s xa B^T.
#[cube(launch)]
fn forward_kernel<W: Float>(
    x: &Array<f32>,
    w: &Array<W>,
    bias: &Array<f32>,
    xa: &Array<f32>,
    b: &Array<f32>,
    y: &mut Array<f32>,
    n: usize,
    c_in: usize,
    c_out: usize,
    r: usize,
    scaling: f32,
    #[comptime] has_bias: bool,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let mut left_staged = staging(tile.rows, tile);
    let mut right_staged = staging(tile.cols, tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let mask = no_mask();
    let col = CUBE_POS_X as usize * comptime!(tile.cols);
    for block in range_stepped(CUBE_POS_Y as usize, n.div_ceil(tile.rows), CUBE_COUNT_Y as usize) {
        let row = block * comptime!(tile.rows);
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            xa,
            b,
            &mut left_staged,
            &mut right_staged,
            &mask,
            row,
            n,
            r,
            col,
            c_out,
            r,
            0,
            r,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows * tile.unit_cols) {
            sums[i] = sums[i] * scaling;
        }
        accumulate::<f32, W>(
            &mut sums,
            x,
            w,
            &mut left_staged,
            &mut right_staged,
            &mask,
            row,
            n,
            c_in,
            col,
            c_out,
            c_in,
            0,
            c_in,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let at_row = row + unit_row + i;
                let at_col = col + unit_col + comptime!(j * tile.units_x());
                if at_row < n && at_col < c_out {
                    let mut value = sums[comptime!(i * tile.unit_cols + j)];
                    if comptime!(has_bias) {
                        value += bias[at_col];
                    }
                    y[at_row * c_out + at_col] = value;
                }
            }
        }
    }
}

/// dX = dY W + mask / (1 - p) * (dxa A).
#[cube(launch)]
fn d_input_kernel<W: Float>(
    dy: &Array<f32>,
    w: &Array<W>,
    dxa: &Array<f32>,
    a: &Array<f32>,
    dx: &mut Array<f32>,
    dropout: &Mask,
    n: usize,
    c_in: usize,
    c_out: usize,
    r: usize,
    #[comptime] dropped: bool,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let mut left_staged = staging(tile.rows, tile);
    let mut right_staged = staging(tile.cols, tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let col = CUBE_POS_X as usize * comptime!(tile.cols);
    for block in range_stepped(CUBE_POS_Y as usize, n.div_ceil(tile.rows), CUBE_COUNT_Y as usize) {
        let row = block * comptime!(tile.rows);
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            dxa,
            a,
            &mut left_staged,
            &mut right_staged,
            dropout,
            row,
            n,
            r,
            col,
            c_in,
            c_in,
            0,
            r,
            sum,
        );
        if comptime!(dropped) {
            #[unroll]
            for i in 0..comptime!(tile.unit_rows) {
                #[unroll]
                for j in 0..comptime!(tile.unit_cols) {
                    let element = (row + unit_row + i) * c_in + col + unit_col + comptime!(j * tile.units_x());
                    let at = comptime!(i * tile.unit_cols + j);
                    sums[at] = sums[at] * factor(dropout, element as u32);
                }
            }
        }
        accumulate::<f32, W>(
            &mut sums,
            dy,
            w,
            &mut left_staged,
            &mut right_staged,
            dropout,
            row,
            n,
            c_out,
            col,
            c_in,
            c_in,
            0,
            c_out,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let at_row = row + unit_row + i;
                let at_col = col + unit_col + comptime!(j * tile.units_x());
                if at_row < n && at_col < c_in {
                    dx[at_row * c_in + at_col] = sums[comptime!(i * tile.unit_cols + j)];
                }
            }
        }
    }
}

/// (y, xa).
pub fn forward<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, x: &Tensor, sizes: Sizes) -> Result<(Tensor, Tensor)> {
    let xa = gpu.output([sizes.n, sizes.r])?;
    let dropped = layer.active_dropout().is_some();
    let sum = Sum { drop_left: dropped, ..Sum::products(Tile::of(sizes.n, sizes.r), Lines::AreRows, Lines::AreRows) };
    product_kernel::launch::<R>(
        gpu.client(),
        sum.tile.cube_count(sizes.n, sizes.r, 1),
        sum.tile.cube_dim(),
        x.gpu(OP)?.arg(),
        layer.a.gpu(OP)?.arg(),
        xa.gpu(OP)?.arg(),
        mask(layer.active_dropout()),
        sizes.n,
        sizes.c_in,
        sizes.r,
        sizes.c_in,
        sizes.c_in,
        sizes.c_in,
        1.0,
        sum,
    );
    let y = gpu.output([sizes.n, sizes.c_out])?;
    match layer.weight.tensor().dtype() {
        DType::Bf16 => launch_forward::<R, bf16>(gpu, layer, x, &xa, &y, sizes)?,
        DType::F16 => launch_forward::<R, f16>(gpu, layer, x, &xa, &y, sizes)?,
        DType::F32 | DType::F64 => launch_forward::<R, f32>(gpu, layer, x, &xa, &y, sizes)?,
    }
    Ok((y, xa))
}

fn launch_forward<R: Backend, W: Float>(
    gpu: &Gpu<R>,
    layer: &LoraLinear<'_>,
    x: &Tensor,
    xa: &Tensor,
    y: &Tensor,
    sizes: Sizes,
) -> Result<()> {
    let sum = Sum::products(Tile::SQUARE, Lines::AreRows, Lines::AreRows);
    forward_kernel::launch::<W, R>(
        gpu.client(),
        sum.tile.cube_count(sizes.n, sizes.c_out, 1),
        sum.tile.cube_dim(),
        x.gpu(OP)?.arg(),
        layer.weight.tensor().gpu(OP)?.arg(),
        layer.bias.unwrap_or(xa).gpu(OP)?.arg(),
        xa.gpu(OP)?.arg(),
        layer.b.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        sizes.n,
        sizes.c_in,
        sizes.c_out,
        sizes.r,
        layer.scaling,
        layer.bias.is_some(),
        sum,
    );
    Ok(())
}

/// dxa = s dY B.
pub fn d_xa<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, dy: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let dxa = gpu.output([sizes.n, sizes.r])?;
    let sum = Sum::products(Tile::of(sizes.n, sizes.r), Lines::AreRows, Lines::AreColumns);
    product_kernel::launch::<R>(
        gpu.client(),
        sum.tile.cube_count(sizes.n, sizes.r, 1),
        sum.tile.cube_dim(),
        dy.gpu(OP)?.arg(),
        layer.b.gpu(OP)?.arg(),
        dxa.gpu(OP)?.arg(),
        mask(None),
        sizes.n,
        sizes.c_out,
        sizes.r,
        sizes.r,
        sizes.c_out,
        sizes.c_out,
        layer.scaling,
        sum,
    );
    Ok(dxa)
}

/// dX = dY W + mask / (1 - p) * (dxa A).
pub fn d_input<R: Backend>(
    gpu: &Gpu<R>,
    layer: &LoraLinear<'_>,
    dy: &Tensor,
    dxa: &Tensor,
    sizes: Sizes,
) -> Result<Tensor> {
    let dx = gpu.output([sizes.n, sizes.c_in])?;
    match layer.weight.tensor().dtype() {
        DType::Bf16 => launch_d_input::<R, bf16>(gpu, layer, dy, dxa, &dx, sizes)?,
        DType::F16 => launch_d_input::<R, f16>(gpu, layer, dy, dxa, &dx, sizes)?,
        DType::F32 | DType::F64 => launch_d_input::<R, f32>(gpu, layer, dy, dxa, &dx, sizes)?,
    }
    Ok(dx)
}

fn launch_d_input<R: Backend, W: Float>(
    gpu: &Gpu<R>,
    layer: &LoraLinear<'_>,
    dy: &Tensor,
    dxa: &Tensor,
    dx: &Tensor,
    sizes: Sizes,
) -> Result<()> {
    let sum = Sum::products(Tile::SQUARE, Lines::AreRows, Lines::AreColumns);
    d_input_kernel::launch::<W, R>(
        gpu.client(),
        sum.tile.cube_count(sizes.n, sizes.c_in, 1),
        sum.tile.cube_dim(),
        dy.gpu(OP)?.arg(),
        layer.weight.tensor().gpu(OP)?.arg(),
        dxa.gpu(OP)?.arg(),
        layer.a.gpu(OP)?.arg(),
        dx.gpu(OP)?.arg(),
        mask(layer.active_dropout()),
        sizes.n,
        sizes.c_in,
        sizes.c_out,
        sizes.r,
        layer.active_dropout().is_some(),
        sum,
    );
    Ok(())
}

/// (dA = dxa^T drop(x), dB = s dY^T xa).
pub fn d_parameters<R: Backend>(
    gpu: &Gpu<R>,
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    dxa: &Tensor,
    sizes: Sizes,
) -> Result<(Tensor, Tensor)> {
    let Sizes { c_in, c_out, r, .. } = sizes;
    let columns = |rows, cols| Sum::products(Tile::of(rows, cols), Lines::AreColumns, Lines::AreColumns);
    let sum = Sum { drop_right: layer.active_dropout().is_some(), ..columns(r, c_in) };
    let da = over_rows(gpu, dxa, x, mask(layer.active_dropout()), 1.0, sum)?;
    let db = over_rows(gpu, dy, xa, mask(None), layer.scaling, columns(c_out, r))?;
    Ok((da, db))
}

/// scale * left^T right: left (N, rows), right (N, cols); the result (rows, cols).
fn over_rows<R: Backend>(
    gpu: &Gpu<R>,
    left: &Tensor,
    right: &Tensor,
    dropout: MaskLaunch<R>,
    scale: f32,
    sum: Sum,
) -> Result<Tensor> {
    let (n, rows, cols) = (left.rows(), left.cols(), right.cols());
    let part = n.div_ceil(MAX_PARTS).max(PART);
    let parts = n.div_ceil(part);
    let out = gpu.output([rows, cols])?;
    let partial = if parts == 1 { out.gpu(OP)?.clone() } else { gpu.scratch(parts * rows * cols)? };
    product_kernel::launch::<R>(
        gpu.client(),
        sum.tile.cube_count(rows, cols, parts),
        sum.tile.cube_dim(),
        left.gpu(OP)?.arg(),
        right.gpu(OP)?.arg(),
        partial.arg(),
        dropout,
        rows,
        rows,
        cols,
        cols,
        n,
        part,
        scale,
        sum,
    );
    if parts > 1 {
        add_parts_kernel::launch::<R>(
            gpu.client(),
            elementwise(rows * cols),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            partial.arg(),
            out.gpu(OP)?.arg(),
            parts,
        );
    }
    Ok(out)
}
