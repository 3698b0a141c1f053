//! Matrix products, described in one way for all operators: out = scale left right + adapter + bias.
//!
//! Accumulation: f32. One unit sums each output in ascending order of the shared dimension, the adapter's terms before
//! the base's. A long shared dimension of a small output is split into parts, which depend on the sizes alone and are
//! added in order, so results have the same bits in every run.

mod block;
mod block_kernel;
mod matrix;
mod pack;
mod parts;
mod shape;

use std::sync::OnceLock;

use cubecl::prelude::*;
use half::{bf16, f16};

pub(crate) use super::tile::Layout;
use super::{Backend, Gpu, GpuBuffer, MAX_CUBES};
use crate::dropout::Dropout;
use crate::gpu::mask::mask;
use crate::quantized::planes::Packing;
use crate::{DType, Error, Result, Tensor};
use block::{Addend, Block, ExtentLaunch, Plan, Side, Sum};
use block_kernel::product_kernel;
use matrix::{MatrixExtentLaunch, MatrixPlan};
use pack::{Fill, PARTS, pack};
pub(crate) use parts::column_sums;
use parts::{add_parts, part};
use shape::{DEPTH, Shape, WIDTH};

/// Number of cubes that keeps a large GPU busy.
const CUBES: usize = 128;

/// A matrix as an operand. Its lines, rows or columns, run along the shared dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    tensor: &'a Tensor,
    layout: Layout,
    dropout: Option<Dropout>,
    /// The place that keeps its values in bf16 between products, if they are kept.
    rounded: Option<&'a OnceLock<GpuBuffer>>,
}

/// A matrix (lines, shared) whose rows are the lines.
pub(crate) fn rows(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, layout: Layout::Rows, dropout: None, rounded: None }
}

/// A matrix (shared, lines) whose columns are the lines.
pub(crate) fn columns(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, layout: Layout::Columns, dropout: None, rounded: None }
}

impl<'a> Operand<'a> {
    /// The same operand. Its values in bf16 for matrix units are kept in `rounded`, unless they need padding.
    pub(crate) fn kept_in(self, rounded: &'a OnceLock<GpuBuffer>) -> Self {
        Self { rounded: Some(rounded), ..self }
    }

    /// The same operand with dropout; None leaves it without.
    pub(crate) fn dropped(self, dropout: Option<Dropout>) -> Self {
        Self { dropout, ..self }
    }

    /// (number of lines, values of a line).
    fn sizes(&self) -> (usize, usize) {
        let (rows, cols) = (self.tensor.rows(), self.tensor.cols());
        if self.layout == Layout::Rows { (rows, cols) } else { (cols, rows) }
    }

    fn side(&self) -> Side {
        let packing = Packing::of(self.tensor.dtype());
        let vector = if packing.is_none() && self.tensor.cols().is_multiple_of(4) { 4 } else { 1 };
        Side { layout: self.layout, vector, packing, dropped: self.dropout.is_some() }
    }
}

/// The term of an adapter: scale mask left right, with a dropout mask over the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adapter<'a> {
    /// The operand whose lines are the output's rows; f32.
    pub(crate) left: Operand<'a>,
    /// The operand whose lines are the output's columns; f32.
    pub(crate) right: Operand<'a>,
    /// The factor of its sums.
    pub(crate) scale: f32,
    /// Dropout of the term.
    pub(crate) dropout: Option<Dropout>,
}

/// A product to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    /// The operator, for errors.
    pub(crate) op: &'static str,
    /// The operand whose lines are the output's rows; f32.
    pub(crate) left: Operand<'a>,
    /// The operand whose lines are the output's columns; f32, bf16, f16 or quantized.
    pub(crate) right: Operand<'a>,
    /// The factor of the sums.
    pub(crate) scale: f32,
    /// The adapter's term. At most one of the operands and the adapter has dropout.
    pub(crate) adapter: Option<Adapter<'a>>,
    /// The bias, a row that is added to every row; f32.
    pub(crate) bias: Option<&'a Tensor>,
    /// Whether factors may be rounded to bf16 for matrix units.
    pub(crate) bf16: bool,
}

impl<'a> Product<'a> {
    /// The product left right alone.
    pub(crate) fn new(op: &'static str, left: Operand<'a>, right: Operand<'a>) -> Self {
        Self { op, left, right, scale: 1.0, adapter: None, bias: None, bf16: false }
    }

    /// Computes the product.
    ///
    /// # Errors
    /// If the operands do not fit together, or the device is out of memory.
    pub(crate) fn run<R: Backend>(&self, gpu: &Gpu<R>) -> Result<Tensor> {
        self.check()?;
        let (rows, depth) = self.left.sizes();
        let (cols, _) = self.right.sizes();
        let out = gpu.output([rows, cols])?;
        if let Some(shape) = self.shape_on_matrix_units(gpu) {
            self.launch_on_matrix_units(gpu, out.gpu(self.op)?, shape)?;
            return Ok(out);
        }
        let block = choose(gpu, rows, cols);
        let cubes = rows.div_ceil(block.rows) * cols.div_ceil(block.cols);
        let may_split = self.left.layout == Layout::Columns && self.right.layout == Layout::Columns;
        let part = if may_split { part(depth, cubes) } else { depth };
        let parts = depth.div_ceil(part);
        let partial = if parts == 1 { out.gpu(self.op)?.clone() } else { gpu.scratch(parts * rows * cols)? };
        match self.right.tensor.dtype() {
            DType::Bf16 => self.launch::<R, bf16>(gpu, &partial, block, part)?,
            DType::F16 => self.launch::<R, f16>(gpu, &partial, block, part)?,
            quantized if quantized.is_quantized() => self.launch::<R, u32>(gpu, &partial, block, part)?,
            _ => self.launch::<R, f32>(gpu, &partial, block, part)?,
        }
        if parts > 1 {
            add_parts(gpu, &partial, out.gpu(self.op)?, parts);
        }
        Ok(out)
    }

