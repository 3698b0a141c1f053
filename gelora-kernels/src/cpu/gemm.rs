//! Matrix products on the [kernel](super::tile).

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::packed::Packed;
use super::scratch::Scratch;
use super::tile::{self, Kernel, Start, Tile};
use super::{Level, for_row_blocks, level, math, tile::Shape};

/// A read-only matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// As [`View::strided`].
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows begin `row_stride` apart.
    ///
    /// # Panics
    /// If it is empty or the last element would be outside the slice.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && (rows - 1) * row_stride + cols <= data.len(), "view outside its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving data.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from one column to the next.
    pub(super) fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Values from one row to the next.
    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The values of a column, where they stand one after the other.
    pub(super) fn column(&self, j: usize) -> &'a [f32] {
        debug_assert_eq!(self.row_stride, 1);
        &self.data[j * self.col_stride..][..self.rows]
    }

    #[inline(always)]
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// A block of a matrix that may be written: `rows` rows of `cols` values, the rows `stride` apart.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: an exclusive borrow of numbers, in effect.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// As [`ViewMut::strided`].
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows begin `stride` apart.
    ///
    /// # Panics
    /// If it is empty or the last element would be outside the slice.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && stride >= cols, "empty or overlapping rows");
        assert!((rows - 1) * stride + cols <= data.len(), "destination outside its slice");
        Self { data: data.as_mut_ptr(), rows, cols, stride, of: PhantomData }
    }

    /// Blocks of `width` columns side by side.
    ///
    /// # Panics
    /// If `width` does not divide the columns.
    pub fn columns(self, width: usize) -> impl Iterator<Item = ViewMut<'a>> {
        assert!(width > 0 && self.cols.is_multiple_of(width), "width of a block");
        (0..self.cols / width).map(move |i| {
            let data = self.data.wrapping_add(i * width);
            Self { data, rows: self.rows, cols: width, stride: self.stride, of: PhantomData }
        })
    }

    /// Some of the rows, for as long as self is not used.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> ViewMut<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows of a view");
        let data = self.data.wrapping_add(rows.start * self.stride);
        ViewMut { data, rows: rows.len(), cols: self.cols, stride: self.stride, of: PhantomData }
    }

    /// One row.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row of a view");
        // SAFETY: the constructor checked that the row is inside the borrowed slice, whose part this view alone may reach.
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(i * self.stride), self.cols) }
    }
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Onto<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// The destination's values.
    Destination,
    /// The same row (a bias) for every row of the destination.
    Row(&'a [f32]),
}

/// A low-rank product that is computed with the base product, its factors being r more columns and rows of the base's.
pub struct Rider<'a> {
    /// (K, r): inner = x down.
    pub down: &'a Packed,
    /// (r, N) in f32: y += inner up.
    pub up: &'a Packed,
    /// (M, r): written.
    pub inner: &'a mut [f32],
    /// What x is put through before `down`: (index of the first value, x, result).
    pub mask: Option<&'a (dyn Fn(usize, &[f32], &mut [f32]) + Sync)>,
}

/// Rows and pairs of rows of the right factor that one sweep over the panels reads: with a block of the left factor they fit
/// a core's L2 cache.
const K_BLOCK: usize = 512;

/// Rows that a task works on at least and at most, in tiles.
const TASK_TILES: (usize, usize) = (3, 16);

/// `dst = onto + scale a b` with all threads.
///
/// # Panics
/// If the shapes do not fit together.
pub fn gemm(dst: ViewMut<'_>, onto: Onto<'_>, scale: f32, a: View<'_>, b: View<'_>) {
    // A product this small is done before other threads wake.
    if a.rows * a.cols * b.cols < 64 * 64 * 64 || rayon::current_num_threads() == 1 {
        return gemm_serial(dst, onto, scale, a, b);
    }
    let shape = tile::shape();
    let packed;
    let right = if b.col_stride == 1 && a.rows <= 8 * shape.mr {
        Right::rows(b)
    } else {
        packed = Packed::f32(b);
        Right::packed(&packed)
    };
    let c = Destination::new(dst, a.rows, b.cols);
    parallel(Left::new(a), &right, c, onto, scale, shape);
}

/// [`gemm`] on the calling thread alone.
///
/// # Panics
/// If the shapes do not fit together.
pub fn gemm_serial(dst: ViewMut<'_>, onto: Onto<'_>, scale: f32, a: View<'_>, b: View<'_>) {
    let shape = tile::shape();
    let packed;
    let right = if b.col_stride == 1 && (a.rows <= 4 * shape.mr || b.cols <= shape.width()) {
        Right::rows(b)
    } else {
        packed = Packed::f32(b);
        Right::packed(&packed)
    };
    let c = Destination::new(dst, a.rows, b.cols);
    assert_eq!(a.cols, b.rows, "inner dimensions");
    sweep(Left::new(a), &right, None, c, onto, scale, 0..right.panels(shape), shape);
}

