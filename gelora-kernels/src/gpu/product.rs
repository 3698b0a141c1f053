//! Matrix products, one description for all of them: out = scale * left right + adapter + bias.
//!
//! Accumulation: f32, each output by one unit in ascending order of the shared dimension, the adapter's terms before the
//! base's. A long shared dimension of a small output is split into parts that depend on the sizes alone and are added in
//! order, so results have the same bits in every run.

mod block;
mod matrix;
mod pack;
mod shape;

use std::sync::OnceLock;

use cubecl::prelude::*;
use half::{bf16, f16};

pub use super::tile::Lines;
use super::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, MAX_CUBES, elementwise};
use crate::dropout::Dropout;
use crate::gpu::mask::mask;
use crate::quantised::planes::Packing;
use crate::{DType, Result, Tensor};
use block::{Addend, Block, ExtentLaunch, Plan, Side, Sum, product_kernel};
use matrix::{MatrixExtentLaunch, MatrixPlan};
use pack::{Fill, PARTS, pack};
use shape::{DEPTH, Shape, WIDTH};

/// Cubes that keep a large GPU busy.
const CUBES: usize = 128;
/// Steps of a part, at least, and parts, at most.
const PART: usize = 512;
const MAX_PARTS: usize = 16;
/// Rows of which one unit sums a column.
const SUMMED_ROWS: usize = 256;

/// A matrix and which way it is read.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    tensor: &'a Tensor,
    lines: Lines,
    dropout: Option<Dropout>,
    /// Where its values in bf16 are kept between products, if they are.
    rounded: Option<&'a OnceLock<GpuBuffer>>,
}

/// The rows of a matrix (lines, shared) as lines.
pub fn rows(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, lines: Lines::AreRows, dropout: None, rounded: None }
}

/// The columns of a matrix (shared, lines) as lines.
pub fn columns(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, lines: Lines::AreColumns, dropout: None, rounded: None }
}

impl<'a> Operand<'a> {
    /// The same; what matrix units read of it is kept in `rounded`, where it needs no padding.
    pub fn kept_in(self, rounded: &'a OnceLock<GpuBuffer>) -> Self {
        Self { rounded: Some(rounded), ..self }
    }

    /// The same after dropout, or as it is without.
    pub fn dropped(self, dropout: Option<Dropout>) -> Self {
        Self { dropout, ..self }
    }

    /// Lines, and values of each.
    fn sizes(&self) -> (usize, usize) {
        let (rows, cols) = (self.tensor.rows(), self.tensor.cols());
        if self.lines == Lines::AreRows { (rows, cols) } else { (cols, rows) }
    }

    fn side(&self) -> Side {
        let packing = Packing::of(self.tensor.dtype());
        let vector = if packing.is_none() && self.tensor.cols().is_multiple_of(4) { 4 } else { 1 };
        Side { lines: self.lines, vector, packing, dropped: self.dropout.is_some() }
    }
}

/// scale * mask * left right, with the dropout's mask over the output: what an adapter adds.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// Lines are the output's rows; f32.
    pub left: Operand<'a>,
    /// Lines are the output's columns; f32.
    pub right: Operand<'a>,
    /// What its sums are multiplied by.
    pub scale: f32,
    /// Dropout on what it gives.
    pub dropout: Option<Dropout>,
}

/// A product to compute. The shapes of the tensors must fit: nothing here checks them.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The operator that errors name.
    pub op: &'static str,
    /// Lines are the output's rows; f32.
    pub left: Operand<'a>,
    /// Lines are the output's columns; f32, bf16, f16 or quantised.
    pub right: Operand<'a>,
    /// What the sums are multiplied by.
    pub scale: f32,
    /// What is added. At most one of the operands and the adapter has dropout.
    pub adapter: Option<Adapter<'a>>,
    /// A row that is added to every row, f32.
    pub bias: Option<&'a Tensor>,
    /// Whether factors may be rounded to bf16, if the device has matrix units for them.
    pub bf16: bool,
}

impl<'a> Product<'a> {
    /// left right, and nothing else.
    pub fn new(op: &'static str, left: Operand<'a>, right: Operand<'a>) -> Self {
        Self { op, left, right, scale: 1.0, adapter: None, bias: None, bf16: false }
    }

