//! One product on one thread: tiles of a block of rows, panel by panel.

use std::ops::Range;

use super::gemm::Onto;
use super::math;
use super::packed::Packed;
use super::scratch::Scratch;
use super::tile::{self, Kernel, Shape, Start, Tile};
use super::view::{View, ViewMut};

/// Rows and pairs of rows of the right factor that one sweep over the panels reads: with a block of the left factor they fit
/// a core's L2 cache.
const K_BLOCK: usize = 512;

/// The left factor: f32 of any strides, or rows of bf16 pairs.
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

    /// Dense rows (m, k), rounded to bf16 if asked for; `rounded` then keeps them.
    pub(super) fn of(x: &'a [f32], k: usize, bf16: bool, rounded: &'a mut Option<Scratch>) -> Self {
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

    /// Rows of k values as pairs of bf16.
    pub(super) fn pairs(data: &'a [f32], m: usize, k: usize) -> Self {
        let steps = k.div_ceil(2);
        Self { data, rows: m, steps, row_stride: steps, step_stride: 1 }
    }

    pub(super) fn slice(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows, ..self }
    }
}

/// The right factor: panels, or the rows of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Right {
    data: *const f32,
    pub(super) steps: usize,
    n: usize,
    /// Steps of a panel before the first and in all.
    before: usize,
    of: usize,
    /// Rows apart, if it is not in panels.
    row_stride: Option<usize>,
    bf16: bool,
}

// SAFETY: a shared borrow of numbers, in effect.
unsafe impl Sync for Right {}

impl Right {
    pub(super) fn packed(p: &Packed) -> Self {
        let steps = p.steps();
        Self { data: p.as_ptr(), steps, n: p.cols(), before: 0, of: steps, row_stride: None, bf16: p.is_bf16() }
    }

    /// Some steps of a factor in panels.
    pub(super) fn with_steps(self, steps: Range<usize>) -> Self {
        assert!(self.row_stride.is_none() && steps.start < steps.end && steps.end <= self.of, "steps of a factor");
        Self { before: steps.start, steps: steps.len(), ..self }
    }

    pub(super) fn rows(b: View<'_>) -> Self {
        let (steps, row_stride) = (b.rows, Some(b.row_stride));
        Self { data: b.data.as_ptr(), steps, n: b.cols, before: 0, of: steps, row_stride, bf16: false }
    }

    pub(super) fn panels(&self, shape: Shape) -> usize {
        self.n.div_ceil(shape.width())
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) data: *mut f32,
    pub(super) stride: usize,
}

// SAFETY: threads write to rows or columns of their own.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    pub(super) fn new(dst: ViewMut<'_>, rows: usize, cols: usize) -> Self {
        assert_eq!((dst.rows, dst.cols), (rows, cols), "shape of the destination");
        Self { data: dst.data, stride: dst.stride }
    }

    pub(super) fn row(self, row: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride), ..self }
    }
}

/// The product for some panels of columns, on the calling thread.
#[allow(clippy::too_many_arguments)] // all of one product
pub(super) fn sweep(
    left: Left<'_>,
    right: &Right,
    second: Option<&(Left<'_>, Right)>,
    c: Destination,
    onto: Onto<'_>,
    scale: f32,
    panels: Range<usize>,
    shape: Shape,
) {
    let width = shape.width();
    let blocks = left.steps.div_ceil(K_BLOCK);
    let block = left.steps.div_ceil(blocks);
    for from in (0..left.steps).step_by(block) {
        let k = block.min(left.steps - from);
        let is_last = from + k == left.steps;
        for panel in panels.clone() {
            let first = panel * width;
            let columns = width.min(right.n - first);
            let nv = columns.div_ceil(shape.lanes);
            let (b, b_k) = match right.row_stride {
                Some(stride) => (right.data.wrapping_add(from * stride + first), stride),
                None => {
                    let stride = nv * shape.lanes;
                    (right.data.wrapping_add(panel * width * right.of + (right.before + from) * stride), stride)
                }
            };
            let masked = right.row_stride.is_some() && !columns.is_multiple_of(shape.lanes);
            let kernel = |mr: usize| -> Kernel {
                match right.bf16 {
                    true => tile::kernel_bf16(mr, nv).unwrap_or_else(|| unreachable!("packed as bf16 on this machine")),
                    false => tile::kernel_f32(mr, nv, masked),
                }
            };
            let start = match onto {
                _ if from > 0 => Start::Accumulate,
                Onto::Nothing => Start::Zero,
                Onto::Destination => Start::Accumulate,
                Onto::Row(row) => Start::Row(row[first..first + columns].as_ptr()),
            };
            let mut t = Tile {
                k,
                a: std::ptr::null(),
                a_row: left.row_stride,
                a_k: left.step_stride,
                b,
                b_k,
                k2: 0,
                a2: std::ptr::null(),
                a2_row: 0,
                b2: std::ptr::null(),
                b2_k: 0,
                c: std::ptr::null_mut(),
                c_row: c.stride,
                start,
                scale,
                last: columns - (nv - 1) * shape.lanes,
            };
            if let Some((inner, up)) = second
                && is_last
            {
                t.k2 = up.steps;
                t.a2_row = inner.row_stride;
                t.b2_k = nv * shape.lanes;
                t.b2 = up.data.wrapping_add(panel * width * up.of);
            }
            let full = kernel(shape.mr.min(left.rows));
            for row in (0..left.rows).step_by(shape.mr) {
                let mr = shape.mr.min(left.rows - row);
                t.a = left.data[row * left.row_stride + from * left.step_stride..].as_ptr();
                t.c = c.data.wrapping_add(row * c.stride + first);
                if let Some((inner, _)) = second
                    && t.k2 > 0
                {
                    t.a2 = inner.data[row * inner.row_stride..].as_ptr();
                }
                let kernel = if row + shape.mr <= left.rows { full } else { kernel(mr) };
                // SAFETY: `View` and `Destination` were checked against their slices for all rows and columns, panels
                // hold `steps` rows of whole vectors, and the kernel reads no more of them than the tile says.
                unsafe { kernel(&t) };
            }
        }
    }
}
