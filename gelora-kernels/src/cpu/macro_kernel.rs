//! The macro kernel: one matrix product on one thread, micro tile by micro tile.
//!
//! The loops are, from the outside in: blocks of the inner dimension, panels of columns of the right factor, and micro
//! tiles of rows of the left factor.

use std::marker::PhantomData;
use std::ops::Range;

use super::math;
use super::micro_kernel::{self, Init, MicroKernel, Tile, TileShape};
use super::packed::Packed;
use super::scratch::Scratch;
use super::view::{View, ViewMut};

/// Steps of the inner dimension in one block. A block of the left factor and the panels beside it fit a core's L2
/// cache.
const K_BLOCK: usize = 512;

/// The left factor: f32 with any strides, or rows of bf16 pairs. A step is one value of the inner dimension, or one
/// pair.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) steps: usize,
    pub(super) row_stride: usize,
    step_stride: usize,
}

impl<'a> Left<'a> {
    pub(super) fn new(a: View<'a>) -> Self {
        Self { data: a.data, rows: a.rows, steps: a.cols, row_stride: a.row_stride, step_stride: a.col_stride }
    }

    /// Dense rows (m, k), rounded to bf16 if `bf16` is set. `rounded` then keeps the rounded values.
    pub(super) fn dense(x: &'a [f32], k: usize, bf16: bool, rounded: &'a mut Option<Scratch>) -> Self {
        let m = x.len() / k;
        if !bf16 {
            return Self::new(View::new(x, m, k));
        }
        let steps = k.div_ceil(2);
        let rounded = rounded.get_or_insert_with(|| {
            let mut rounded = Scratch::new(m * steps);
            math::rows_to_bf16(x, k, bytemuck::cast_slice_mut(&mut rounded));
            rounded
        });
        Self::pairs(rounded, m, k)
    }

    /// Rows of k values, stored as pairs of bf16.
    pub(super) fn pairs(data: &'a [f32], m: usize, k: usize) -> Self {
        let steps = k.div_ceil(2);
        Self { data, rows: m, steps, row_stride: steps, step_stride: 1 }
    }

    /// `rows` rows from row `first` on.
    pub(super) fn slice(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows, ..self }
    }
}

/// The right factor: packed panels, or the rows of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    data: *const f32,
    pub(super) steps: usize,
    n: usize,
    /// Steps of a panel that lie before the first step of this factor.
    skipped_steps: usize,
    /// Steps that a panel holds in all.
    panel_steps: usize,
    /// Distance of two rows; None for packed panels.
    row_stride: Option<usize>,
    bf16: bool,
    borrow: PhantomData<&'a [f32]>,
}

// SAFETY: in effect a shared borrow of f32 values.
unsafe impl Sync for Right<'_> {}
// SAFETY: as above.
unsafe impl Send for Right<'_> {}

impl<'a> Right<'a> {
    /// All steps of a packed factor.
    pub(super) fn packed(p: &'a Packed) -> Self {
        let steps = p.steps();
        Self {
            data: p.as_ptr(),
            steps,
            n: p.cols(),
            skipped_steps: 0,
            panel_steps: steps,
            row_stride: None,
            bf16: p.is_bf16(),
            borrow: PhantomData,
        }
    }

    /// The given steps of a packed factor.
    ///
    /// # Panics
    /// If the factor is not packed or does not have these steps.
    pub(super) fn with_steps(self, steps: Range<usize>) -> Self {
        let inside = steps.start < steps.end && steps.end <= self.panel_steps;
        assert!(self.row_stride.is_none() && inside, "steps of a factor");
        Self { skipped_steps: steps.start, steps: steps.len(), ..self }
    }

    /// A row-major matrix, read in place.
    pub(super) fn rows(b: View<'a>) -> Self {
        Self {
            data: b.data.as_ptr(),
            steps: b.rows,
            n: b.cols,
            skipped_steps: 0,
            panel_steps: b.rows,
            row_stride: Some(b.row_stride),
            bf16: false,
            borrow: PhantomData,
        }
    }

    /// Number of panels of columns.
    pub(super) fn panels(&self, shape: TileShape) -> usize {
        self.n.div_ceil(shape.width())
    }
}

/// The place of a product's first value, and the distance of its rows. [`macro_kernel`] has the contract of the
/// pointer.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) data: *mut f32,
    pub(super) stride: usize,
}

// SAFETY: every thread writes rows or columns of its own, by the contract of `macro_kernel`.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    /// # Panics
    /// If the view does not have this shape.
    pub(super) fn new(dst: &mut ViewMut<'_>, rows: usize, cols: usize) -> Self {
        assert_eq!((dst.rows, dst.cols), (rows, cols), "shape of the destination");
        Self { data: dst.data, stride: dst.stride }
    }

    /// The destination of the rows from `row` on.
    pub(super) fn row(self, row: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride), ..self }
    }
}