    /// Computes it.
    pub fn run<R: Backend>(&self, gpu: &Gpu<R>) -> Result<Tensor> {
        let (rows, depth) = self.left.sizes();
        let (cols, _) = self.right.sizes();
        let out = gpu.output([rows, cols])?;
        if let Some(shape) = self.shape_on_matrix_units(gpu) {
            self.launch_on_matrix_units(gpu, out.gpu(self.op)?, shape)?;
            return Ok(out);
        }
        let block = choose(gpu, rows, cols);
        let cubes = rows.div_ceil(block.rows) * cols.div_ceil(block.cols);
        let may_split = self.left.lines == Lines::AreColumns && self.right.lines == Lines::AreColumns;
        let part = if may_split { part(depth, cubes) } else { depth };
        let parts = depth.div_ceil(part);
        let partial = if parts == 1 { out.gpu(self.op)?.clone() } else { gpu.scratch(parts * rows * cols)? };
        match self.right.tensor.dtype() {
            DType::Bf16 => self.launch::<R, bf16>(gpu, &partial, block, part)?,
            DType::F16 => self.launch::<R, f16>(gpu, &partial, block, part)?,
            quantised if quantised.is_quantised() => self.launch::<R, u32>(gpu, &partial, block, part)?,
            _ => self.launch::<R, f32>(gpu, &partial, block, part)?,
        }
        if parts > 1 {
            add_parts(gpu, &partial, out.gpu(self.op)?, parts);
        }
        Ok(out)
    }

    fn launch<R: Backend, W: Numeric>(&self, gpu: &Gpu<R>, out: &GpuBuffer, block: Block, part: usize) -> Result<()> {
        let (rows, depth) = self.left.sizes();
        let (cols, _) = self.right.sizes();
        let (adapter, plan) = (self.adapter_or_unused(), self.plan(block));
        let row_blocks = rows.div_ceil(block.rows).min(MAX_CUBES as usize);
        let count = CubeCount::Static(cols.div_ceil(block.cols) as u32, row_blocks as u32, depth.div_ceil(part) as u32);
        // SAFETY: the kernel reads and writes inside the matrices that the sizes describe, and the callers have checked that
        // the tensors have these sizes.
        unsafe {
            product_kernel::launch_unchecked::<W, R>(
                gpu.client(),
                count,
                CubeDim::new_1d(block.units() as u32),
                self.left.side().vector,
                self.right.side().vector,
                adapter.left.side().vector,
                adapter.right.side().vector,
                plan.vector,
                self.left.tensor.gpu(self.op)?.arg(),
                self.right.tensor.gpu(self.op)?.arg(),
                adapter.left.tensor.gpu(self.op)?.arg(),
                adapter.right.tensor.gpu(self.op)?.arg(),
                self.bias.unwrap_or(self.left.tensor).gpu(self.op)?.arg(),
                out.arg(),
                mask(self.left.dropout.or(self.right.dropout).or(adapter.dropout)),
                ExtentLaunch::new(rows, cols, depth, part, adapter.left.sizes().1),
                self.scale,
                adapter.scale,
                plan,
            );
        }
        Ok(())
    }
}

