//! Matrix products: how they are split into tasks for threads, and the low-rank product computed along with one.

use std::ops::Range;

use rayon::prelude::*;

use super::macro_kernel::{Destination, Left, Problem, Right, macro_kernel};
use super::micro_kernel::{self, Init, TileShape};
use super::packed::Packed;
use super::scratch::Scratch;
use super::view::{View, ViewMut};
use super::{Level, for_row_blocks, level, math};

/// A low-rank product added to a product: y += mask(x) down up. Its factors join the loops of the base product, as r
/// more steps of its inner dimension.
pub(crate) struct LowRank<'a> {
    /// (K, r).
    pub(crate) down: &'a Packed,
    /// (r, N), in f32.
    pub(crate) up: &'a Packed,
    /// (M, r): receives mask(x) down.
    pub(crate) inner: &'a mut [f32],
    /// Applied to x before `down`.
    pub(crate) mask: Option<&'a Mask<'a>>,
}

/// A function of the values of x, called with (index of the first value, values of x, results).
pub(crate) type Mask<'a> = dyn Fn(usize, &[f32], &mut [f32]) + Sync + 'a;

/// The fewest and the most rows of one task, in tiles.
const TASK_TILES: (usize, usize) = (3, 16);

/// Products with fewer multiplications are done by one thread before other threads would wake.
const SERIAL: usize = 64 * 64 * 64;

/// Bytes of a right factor that stay in a cache from one task to the next.
const CACHED: u64 = 8 << 20;

/// Rows of a left factor whose blocks stay in a core's L2 cache while all columns of a larger right factor go by.
const ROWS_OF_LARGE: usize = 256;

/// `dst = init + scale a b`, on all threads.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn gemm(mut dst: ViewMut<'_>, init: Init<'_>, scale: f32, a: View<'_>, b: View<'_>) {
    if a.rows * a.cols * b.cols < SERIAL || rayon::current_num_threads() == 1 {
        return gemm_serial(dst, init, scale, a, b);
    }
    let shape = micro_kernel::shape();
    let packed;
    let right = if b.col_stride == 1 && a.rows <= 8 * shape.mr {
        Right::rows(b)
    } else {
        packed = Packed::f32(b);
        Right::packed(&packed)
    };
    let c = Destination::new(&mut dst, a.rows, b.cols);
    // SAFETY: `dst` is borrowed exclusively until the end of this function and has the shape of the product.
    unsafe { parallel(&Problem::new(Left::new(a), right, init, scale), c, shape) };
}

/// [`gemm`] on the calling thread alone.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn gemm_serial(mut dst: ViewMut<'_>, init: Init<'_>, scale: f32, a: View<'_>, b: View<'_>) {
    let shape = micro_kernel::shape();
    let packed;
    let right = if b.col_stride == 1 && (a.rows <= 4 * shape.mr || b.cols <= shape.width()) {
        Right::rows(b)
    } else {
        packed = Packed::f32(b);
        Right::packed(&packed)
    };
    let c = Destination::new(&mut dst, a.rows, b.cols);
    let problem = Problem::new(Left::new(a), right, init, scale);
    // SAFETY: `dst` is borrowed exclusively until the end of this function and has the shape of the product.
    unsafe { macro_kernel(&problem, c, 0..right.panels(shape), shape) };
}

/// `dst = init + scale a b[steps, columns]` on the calling thread, for a right factor packed in f32. The columns begin
/// at a multiple of [`panel_width`], and end at a multiple or with the last column of b.
///
/// # Panics
/// If the shapes do not fit together, or the right factor is in bf16.
pub(crate) fn gemm_packed(
    mut dst: ViewMut<'_>,
    init: Init<'_>,
    scale: f32,
    a: View<'_>,
    b: &Packed,
    [steps, columns]: [Range<usize>; 2],
) {
    assert!(!b.is_bf16(), "a right factor in f32");
    let (shape, right) = (micro_kernel::shape(), Right::packed(b).with_steps(steps));
    let c = Destination::new(&mut dst, a.rows, columns.len());
    let (c, panels) = panels_of(c, b, columns, shape);
    let problem = Problem::new(Left::new(a), right, init, scale);
    // SAFETY: `dst` is borrowed exclusively until the end of this function, and the columns of `panels` are its
    // columns.
    unsafe { macro_kernel(&problem, c, panels, shape) };
}