/// [`gemm_serial`] with a right factor in f32 that is packed already.
///
/// # Panics
/// If the shapes do not fit together, or the right factor is in bf16.
pub fn gemm_packed(dst: ViewMut<'_>, onto: Onto<'_>, scale: f32, a: View<'_>, b: &Packed) {
    let (shape, right) = (tile::shape(), Right::packed(b));
    assert!(!right.bf16 && a.cols == b.rows(), "factors in f32 of one inner dimension");
    let c = Destination::new(dst, a.rows, right.n);
    sweep(Left::new(a), &right, None, c, onto, scale, 0..right.panels(shape), shape);
}

/// `y = onto + x w (+ mask(x) down up)`, x (M, K) f32, w (K, N), y (M, N), with all threads. In bf16, x is rounded to bf16 too and
/// sums are in f32.
///
/// # Panics
/// If the shapes do not fit together.
pub fn product(y: &mut [f32], onto: Onto<'_>, x: &[f32], w: &Packed, rider: Option<Rider<'_>>) {
    let (k, n) = (w.rows(), w.cols());
    let m = x.len() / k;
    assert!(m * k == x.len() && m * n == y.len(), "shapes of x and y");
    let shape = tile::shape();
    let threads = rayon::current_num_threads();
    let right = Right::packed(w);
    let small = m * k * n < 64 * 64 * 64 || threads == 1;
    let rows = if small { m } else { task_rows(m, threads, shape) };
    let (down, up, inner, mask) = match rider {
        Some(r) => {
            assert_eq!((r.down.rows(), r.up.rows(), r.up.cols()), (k, r.down.cols(), n), "shapes of the rider");
            assert_eq!(r.down.is_bf16(), w.is_bf16(), "types of the rider");
            assert!(r.inner.len() == m * r.down.cols() && !r.up.is_bf16(), "the rider's inner product");
            (Some(r.down), Some(r.up), r.inner, r.mask)
        }
        None => (None, None, &mut [][..], None),
    };
    let r = down.map_or(0, Packed::cols);
    // Few rows: all threads share them and split the columns.
    let wide = !small && m < 2 * shape.mr * threads;
    let task = |first: usize, x: &[f32], y: &mut [f32], inner: &mut [f32]| {
        let m = x.len() / k;
        let (mut rounded, mut dropped, mut rounded_dropped) = (None, None, None);
        let left = Left::of(x, k, w.is_bf16(), &mut rounded);
        if let Some(down) = down {
            let source = match mask {
                None => left,
                Some(mask) => {
                    let dropped = dropped.insert(Scratch::new(x.len()));
                    mask(first * k, x, dropped);
                    Left::of(dropped, k, down.is_bf16(), &mut rounded_dropped)
                }
            };
            let (right, c) = (Right::packed(down), Destination::new(ViewMut::new(inner, m, r), m, r));
            sweep(source, &right, None, c, Onto::Nothing, 1.0, 0..right.panels(shape), shape);
        }
        let second = up.map(|up| (Left::new(View::new(inner, m, r)), Right::packed(up)));
        let c = Destination::new(ViewMut::new(y, m, n), m, n);
        if wide {
            split_columns(left, &right, second.as_ref(), c, onto, 1.0, shape);
        } else {
            sweep(left, &right, second.as_ref(), c, onto, 1.0, 0..right.panels(shape), shape);
        }
    };
    if wide || rows >= m {
        return task(0, x, y, inner);
    }
    let parts = x.par_chunks(rows * k).zip(y.par_chunks_mut(rows * n)).enumerate();
    if r == 0 {
        parts.for_each(|(i, (x, y))| task(i * rows, x, y, &mut []));
    } else {
        parts.zip(inner.par_chunks_mut(rows * r)).for_each(|((i, (x, y)), inner)| task(i * rows, x, y, inner));
    }
}

/// The rows of a left factor, laid out for blocks of products with a right one.
pub struct Rows<'a> {
    x: &'a [f32],
    k: usize,
    rounded: Option<Scratch>,
}

