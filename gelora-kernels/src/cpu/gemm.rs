//! Matrix products on the [kernel](super::tile): tasks for threads, and what rides on a product.

use std::ops::Range;

use rayon::prelude::*;

use super::packed::Packed;
use super::scratch::Scratch;
use super::sweep::{Destination, Left, Right, sweep};
use super::tile::{self, Shape};
use super::view::{View, ViewMut};
use super::{Level, for_row_blocks, level, math};

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
    pub mask: Option<&'a Mask<'a>>,
}

/// What x is put through: (index of the first value, x, result).
pub type Mask<'a> = dyn Fn(usize, &[f32], &mut [f32]) + Sync + 'a;

/// Rows that a task works on at least and at most, in tiles.
const TASK_TILES: (usize, usize) = (3, 16);

/// Bytes of a right factor that stay in a cache from task to task.
const CACHED: u64 = 8 << 20;

/// Rows of a left factor whose blocks stay in a core's L2 cache while all columns of such a right factor go by.
const ROWS_OF_LARGE: usize = 256;

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

/// `dst = onto + scale a b[steps, columns]` on the calling thread, of a right factor in f32 that is packed already; the columns
/// begin at a multiple of [`panel_width`], and end at one or with b's.
///
/// # Panics
/// If the shapes do not fit together, or the right factor is in bf16.
pub fn gemm_packed(
    dst: ViewMut<'_>,
    onto: Onto<'_>,
    scale: f32,
    a: View<'_>,
    b: &Packed,
    [steps, columns]: [Range<usize>; 2],
) {
    let (shape, right) = (tile::shape(), Right::packed(b).with_steps(steps));
    assert!(!b.is_bf16() && a.cols == right.steps, "factors in f32 of one inner dimension");
    let c = Destination::new(dst, a.rows, columns.len());
    let (c, panels) = of_columns(c, b, columns, shape);
    sweep(Left::new(a), &right, None, c, onto, scale, panels, shape);
}

/// The panels of some columns of a packed factor, and where its column 0 would go if they go to the destination's first.
///
/// # Panics
/// If they are not whole panels.
fn of_columns(c: Destination, b: &Packed, columns: Range<usize>, shape: Shape) -> (Destination, Range<usize>) {
    let width = shape.width();
    let whole = columns.end == b.cols() || (columns.end.is_multiple_of(width) && columns.end < b.cols());
    assert!(columns.start.is_multiple_of(width) && columns.start < columns.end && whole, "columns of whole panels");
    (Destination { data: c.data.wrapping_sub(columns.start), ..c }, columns.start / width..columns.end.div_ceil(width))
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
    // Few rows: all threads share them and split the columns, if those are many. Of a factor beyond the caches, which every task
    // reads whole from memory, more rows are few; not beside a rider, whose first product one thread would do for all of them.
    let few = 2 * TASK_TILES.0 * shape.mr * threads;
    let most = if w.bytes() > CACHED && r == 0 { few.max(ROWS_OF_LARGE) } else { few };
    let wide = !small && m <= most && right.panels(shape) >= 2 * threads;
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
    assert!(rows.start < rows.end && rows.end <= x.x.len() / x.k, "rows of a block");
    assert_eq!((x.k, x.rounded.is_some()), (right.rows(), right.is_bf16()), "factors of one layout");
    let (c, panels) = of_columns(Destination::new(dst, rows.len(), columns.len()), right, columns, shape);
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
        sweep(left, right, None, c.row(i * rows), onto, scale, 0..right.panels(shape), shape);
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