impl<'a> Product<'a> {
    /// The adapter, or arguments that the settings leave unused but that still need a buffer.
    fn adapter_or_unused(&self) -> Adapter<'a> {
        self.adapter.unwrap_or(Adapter { left: self.left, right: self.left, scale: 1.0, dropout: None })
    }

    fn plan(&self, block: Block) -> Plan {
        let sum = |left: Operand<'_>, right: Operand<'_>| Sum { block, left: left.side(), right: right.side() };
        Plan {
            sum: sum(self.left, self.right),
            adapter: self.adapter.map(|a| Addend { sum: sum(a.left, a.right), dropped: a.dropout.is_some() }),
            biased: self.bias.is_some(),
            vector: if self.right.sizes().0.is_multiple_of(4) { 4 } else { 1 },
        }
    }

    /// The shape of the cubes where bf16 is allowed and there, and no operand has dropout; else none.
    fn shape_on_matrix_units<R: Backend>(&self, gpu: &Gpu<R>) -> Option<Shape> {
        let hardware = &gpu.client().properties().hardware;
        let fits = self.bf16
            && gpu.has_bf16_matrix_units()
            && (hardware.plane_size_min, hardware.plane_size_max) == (32, 32)
            && self.left.lines == Lines::AreRows
            && self.adapter.is_none_or(|a| a.left.lines == Lines::AreRows && a.right.lines == self.right.lines)
            && self.scale == 1.0
            && self.left.dropout.or(self.right.dropout).is_none();
        let (rows, cols) = (self.left.sizes().0, self.right.sizes().0);
        let runs = |shape: &Shape| {
            hardware.max_shared_memory_size >= shape.shared()
                && hardware.max_units_per_cube as usize >= shape.units()
                && rows.div_ceil(shape.rows) <= MAX_CUBES as usize
        };
        fits.then(|| Shape::choose(rows, cols, CUBES, runs)).flatten()
    }

    fn launch_on_matrix_units<R: Backend>(&self, gpu: &Gpu<R>, out: &GpuBuffer, shape: Shape) -> Result<()> {
        let (rows, depth) = self.left.sizes();
        let (cols, _) = self.right.sizes();
        let steps = depth.div_ceil(DEPTH);
        let (left, left_pitch) = (
            pack(gpu, self.left.tensor.gpu(self.op)?, [rows, depth], [rows, steps * DEPTH / WIDTH], 1.0, Fill::Once)?,
            steps * DEPTH / WIDTH,
        );
        let (right, right_pitch) = self.right_in_bf16(gpu, steps)?;
        let (mut adapter_left, mut adapter_right) = (left.clone(), right.clone());
        let (mut adapter_steps, mut adapter_right_pitch) = (0, right_pitch);
        if let Some(adapter) = self.adapter {
            let rank = adapter.left.sizes().1;
            adapter_steps = (PARTS * rank).div_ceil(DEPTH);
            let pitch = adapter_steps * DEPTH / WIDTH;
            let (a, b) = (adapter.left.tensor.gpu(self.op)?, adapter.right.tensor.gpu(self.op)?);
            adapter_left = pack(gpu, a, [rows, rank], [rows, pitch], adapter.scale, Fill::Parts)?;
            (adapter_right, adapter_right_pitch) = match self.right.lines {
                Lines::AreRows => (pack(gpu, b, [cols, rank], [cols, pitch], 1.0, Fill::Beside)?, pitch),
                Lines::AreColumns => {
                    let pitch = cols.div_ceil(WIDTH);
                    (pack(gpu, b, [rank, cols], [adapter_steps * DEPTH, pitch], 1.0, Fill::Below)?, pitch)
                }
            };
        }
        let dropout = self.adapter.and_then(|a| a.dropout);
        let plan = MatrixPlan {
            shape,
            right: self.right.lines,
            adapter: self.adapter.is_some(),
            dropped: dropout.is_some(),
            biased: self.bias.is_some(),
            vector: if cols.is_multiple_of(2) { 2 } else { 1 },
        };
        let count = CubeCount::Static(cols.div_ceil(shape.cols) as u32, rows.div_ceil(shape.rows) as u32, 1);
        let adapter_left_pitch = adapter_steps * DEPTH / WIDTH;
        // SAFETY: lines beyond the operands are clamped, steps beyond them are padding, and outputs beyond are not stored.
        unsafe {
            matrix::matrix_kernel::launch_unchecked::<R>(
                gpu.client(),
                count,
                CubeDim::new_1d(shape.units() as u32),
                WIDTH,
                plan.vector,
                left.arg(),
                right.arg(),
                adapter_left.arg(),
                adapter_right.arg(),
                self.bias.unwrap_or(self.left.tensor).gpu(self.op)?.arg(),
                out.arg(),
                mask(dropout),
                MatrixExtentLaunch::new(
                    rows,
                    cols,
                    steps,
                    adapter_steps,
                    left_pitch,
                    right_pitch,
                    adapter_left_pitch,
                    adapter_right_pitch,
                ),
                plan,
            );
        }
        Ok(())
    }

    /// The right operand in bf16 with its pitch: the weight itself where it is stored so and nothing has to be padded.
    fn right_in_bf16<R: Backend>(&self, gpu: &Gpu<R>, steps: usize) -> Result<(GpuBuffer, usize)> {
        let (rows, cols) = (self.right.tensor.rows(), self.right.tensor.cols());
        let [to_rows, to_vectors] = match self.right.lines {
            Lines::AreRows => [rows, steps * DEPTH / WIDTH],
            Lines::AreColumns => [steps * DEPTH, cols.div_ceil(WIDTH)],
        };
        let right = self.right.tensor.gpu(self.op)?;
        let needs_no_padding = [to_rows, to_vectors * WIDTH] == [rows, cols];
        if right.dtype == DType::Bf16 && needs_no_padding {
            return Ok((right.clone(), to_vectors));
        }
        // A quantised weight is there to be small: its values in bf16 are made anew for each product.
        let kept = self.right.rounded.filter(|_| needs_no_padding && !right.dtype.is_quantised());
        if let Some(rounded) = kept.and_then(OnceLock::get) {
            return Ok((rounded.clone(), to_vectors));
        }
        let rounded = pack(gpu, right, [rows, cols], [to_rows, to_vectors], 1.0, Fill::Once)?;
        Ok((kept.map_or(rounded.clone(), |kept| kept.get_or_init(|| rounded).clone()), to_vectors))
    }
}