/// One product: c = init + scale (left right + low_rank.0 low_rank.1).
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub(super) left: Left<'a>,
    pub(super) right: Right<'a>,
    /// Factors of a second product, whose steps are added after those of the first.
    pub(super) low_rank: Option<(Left<'a>, Right<'a>)>,
    pub(super) init: Init<'a>,
    pub(super) scale: f32,
}

impl<'a> Problem<'a> {
    /// init + scale left right.
    ///
    /// # Panics
    /// If the inner dimensions differ.
    pub(super) fn new(left: Left<'a>, right: Right<'a>, init: Init<'a>, scale: f32) -> Self {
        assert_eq!(left.steps, right.steps, "inner dimensions");
        Self { left, right, low_rank: None, init, scale }
    }

    /// The same for `rows` rows from row `first` on.
    pub(super) fn rows(self, first: usize, rows: usize) -> Self {
        debug_assert!(self.low_rank.is_none(), "rows of a product with a low-rank term");
        Self { left: self.left.slice(first, rows), ..self }
    }

    /// Number of panels of columns.
    pub(super) fn panels(&self, shape: TileShape) -> usize {
        self.right.panels(shape)
    }
}

/// Computes the columns of some panels, on the calling thread.
///
/// # Safety
/// `c` must be valid for writes of `problem.left.rows` rows with the columns of `panels`, and no other thread may
/// access these values until the call returns. A low-rank term must have as many rows and columns as the product, a
/// right factor in packed f32, and a left factor with adjacent steps.
pub(super) unsafe fn macro_kernel(problem: &Problem<'_>, c: Destination, panels: Range<usize>, shape: TileShape) {
    let &Problem { left, right, low_rank, init, scale } = problem;
    let width = shape.width();
    let block = left.steps.div_ceil(left.steps.div_ceil(K_BLOCK));
    // Blocks of the inner dimension: all but the first add to what is in c.
    for first_step in (0..left.steps).step_by(block) {
        let k = block.min(left.steps - first_step);
        let is_last_block = first_step + k == left.steps;
        // Panels of the right factor.
        for panel in panels.clone() {
            let first_col = panel * width;
            let columns = width.min(right.n - first_col);
            let nv = columns.div_ceil(shape.lanes);
            let (b, b_step) = match right.row_stride {
                Some(stride) => (right.data.wrapping_add(first_step * stride + first_col), stride),
                None => {
                    let stride = nv * shape.lanes;
                    let panel_start = panel * width * right.panel_steps;
                    (right.data.wrapping_add(panel_start + (right.skipped_steps + first_step) * stride), stride)
                }
            };
            let masked = right.row_stride.is_some() && !columns.is_multiple_of(shape.lanes);
            let kernel = |mr: usize| -> MicroKernel {
                match right.bf16 {
                    true => micro_kernel::kernel_bf16(mr, nv)
                        .unwrap_or_else(|| unreachable!("packed as bf16 on this machine")),
                    false => micro_kernel::kernel_f32(mr, nv, masked),
                }
            };
            let init = match init {
                _ if first_step > 0 => Init::Accumulate,
                Init::Row(row) => Init::Row(&row[first_col..first_col + columns]),
                other => other,
            };
            let mut tile = Tile {
                k,
                a: std::ptr::null(),
                a_row: left.row_stride,
                a_step: left.step_stride,
                b,
                b_step,
                k2: 0,
                a2: std::ptr::null(),
                a2_row: 0,
                b2: std::ptr::null(),
                b2_step: 0,
                c: std::ptr::null_mut(),
                c_row: c.stride,
                init,
                scale,
                last_lanes: columns - (nv - 1) * shape.lanes,
            };
            // The steps of the low-rank product follow the last steps of the product itself.
            if let Some((inner, up)) = low_rank
                && is_last_block
            {
                tile.k2 = up.steps;
                tile.a2_row = inner.row_stride;
                tile.b2_step = nv * shape.lanes;
                tile.b2 = up.data.wrapping_add(panel * width * up.panel_steps);
            }
            let full = kernel(shape.mr.min(left.rows));
            // Micro tiles of rows.
            for row in (0..left.rows).step_by(shape.mr) {
                let mr = shape.mr.min(left.rows - row);
                tile.a = left.data[row * left.row_stride + first_step * left.step_stride..].as_ptr();
                tile.c = c.data.wrapping_add(row * c.stride + first_col);
                if let Some((inner, _)) = low_rank
                    && tile.k2 > 0
                {
                    tile.a2 = inner.data[row * inner.row_stride..].as_ptr();
                }
                let kernel = if row + shape.mr <= left.rows { full } else { kernel(mr) };
                // SAFETY: the views of the factors were checked against their slices for all rows and columns, packed
                // panels hold `panel_steps` rows of whole vectors, and `c` is valid by this function's contract. The
                // kernel accesses no more than the tile says.
                unsafe { kernel(&tile) };
            }
        }
    }
}