impl<'a> Rows<'a> {
    /// Dense rows of k values; in bf16 if asked for and the machine has its products.
    ///
    /// # Panics
    /// If the values are no whole rows.
    pub fn new(x: &'a [f32], k: usize, bf16: bool) -> Self {
        assert!(!x.is_empty() && x.len().is_multiple_of(k), "whole rows");
        let rounded = (bf16 && level() == Level::Avx512Bf16).then(|| {
            let steps = k.div_ceil(2);
            let mut rounded = Scratch::new(x.len() / k * steps);
            for_row_blocks(&mut rounded, steps, |first, rounded| {
                let x = &x[first * k..][..rounded.len() / steps * k];
                math::rows_to_bf16(x, k, bytemuck::cast_slice_mut(rounded));
            });
            rounded
        });
        Self { x, k, rounded }
    }

    /// The rows as the columns of a right factor.
    pub fn as_columns(&self) -> Packed {
        let left = self.left();
        Packed::words(
            View::strided(left.data, left.rows, left.steps, left.row_stride).t(),
            self.k,
            self.rounded.is_some(),
        )
    }

    fn left(&self) -> Left<'_> {
        match &self.rounded {
            Some(rounded) => Left::pairs(rounded, self.x.len() / self.k, self.k),
            None => Left::new(View::new(self.x, self.x.len() / self.k, self.k)),
        }
    }
}

/// `dst = scale x[rows] right[.., columns]` on the calling thread; the columns begin at a multiple of [`panel_width`].
///
/// # Panics
/// If the shapes do not fit together.
pub fn block(dst: ViewMut<'_>, scale: f32, x: &Rows<'_>, rows: Range<usize>, right: &Packed, columns: Range<usize>) {
    let shape = tile::shape();
    assert!(columns.start.is_multiple_of(shape.width()) && columns.end <= right.cols(), "columns of a block");
    assert_eq!((x.k, x.rounded.is_some()), (right.rows(), right.is_bf16()), "factors of one layout");
    let c = Destination::new(dst, rows.len(), columns.len());
    let panels = columns.start / shape.width()..columns.end.div_ceil(shape.width());
    let whole = columns.end == right.cols() || columns.end.is_multiple_of(shape.width());
    assert!(whole, "columns of a block end with a panel");
    let c = Destination { data: c.data.wrapping_sub(columns.start), ..c };
    let left = x.left().slice(rows.start, rows.len());
    sweep(left, &Right::packed(right), None, c, Onto::Nothing, scale, panels, shape);
}

/// Columns of a panel of a [`Packed`] factor.
pub fn panel_width() -> usize {
    tile::shape().width()
}

/// Rows of a task, so that every thread has several.
fn task_rows(m: usize, threads: usize, shape: Shape) -> usize {
    m.div_ceil(4 * threads).next_multiple_of(shape.mr).clamp(TASK_TILES.0 * shape.mr, TASK_TILES.1 * shape.mr)
}

/// The left factor: f32 of any strides, or rows of bf16 pairs.
#[derive(Clone, Copy)]
struct Left<'a> {
    data: &'a [f32],
    rows: usize,
    steps: usize,
    row_stride: usize,
    step_stride: usize,
}

impl<'a> Left<'a> {
    fn new(a: View<'a>) -> Self {
        Self { data: a.data, rows: a.rows, steps: a.cols, row_stride: a.row_stride, step_stride: a.col_stride }
    }

    /// Dense rows (m, k), rounded to bf16 if asked for; `rounded` then keeps them.
    fn of(x: &'a [f32], k: usize, bf16: bool, rounded: &'a mut Option<Scratch>) -> Self {
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
    fn pairs(data: &'a [f32], m: usize, k: usize) -> Self {
        let steps = k.div_ceil(2);
        Self { data, rows: m, steps, row_stride: steps, step_stride: 1 }
    }

    fn slice(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows, ..self }
    }
}

/// The right factor: panels, or the rows of a row-major matrix.
#[derive(Clone, Copy)]
struct Right {
    data: *const f32,
    steps: usize,
    n: usize,
    /// Rows apart, if it is not in panels.
    row_stride: Option<usize>,
    bf16: bool,
}

// SAFETY: a shared borrow of numbers, in effect.
unsafe impl Sync for Right {}

impl Right {
    fn packed(p: &Packed) -> Self {
        Self { data: p.as_ptr(), steps: p.steps(), n: p.cols(), row_stride: None, bf16: p.is_bf16() }
    }

    fn rows(b: View<'_>) -> Self {
        Self { data: b.data.as_ptr(), steps: b.rows, n: b.cols, row_stride: Some(b.row_stride), bf16: false }
    }

