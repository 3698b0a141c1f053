//! The right factor of a product, packed in the order in which the micro kernel reads it.

use rayon::prelude::*;

use super::scratch::Scratch;
use super::{Level, View, level, math, micro_kernel, vectorized};

/// A matrix (K, N) in panels with the columns of a micro tile. A panel holds its K rows one after the other; the last
/// panel is padded with zero columns to whole vectors. In bf16, two rows of a panel are stored together, with the two
/// values of a column side by side.
pub(crate) struct Packed {
    k: usize,
    n: usize,
    bf16: bool,
    data: Scratch,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} x {}, {})", self.k, self.n, if self.bf16 { "bf16" } else { "f32" })
    }
}

/// The source of a matrix's columns. It is called with the first column and the number of columns. It calls the
/// function it is given with a matrix of these columns, or of more, and the index of the first column in that matrix.
pub(crate) type Columns<'a> = dyn Fn(usize, usize, &mut dyn FnMut(View<'_>, usize)) + Sync + 'a;

/// The fewest values that one task packs.
const GRAIN: usize = 64 * 1024;

impl Packed {
    /// Packs a matrix in f32.
    pub(crate) fn f32(b: View<'_>) -> Self {
        Self::pack(b, false, 1.0)
    }

    /// Packs a matrix times a factor, in f32.
    pub(crate) fn scaled(b: View<'_>, factor: f32) -> Self {
        Self::pack(b, false, factor)
    }

    /// Packs a matrix times a factor: in bf16 if `bf16` is set and the machine has products of bf16, else in f32.
    pub(crate) fn of(bf16: bool, b: View<'_>, factor: f32) -> Self {
        Self::pack(b, bf16 && level() == Level::Avx512Bf16, factor)
    }

    /// Packs a matrix times a factor, in the type of another packed matrix.
    pub(crate) fn like(other: &Packed, b: View<'_>, factor: f32) -> Self {
        Self::pack(b, other.bf16, factor)
    }

    fn pack(b: View<'_>, bf16: bool, factor: f32) -> Self {
        Self::in_panels([b.rows(), b.cols()], bf16, factor, &|first, _, panel| panel(b, first))
    }

    /// Packs a matrix (K, N) whose columns are made panel by panel: in bf16 if `bf16` is set and the machine has
    /// products of bf16, else in f32.
    pub(crate) fn made_of([k, n]: [usize; 2], bf16: bool, columns: &Columns<'_>) -> Self {
        Self::in_panels([k, n], bf16 && level() == Level::Avx512Bf16, 1.0, columns)
    }

    /// The steps of the inner dimension, and the number of 32-bit words of the panels.
    fn sizes([k, n]: [usize; 2], bf16: bool) -> (usize, Option<usize>) {
        let steps = if bf16 { k.div_ceil(2) } else { k };
        let width = n.checked_next_multiple_of(micro_kernel::shape().lanes);
        (steps, width.and_then(|width| width.checked_mul(steps)))
    }

    /// Bytes that a matrix (K, N) takes when [`Packed::made_of`] packs it.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn bytes_of(shape: [usize; 2], bf16: bool) -> u64 {
        let (_, len) = Self::sizes(shape, bf16 && level() == Level::Avx512Bf16);
        len.map_or(u64::MAX, |len| (len * size_of::<f32>()) as u64)
    }

    /// Packs panel by panel, in parallel if the matrix is large.
    fn in_panels([k, n]: [usize; 2], bf16: bool, factor: f32, columns_of: &Columns<'_>) -> Self {
        let shape = micro_kernel::shape();
        let (steps, len) = Self::sizes([k, n], bf16);
        let mut data = Scratch::new(len.expect("a matrix that fits into memory"));
        let pack_panel = |(p, panel): (usize, &mut [f32])| {
            let first = p * shape.width();
            let columns = shape.width().min(n - first);
            let width = panel.len() / steps;
            if columns < width {
                panel.fill(0.0);
            }
            columns_of(first, columns, &mut |b, first| match (b.col_stride == 1, bf16) {
                (true, false) => copy(b, first, columns, width, factor, panel),
                (true, true) => copy_pairs(b, first, columns, width, factor, panel),
                (false, false) => transpose(b, first, columns, width, factor, panel),
                (false, true) => {
                    let mut words = Scratch::new(columns * steps);
                    for (j, words) in words.chunks_exact_mut(steps).enumerate() {
                        pair_up(b.column(first + j), factor, bytemuck::cast_slice_mut(words));
                    }
                    transpose(View::new(&words, columns, steps).t(), 0, columns, width, 1.0, panel);
                }
            });
        };
        let panel = steps * shape.width();
        if k * n < 2 * GRAIN {
            data.chunks_mut(panel).enumerate().for_each(pack_panel);
        } else {
            data.par_chunks_mut(panel).enumerate().for_each(pack_panel);
        }
        Self { k, n, bf16, data }
    }

    /// Packs a matrix of words: f32 values (K, N), or pairs of bf16 (K / 2, N).
    pub(super) fn words(b: View<'_>, k: usize, bf16: bool) -> Self {
        Self { k, bf16, ..Self::pack(b, false, 1.0) }
    }

    /// K.
    pub(crate) fn rows(&self) -> usize {
        self.k
    }

    /// N.
    pub(crate) fn cols(&self) -> usize {
        self.n
    }

    /// Whether the values are bf16.
    pub(crate) fn is_bf16(&self) -> bool {
        self.bf16
    }

    /// Bytes of the packed matrix.
    pub(crate) fn bytes(&self) -> u64 {
        size_of_val::<[f32]>(&self.data) as u64
    }

    /// Steps of the inner dimension: K values, or pairs of K values.
    pub(super) fn steps(&self) -> usize {
        if self.bf16 { self.k.div_ceil(2) } else { self.k }
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// Fills a panel from a matrix with adjacent values in columns, in square blocks that stay in registers.
fn transpose(b: View<'_>, first: usize, columns: usize, width: usize, factor: f32, panel: &mut [f32]) {
    const SIDE: usize = 8;
    let (whole_rows, whole_columns) = (b.rows() / SIDE * SIDE, columns / SIDE * SIDE);
    for j in (0..whole_columns).step_by(SIDE) {
        let sources: [&[[f32; SIDE]]; SIDE] = std::array::from_fn(|l| b.column(first + j + l).as_chunks().0);
        for (block, rows) in panel.chunks_exact_mut(SIDE * width).enumerate() {
            let square: [[f32; SIDE]; SIDE] = std::array::from_fn(|l| sources[l][block]);
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let values: [f32; SIDE] = std::array::from_fn(|l| square[l][i]);
                // A factor of 1 keeps the bits, also those of pairs of bf16.
                let scaled = if factor == 1.0 { values } else { values.map(|v| v * factor) };
                row[j..j + SIDE].copy_from_slice(&scaled);
            }
        }
    }
    let mut put = |k: usize, j: usize| {
        let v = b.at(k, first + j);
        panel[k * width + j] = if factor == 1.0 { v } else { v * factor };
    };
    (whole_columns..columns).for_each(|j| (0..whole_rows).for_each(|k| put(k, j)));
    (whole_rows..b.rows()).for_each(|k| (0..columns).for_each(|j| put(k, j)));
}