/// The block that wastes least on an output of this size, among those that the device can run.
fn choose<R: Backend>(gpu: &Gpu<R>, rows: usize, cols: usize) -> Block {
    let large = Block::LARGE;
    let hardware = &gpu.client().properties().hardware;
    if cols <= Block::FEW_COLS.cols {
        Block::FEW_COLS
    } else if rows <= Block::FEW_ROWS.rows {
        Block::FEW_ROWS
    } else if rows.div_ceil(large.rows) * cols.div_ceil(large.cols) >= CUBES
        && hardware.max_shared_memory_size >= large.shared()
        && hardware.max_units_per_cube as usize >= large.units()
    {
        large
    } else {
        Block::SQUARE
    }
}

/// Steps in each part of a shared dimension that an output of so many cubes sums.
fn part(depth: usize, cubes: usize) -> usize {
    let parts = (2 * CUBES).div_ceil(cubes).clamp(1, MAX_PARTS);
    depth.div_ceil(parts).max(PART).min(depth)
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

fn add_parts<R: Backend>(gpu: &Gpu<R>, parts: &GpuBuffer, out: &GpuBuffer, count: usize) {
    let len = out.len();
    add_parts_kernel::launch::<R>(
        gpu.client(),
        elementwise(len),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        parts.arg(),
        out.arg(),
        count,
    );
}

/// sums (parts, cols): each part of `SUMMED_ROWS` rows, or what is left of them.
#[cube(launch)]
fn column_sums_kernel(x: &Array<f32>, sums: &mut Array<f32>, rows: usize, cols: usize, parts: usize) {
    let part = ABSOLUTE_POS / cols;
    if part < parts {
        let from = part * comptime!(SUMMED_ROWS);
        let mut sum = 0.0f32;
        for row in from..(from + comptime!(SUMMED_ROWS)).min(rows) {
            sum += x[row * cols + ABSOLUTE_POS % cols];
        }
        sums[ABSOLUTE_POS] = sum;
    }
}

/// The sums of a matrix's columns (cols): in ascending order in parts of 256 rows, and the parts in order.
pub fn column_sums<R: Backend>(gpu: &Gpu<R>, op: &'static str, x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (x.rows(), x.cols());
    let parts = rows.div_ceil(SUMMED_ROWS);
    let out = gpu.output([cols])?;
    let partial = if parts == 1 { out.gpu(op)?.clone() } else { gpu.scratch(parts * cols)? };
    column_sums_kernel::launch::<R>(
        gpu.client(),
        elementwise(parts * cols),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(op)?.arg(),
        partial.arg(),
        rows,
        cols,
        parts,
    );
    if parts > 1 {
        add_parts(gpu, &partial, out.gpu(op)?, parts);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_of_small_outputs_are_split() {
        assert_eq!((part(300, 1), part(1030, 1), part(100_000, 1)), (300, PART, 6250));
        assert_eq!(part(100_000, 2 * CUBES), 100_000);
    }
}