    fn panels(&self, shape: Shape) -> usize {
        self.n.div_ceil(shape.width())
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Destination {
    data: *mut f32,
    stride: usize,
}

// SAFETY: threads write to rows or columns of their own.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    fn new(dst: ViewMut<'_>, rows: usize, cols: usize) -> Self {
        assert_eq!((dst.rows, dst.cols), (rows, cols), "shape of the destination");
        Self { data: dst.data, stride: dst.stride }
    }

    fn from_row(self, row: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride), ..self }
    }
}

/// Tasks of rows, or of columns where there are few rows.
fn parallel(left: Left<'_>, right: &Right, c: Destination, onto: Onto<'_>, scale: f32, shape: Shape) {
    assert_eq!(left.steps, right.steps, "inner dimensions");
    let threads = rayon::current_num_threads();
    if left.rows < 8 * shape.mr * threads {
        return split_columns(left, right, None, c, onto, scale, shape);
    }
    let rows = task_rows(left.rows, threads, shape);
    (0..left.rows.div_ceil(rows)).into_par_iter().for_each(|i| {
        let left = left.slice(i * rows, rows.min(left.rows - i * rows));
        sweep(left, right, None, c.from_row(i * rows), onto, scale, 0..right.panels(shape), shape);
    });
}

fn split_columns(
    left: Left<'_>,
    right: &Right,
    second: Option<&(Left<'_>, Right)>,
    c: Destination,
    onto: Onto<'_>,
    scale: f32,
    shape: Shape,
) {
    let panels = right.panels(shape);
    let each = panels.div_ceil(4 * rayon::current_num_threads()).max(1);
    (0..panels.div_ceil(each)).into_par_iter().for_each(|i| {
        sweep(left, right, second, c, onto, scale, i * each..panels.min((i + 1) * each), shape);
    });
}

/// The product for some panels of columns, on the calling thread.
#[allow(clippy::too_many_arguments)] // all of one product
fn sweep(
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
                    (right.data.wrapping_add(panel * width * right.steps + from * stride), stride)
                }
            };
            let masked = right.row_stride.is_some() && columns % shape.lanes != 0;
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
                t.b2 = up.data.wrapping_add(panel * width * up.steps);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut s = Stream::new(seed);
        (0..n).map(|_| s.normal() as f32).collect()
    }

    #[test]
    fn strides_and_transposes() {
        // a (2, 3) inside rows of 4; b = I (3, 3) transposed.
        let a = [1.0, 2.0, 3.0, -1.0, 4.0, 5.0, 6.0, -1.0];
        let b = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let mut dst = [10.0; 2 * 5];
        gemm(
            ViewMut::strided(&mut dst, 2, 3, 5),
            Onto::Destination,
            2.0,
            View::strided(&a, 2, 3, 4),
            View::new(&b, 3, 3).t(),
        );
        assert_eq!(dst, [12.0, 14.0, 18.0, 10.0, 10.0, 18.0, 20.0, 30.0, 10.0, 10.0]);
        let mut ata = [f32::NAN; 9];
        gemm_serial(
            ViewMut::new(&mut ata, 3, 3),
            Onto::Nothing,
            1.0,
            View::strided(&a, 2, 3, 4).t(),
            View::strided(&a, 2, 3, 4),
        );
        assert_eq!(ata, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }

    /// Every edge of a tile, both factors in both orders, serial and not, against sums in f64.
    #[test]
    fn all_edges() {
        for (m, k, n) in [(1, 1, 1), (7, 5, 15), (8, 16, 48), (9, 17, 49), (67, 33, 97), (3, 1030, 130), (130, 70, 5)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let (mut at, mut bt) = (vec![0.0; m * k], vec![0.0; k * n]);
            (0..m * k).for_each(|i| at[i % k * m + i / k] = a[i]);
            (0..k * n).for_each(|i| bt[i % n * k + i / n] = b[i]);
            let want: Vec<f64> = (0..m * n)
                .map(|i| (0..k).map(|c| f64::from(a[i / n * k + c]) * f64::from(b[c * n + i % n])).sum())
                .collect();
            for a in [View::new(&a, m, k), View::new(&at, k, m).t()] {
                for b in [View::new(&b, k, n), View::new(&bt, n, k).t()] {
                    let (mut c, mut d) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
                    gemm(ViewMut::new(&mut c, m, n), Onto::Nothing, 1.0, a, b);
                    gemm_serial(ViewMut::new(&mut d, m, n), Onto::Nothing, 1.0, a, b);
                    assert_eq!(c, d, "{m} {k} {n}");
                    for (c, w) in c.iter().zip(&want) {
                        assert!((f64::from(*c) - w).abs() < 2e-5 * (k as f64).sqrt(), "{m} {k} {n}: {c} {w}");
                    }
                }
            }
        }
    }
}