/// The panels of some columns of a packed factor, and the destination of its column 0 if `c` is that of the first of
/// the columns.
///
/// # Panics
/// If the columns are not whole panels.
fn panels_of(c: Destination, b: &Packed, columns: Range<usize>, shape: TileShape) -> (Destination, Range<usize>) {
    let width = shape.width();
    let whole = columns.end == b.cols() || (columns.end.is_multiple_of(width) && columns.end < b.cols());
    assert!(columns.start.is_multiple_of(width) && columns.start < columns.end && whole, "columns of whole panels");
    (Destination { data: c.data.wrapping_sub(columns.start), ..c }, columns.start / width..columns.end.div_ceil(width))
}

/// `y = init + x w (+ mask(x) down up)` on all threads, with x (M, K) in f32, w (K, N) and y (M, N). If w is in bf16, x
/// is rounded to bf16 too. Sums are in f32.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn product(y: &mut [f32], init: Init<'_>, x: &[f32], w: &Packed, low_rank: Option<LowRank<'_>>) {
    let (k, n) = (w.rows(), w.cols());
    let m = x.len() / k;
    assert!(m * k == x.len() && m * n == y.len(), "shapes of x and y");
    let shape = micro_kernel::shape();
    let threads = rayon::current_num_threads();
    let right = Right::packed(w);
    let small = m * k * n < SERIAL || threads == 1;
    let rows = if small { m } else { task_rows(m, threads, shape) };
    let (down, up, inner, mask) = match low_rank {
        Some(l) => {
            assert_eq!(
                (l.down.rows(), l.up.rows(), l.up.cols()),
                (k, l.down.cols(), n),
                "shapes of the low-rank factors"
            );
            assert_eq!(l.down.is_bf16(), w.is_bf16(), "types of the low-rank factors");
            assert!(l.inner.len() == m * l.down.cols() && !l.up.is_bf16(), "the inner product of the low-rank factors");
            (Some(l.down), Some(l.up), l.inner, l.mask)
        }
        None => (None, None, &mut [][..], None),
    };
    let r = down.map_or(0, Packed::cols);
    // Few rows: all threads share them and split the columns, if there are many columns. More rows count as few if the
    // right factor is larger than the caches, because every task would read all of it from memory. This does not hold
    // with a low-rank term, whose first product one thread would compute for all rows.
    let few = 2 * TASK_TILES.0 * shape.mr * threads;
    let most = if w.bytes() > CACHED && r == 0 { few.max(ROWS_OF_LARGE) } else { few };
    let wide = !small && m <= most && right.panels(shape) >= 2 * threads;
    // One task: the rows of x from `first_row` on.
    let task = |first_row: usize, x: &[f32], y: &mut [f32], inner: &mut [f32]| {
        let m = x.len() / k;
        let (mut rounded, mut masked, mut rounded_masked) = (None, None, None);
        let left = Left::dense(x, k, w.is_bf16(), &mut rounded);
        // inner = mask(x) down.
        if let Some(down) = down {
            let source = match mask {
                None => left,
                Some(mask) => {
                    let masked = masked.insert(Scratch::new(x.len()));
                    mask(first_row * k, x, masked);
                    Left::dense(masked, k, down.is_bf16(), &mut rounded_masked)
                }
            };
            let (right, c) = (Right::packed(down), Destination::new(&mut ViewMut::new(inner, m, r), m, r));
            // SAFETY: `inner` belongs to this task and has the shape of the product.
            unsafe { macro_kernel(&Problem::new(source, right, Init::Zero, 1.0), c, 0..right.panels(shape), shape) };
        }
        // y = init + x w + inner up.
        let low_rank = up.map(|up| (Left::new(View::new(inner, m, r)), Right::packed(up)));
        let c = Destination::new(&mut ViewMut::new(y, m, n), m, n);
        let problem = Problem { low_rank, ..Problem::new(left, right, init, 1.0) };
        // SAFETY: `y` belongs to this task and has the shape of the product; the shapes of the factors were checked
        // above.
        unsafe {
            match wide {
                true => split_columns(&problem, c, shape),
                false => macro_kernel(&problem, c, 0..right.panels(shape), shape),
            }
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

/// The rows of a left factor, rounded once for many blocks of products.
pub(crate) struct Rows<'a> {
    x: &'a [f32],
    k: usize,
    rounded: Option<Scratch>,
}

impl<'a> Rows<'a> {
    /// Dense rows of k values. They are rounded to bf16 if `bf16` is set and the machine has products of bf16.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub(crate) fn new(x: &'a [f32], k: usize, bf16: bool) -> Self {
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
    pub(crate) fn as_columns(&self) -> Packed {
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

/// `dst = scale x[rows] right[.., columns]` on the calling thread. The columns begin at a multiple of [`panel_width`],
/// and end at a multiple or with the last column of the right factor.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn block(
    mut dst: ViewMut<'_>,
    scale: f32,
    x: &Rows<'_>,
    rows: Range<usize>,
    right: &Packed,
    columns: Range<usize>,
) {
    let shape = micro_kernel::shape();
    assert!(rows.start < rows.end && rows.end <= x.x.len() / x.k, "rows of a block");
    assert_eq!((x.k, x.rounded.is_some()), (right.rows(), right.is_bf16()), "factors of one layout");
    let (c, panels) = panels_of(Destination::new(&mut dst, rows.len(), columns.len()), right, columns, shape);
    let left = x.left().slice(rows.start, rows.len());
    let problem = Problem::new(left, Right::packed(right), Init::Zero, scale);
    // SAFETY: `dst` is borrowed exclusively until the end of this function, and the columns of `panels` are its
    // columns.
    unsafe { macro_kernel(&problem, c, panels, shape) };
}

/// Columns of a panel of a [`Packed`] factor.
pub(crate) fn panel_width() -> usize {
    micro_kernel::shape().width()
}

/// Rows of a task, so that every thread gets several tasks.
fn task_rows(m: usize, threads: usize, shape: TileShape) -> usize {
    m.div_ceil(4 * threads).next_multiple_of(shape.mr).clamp(TASK_TILES.0 * shape.mr, TASK_TILES.1 * shape.mr)
}

/// Computes a product in tasks of rows, or in tasks of columns if there are few rows.
///
/// # Safety
/// As [`macro_kernel`], for all panels.
unsafe fn parallel(problem: &Problem<'_>, c: Destination, shape: TileShape) {
    let threads = rayon::current_num_threads();
    let m = problem.left.rows;
    if m < 8 * shape.mr * threads {
        // SAFETY: by the caller's contract.
        return unsafe { split_columns(problem, c, shape) };
    }
    let rows = task_rows(m, threads, shape);
    (0..m.div_ceil(rows)).into_par_iter().for_each(|i| {
        let part = problem.rows(i * rows, rows.min(m - i * rows));
        // SAFETY: by the caller's contract; the tasks have different rows.
        unsafe { macro_kernel(&part, c.row(i * rows), 0..part.panels(shape), shape) };
    });
}

/// Computes a product in tasks of panels of columns.
///
/// # Safety
/// As [`macro_kernel`], for all panels.
unsafe fn split_columns(problem: &Problem<'_>, c: Destination, shape: TileShape) {
    let panels = problem.panels(shape);
    let per_task = panels.div_ceil(4 * rayon::current_num_threads()).max(1);
    (0..panels.div_ceil(per_task)).into_par_iter().for_each(|i| {
        // SAFETY: by the caller's contract; the tasks have different columns.
        unsafe { macro_kernel(problem, c, i * per_task..panels.min((i + 1) * per_task), shape) };
    });
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
            Init::Accumulate,
            2.0,
            View::strided(&a, 2, 3, 4),
            View::new(&b, 3, 3).t(),
        );
        assert_eq!(dst, [12.0, 14.0, 18.0, 10.0, 10.0, 18.0, 20.0, 30.0, 10.0, 10.0]);
        let mut ata = [f32::NAN; 9];
        gemm_serial(
            ViewMut::new(&mut ata, 3, 3),
            Init::Zero,
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
                    gemm(ViewMut::new(&mut c, m, n), Init::Zero, 1.0, a, b);
                    gemm_serial(ViewMut::new(&mut d, m, n), Init::Zero, 1.0, a, b);
                    assert_eq!(c, d, "{m} {k} {n}");
                    for (c, w) in c.iter().zip(&want) {
                        assert!((f64::from(*c) - w).abs() < 2e-5 * (k as f64).sqrt(), "{m} {k} {n}: {c} {w}");
                    }
                }
            }
        }
    }
}