/// Fills a panel from a matrix with adjacent values in rows.
fn copy(b: View<'_>, first: usize, columns: usize, width: usize, factor: f32, panel: &mut [f32]) {
    for (k, row) in panel.chunks_exact_mut(width).enumerate() {
        let (row, values) = (&mut row[..columns], &b.row(k)[first..][..columns]);
        match factor == 1.0 {
            true => row.copy_from_slice(values),
            false => row.iter_mut().zip(values).for_each(|(row, v)| *row = v * factor),
        }
    }
}

/// As [`copy`], with two rows side by side in bf16.
fn copy_pairs(b: View<'_>, first: usize, columns: usize, width: usize, factor: f32, panel: &mut [f32]) {
    for (pair, row) in panel.chunks_exact_mut(width).enumerate() {
        let values = |k: usize| &b.row(k)[first..][..columns];
        let row = bytemuck::cast_slice_mut(&mut row[..columns]);
        match 2 * pair + 1 < b.rows() {
            true => interleave(values(2 * pair), values(2 * pair + 1), factor, row),
            false => interleave(values(2 * pair), &[0.0; MOST_COLUMNS][..columns], factor, row),
        }
    }
}

/// The most columns of a panel.
const MOST_COLUMNS: usize = 48;

vectorized! {
    /// Rounds two rows to bf16 and interleaves them.
    fn interleave(low: &[f32], high: &[f32], factor: f32, out: &mut [u32]) {
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = u32::from(math::to_bf16(low * factor)) | u32::from(math::to_bf16(high * factor)) << 16;
        }
    }
}

vectorized! {
    /// Rounds a column to pairs of bf16. An odd last value is paired with zero.
    fn pair_up(column: &[f32], factor: f32, out: &mut [u16]) {
        for (out, v) in out.iter_mut().zip(column) {
            *out = math::to_bf16(v * factor);
        }
        if let Some(rest) = out.get_mut(column.len()) {
            *rest = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_pack_alike() {
        let (k, n) = (21, 53);
        let row_major: Vec<f32> = (0..k * n).map(|i| i as f32).collect();
        let mut transposed = vec![0.0; k * n];
        for i in 0..k {
            for j in 0..n {
                transposed[j * k + i] = row_major[i * n + j];
            }
        }
        let (a, b) = (View::new(&row_major, k, n), View::new(&transposed, n, k).t());
        assert_eq!(Packed::f32(a).data[..], Packed::f32(b).data[..]);
        assert_eq!(Packed::of(true, a, 1.0).data[..], Packed::of(true, b, 1.0).data[..]);
        // An odd last row is paired with zeros.
        let odd = Packed::of(true, a, 2.0);
        if odd.is_bf16() {
            let pairs: &[u16] = bytemuck::cast_slice(&odd.data);
            let value = |k: usize, j: usize| f32::from_bits(u32::from(pairs[(k / 2 * 48 + j) * 2 + k % 2]) << 16);
            assert_eq!((value(0, 1), value(1, 2), value(20, 3), value(21, 3)), (2.0, 110.0, 2128.0, 0.0));
        }
        let packed = Packed::f32(a);
        let width = micro_kernel::shape().width();
        assert_eq!(packed.data[width.min(n)], row_major[n]); // row 1 follows row 0
    }
}