    /// Checks what the kernels rely on: sizes and types of the operands, and at most one dropout.
    fn check(&self) -> Result<()> {
        let (rows, depth) = self.left.sizes();
        let (cols, right_depth) = self.right.sizes();
        let fits = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(Error::Value { op: self.op, message: format!("operands of a product: {what}") }),
        };
        fits(depth == right_depth, "the shared dimensions differ")?;
        fits(self.left.tensor.dtype() == DType::F32, "the left operand is not f32")?;
        if let Some(bias) = self.bias {
            fits(bias.len() == cols && bias.dtype() == DType::F32, "the bias is not one f32 value for each column")?;
        }
        if let Some(Adapter { left, right, .. }) = self.adapter {
            let sizes = [left.sizes().0, right.sizes().0, left.sizes().1] == [rows, cols, right.sizes().1];
            fits(sizes, "the adapter has other sizes")?;
            let types = [left, right].iter().all(|operand| operand.tensor.dtype() == DType::F32);
            fits(types, "the adapter is not f32")?;
        }
        let adapter = self.adapter.and_then(|adapter| adapter.dropout);
        let dropouts = [self.left.dropout, self.right.dropout, adapter].into_iter().flatten().count();
        fits(dropouts <= 1, "more than one has dropout")
    }

    fn launch<R: Backend, W: Numeric>(&self, gpu: &Gpu<R>, out: &GpuBuffer, block: Block, part: usize) -> Result<()> {
        let (rows, depth) = self.left.sizes();
        let (cols, _) = self.right.sizes();
        let (adapter, plan) = (self.adapter_or_unused(), self.plan(block));
        let row_blocks = rows.div_ceil(block.rows).min(MAX_CUBES as usize);
        let count = CubeCount::Static(cols.div_ceil(block.cols) as u32, row_blocks as u32, depth.div_ceil(part) as u32);
        // SAFETY: the kernel reads and writes inside the matrices that the sizes describe, and `check` has compared
        // these with the tensors.
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
    /// The adapter, or operands that stand in for it: kernels without an adapter still need buffers.
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

    /// The shape of the cubes on matrix units. None if bf16 is not allowed, the device has no matrix units, or an
    /// operand has dropout.
    fn shape_on_matrix_units<R: Backend>(&self, gpu: &Gpu<R>) -> Option<Shape> {
        let hardware = &gpu.client().properties().hardware;
        let fits = self.bf16
            && gpu.has_bf16_matrix_units()
            && (hardware.plane_size_min, hardware.plane_size_max) == (32, 32)
            && self.left.layout == Layout::Rows
            && self.adapter.is_none_or(|a| a.left.layout == Layout::Rows && a.right.layout == self.right.layout)
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
            (adapter_right, adapter_right_pitch) = match self.right.layout {
                Layout::Rows => (pack(gpu, b, [cols, rank], [cols, pitch], 1.0, Fill::Beside)?, pitch),
                Layout::Columns => {
                    let pitch = cols.div_ceil(WIDTH);
                    (pack(gpu, b, [rank, cols], [adapter_steps * DEPTH, pitch], 1.0, Fill::Below)?, pitch)
                }
            };
        }
        let dropout = self.adapter.and_then(|a| a.dropout);
        let plan = MatrixPlan {
            shape,
            right: self.right.layout,
            adapter: self.adapter.is_some(),
            dropped: dropout.is_some(),
            biased: self.bias.is_some(),
            vector: if cols.is_multiple_of(2) { 2 } else { 1 },
        };
        let count = CubeCount::Static(cols.div_ceil(shape.cols) as u32, rows.div_ceil(shape.rows) as u32, 1);
        let adapter_left_pitch = adapter_steps * DEPTH / WIDTH;
        // SAFETY: lines beyond the operands are clamped, steps beyond them are padding, and outputs beyond are not
        // stored.
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

    /// The right operand in bf16, and its pitch. It is the weight itself if that is stored in bf16 and needs no
    /// padding.
    fn right_in_bf16<R: Backend>(&self, gpu: &Gpu<R>, steps: usize) -> Result<(GpuBuffer, usize)> {
        let (rows, cols) = (self.right.tensor.rows(), self.right.tensor.cols());
        let [to_rows, to_vectors] = match self.right.layout {
            Layout::Rows => [rows, steps * DEPTH / WIDTH],
            Layout::Columns => [steps * DEPTH, cols.div_ceil(WIDTH)],
        };
        let right = self.right.tensor.gpu(self.op)?;
        let needs_no_padding = [to_rows, to_vectors * WIDTH] == [rows, cols];
        if right.dtype == DType::Bf16 && needs_no_padding {
            return Ok((right.clone(), to_vectors));
        }
        // A quantized weight saves memory, so its values in bf16 are made anew for each product.
        let kept = self.right.rounded.filter(|_| needs_no_padding && !right.dtype.is_quantized());
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
