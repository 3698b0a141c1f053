//! Inner products of quantized rows with few vectors. Codes are never written to memory as f32: they are widened in
//! registers, multiplied with [`TOGETHER`] vectors or with one, and the sum of a block is scaled once.
//!
//! With the names of the parent module, a block of Q4_1 adds d sum(q x) + m sum(x) to the product with x. The sums of x
//! are made once for all rows ([`Sums`]).

use super::scale_and_offset;
use crate::DType;
use crate::cpu::{Codes, Scratch, by_vector};

/// Number of values that share a sum of x.
const SHARED: usize = 32;

/// Number of vectors that codes are multiplied with at once.
const TOGETHER: usize = 4;

/// Whether [`rows`] has products for a type.
pub(crate) fn has_rows(dtype: DType) -> bool {
    use DType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    matches!(dtype, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q4K | Q5K | Q6K)
}

/// The sums of every 32 values of x, by which offsets are multiplied.
pub(crate) struct Sums(Scratch);

impl Sums {
    pub(crate) fn of(x: &[f32]) -> Self {
        let mut sums = Scratch::new(x.len() / SHARED);
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(SHARED)) {
            *sum = x.iter().sum();
        }
        Self(sums)
    }
}

/// y_oi = w_o x_i for the rows w_o of a quantized matrix, given as their bytes, and n vectors x_i. A row has as many
/// values as a vector.
pub(crate) fn rows(dtype: DType, bytes: &[u8], x: &[f32], n: usize, sums: &Sums, y: &mut [f32]) {
    let values = x.len() / n;
    assert!(has_rows(dtype), "quantized rows of {dtype}");
    assert!(x.len() == n * values && values.is_multiple_of(SHARED), "whole vectors and blocks");
    assert_eq!(bytes.len(), y.len() / n * dtype.bytes(values));
    assert_eq!(sums.0.len(), x.len() / SHARED);
    by_dtype(dtype, bytes, x, values, &sums.0, y);
}

by_vector! {
    fn by_dtype(dtype: DType, bytes: &[u8], x: &[f32], values: usize, sums: &[f32], y: &mut [f32]) = of_dtype
}

/// # Safety
/// As [`Codes`]. Lengths are as [`rows`] asserts.
#[inline(always)]
unsafe fn of_dtype<V: Codes>(dtype: DType, bytes: &[u8], x: &[f32], values: usize, sums: &[f32], y: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::Q4_0 => of_blocks::<V, Q4_0>(bytes, x, values, sums, y),
            DType::Q4_1 => of_blocks::<V, Q4_1>(bytes, x, values, sums, y),
            DType::Q5_0 => of_blocks::<V, Q5_0>(bytes, x, values, sums, y),
            DType::Q5_1 => of_blocks::<V, Q5_1>(bytes, x, values, sums, y),
            DType::Q8_0 => of_blocks::<V, Q8_0>(bytes, x, values, sums, y),
            DType::Q4K => of_blocks::<V, Q4K>(bytes, x, values, sums, y),
            DType::Q5K => of_blocks::<V, Q5K>(bytes, x, values, sums, y),
            DType::Q6K => of_blocks::<V, Q6K>(bytes, x, values, sums, y),
            _ => {}
        }
    }
}

/// # Safety
/// As [`of_dtype`].
#[inline(always)]
unsafe fn of_blocks<V: Codes, B: Block>(bytes: &[u8], x: &[f32], values: usize, sums: &[f32], y: &mut [f32]) {
    let (n, row_bytes) = (x.len() / values, values / B::VALUES * B::BYTES);
    for (row, y) in bytes.chunks_exact(row_bytes).zip(y.chunks_exact_mut(n)) {
        for first in (0..n).step_by(TOGETHER) {
            let left = &mut y[first..n.min(first + TOGETHER)];
            // SAFETY: a row has this number of bytes, x n vectors, and `sums` the sums of those.
            unsafe {
                match left.len() {
                    1 => left[0] = of_row::<V, B, 1>(row, x, values, sums, [first])[0],
                    // Fewer than TOGETHER: the last one is multiplied more than once.
                    _ => {
                        let which = std::array::from_fn(|i| (first + i).min(n - 1));
                        let products = of_row::<V, B, TOGETHER>(row, x, values, sums, which);
                        left.iter_mut().zip(products).for_each(|(y, product)| *y = product);
                    }
                }
            }
        }
    }
}

/// The products of a row with N vectors, given by their indices.
///
/// # Safety
/// As [`of_dtype`].
#[inline(always)]
unsafe fn of_row<V: Codes, B: Block, const N: usize>(
    row: &[u8],
    x: &[f32],
    values: usize,
    sums: &[f32],
    which: [usize; N],
) -> [f32; N] {
    // SAFETY: by the contract.
    unsafe {
        let (x, sums) =
            (which.map(|i| x.as_ptr().add(i * values)), which.map(|i| sums.as_ptr().add(i * (values / SHARED))));
        let mut of = Products { x, sums, totals: [V::splat(0.0); N], offsets: [0.0; N] };
        for block in row.chunks_exact(B::BYTES) {
            B::add(block.as_ptr(), &mut of);
            of.x = of.x.map(|x| x.wrapping_add(B::VALUES));
            of.sums = of.sums.map(|sums| sums.wrapping_add(B::VALUES / SHARED));
        }
        std::array::from_fn(|i| of.totals[i].sum() + of.offsets[i])
    }
}

/// The products of a row with N vectors up to a block.
struct Products<V, const N: usize> {
    /// The values of the vectors at the block, and the sums of these.
    x: [*const f32; N],
    sums: [*const f32; N],
    /// The products in lanes, and what offsets add to them.
    totals: [V; N],
    offsets: [f32; N],
}

impl<V: Codes, const N: usize> Products<V, N> {
    /// Adds scale sum(q x).
    #[inline(always)]
    unsafe fn add(&mut self, sums: [V; N], scale: f32) {
        for (total, sum) in self.totals.iter_mut().zip(sums) {
            // SAFETY: by the contract of the callers.
            *total = unsafe { sum.mul_add(V::splat(scale), *total) };
        }
    }

    /// Adds offset sum(x) of the block's `index`-th 32 values.
    #[inline(always)]
    unsafe fn add_offset(&mut self, index: usize, offset: f32) {
        for (total, sum) in self.offsets.iter_mut().zip(self.sums) {
            // SAFETY: by the contract of the callers.
            *total += offset * unsafe { *sum.add(index) };
        }
    }
}

/// A block of a quantized type.
trait Block {
    const VALUES: usize;
    const BYTES: usize;

    /// Adds the products of a block with the VALUES values of each vector there.
    ///
    /// # Safety
    /// As [`Codes`]. `block` points to BYTES bytes, and the pointers of `to` to VALUES values and their sums.
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>);
}

/// sum(q x) of `len` codes with the values of N vectors from `from` on, in lanes. `codes` has the codes of LANES values
/// from an index on.
#[inline(always)]
unsafe fn product<V: Codes, const N: usize>(
    len: usize,
    x: [*const f32; N],
    from: usize,
    codes: impl Fn(usize) -> V::Integers,
) -> [V; N] {
    // SAFETY: the vectors have these values by the contract of the callers.
    unsafe {
        let (mut sums, mut j) = ([V::splat(0.0); N], 0);
        while j < len {
            let q = V::to_f32(codes(j));
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = q.mul_add(V::load(x.add(from + j)), *sum);
            }
            j += V::LANES;
        }
        sums
    }
}

/// sum(q x) of 2 n codes of 4 bits with the values from `from` on: of the lower halves of n bytes, and of the upper.
#[inline(always)]
unsafe fn halves<V: Codes, const N: usize>(n: usize, q: *const u8, x: [*const f32; N], from: usize) -> [[V; N]; 2] {
    // SAFETY: by the contract of the callers.
    unsafe {
        let low = product(n, x, from, |j| V::and(V::bytes(q.add(j)), 15));
        let high = product(n, x, from + n, |j| V::right(V::bytes(q.add(j)), 4));
        [low, high]
    }
}

/// sum(q x) of 32 codes of 5 bits, whose fifth bits are in a word.
#[inline(always)]
unsafe fn fives<V: Codes, const N: usize>(q: *const u8, word: u32, x: [*const f32; N]) -> [V; N] {
    // SAFETY: by the contract of the callers.
    unsafe {
        let low = product(16, x, 0, |j| V::or(V::and(V::bytes(q.add(j)), 15), V::left(V::bits(word >> j), 4)));
        let high =
            product(16, x, 16, |j| V::or(V::right(V::bytes(q.add(j)), 4), V::left(V::bits(word >> (16 + j)), 4)));
        both(low, high)
    }
}

#[inline(always)]
unsafe fn both<V: Codes, const N: usize>(low: [V; N], high: [V; N]) -> [V; N] {
    // SAFETY: by the contract of the callers.
    std::array::from_fn(|i| unsafe { V::add(low[i], high[i]) })
}

struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Q8_0;
struct Q4K;
struct Q5K;
struct Q6K;

impl Block for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract; the codes follow the scale, so four bytes can be read.
        unsafe {
            let [d, _] = V::two_f16(block);
            let [low, high] = halves(16, block.add(2), to.x, 0);
            to.add(both(low, high), d);
            to.add_offset(0, -8.0 * d);
        }
    }
}

impl Block for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let [d, m] = V::two_f16(block);
            let [low, high] = halves(16, block.add(4), to.x, 0);
            to.add(both(low, high), d);
            to.add_offset(0, m);
        }
    }
}

impl Block for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let [d, _] = V::two_f16(block);
            let fifth = block.add(2).cast::<u32>().read_unaligned();
            to.add(fives(block.add(6), u32::from_le(fifth), to.x), d);
            to.add_offset(0, -16.0 * d);
        }
    }
}

impl Block for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let [d, m] = V::two_f16(block);
            let fifth = block.add(4).cast::<u32>().read_unaligned();
            to.add(fives(block.add(8), u32::from_le(fifth), to.x), d);
            to.add_offset(0, m);
        }
    }
}

impl Block for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let [d, _] = V::two_f16(block);
            to.add(product(32, to.x, 0, |j| V::signed_bytes(block.add(2 + j))), d);
        }
    }
}

/// Scale d s and offset m t of the i-th 32 values of a block of Q4_K or Q5_K.
#[inline(always)]
unsafe fn step(block: *const u8, [d, m]: [f32; 2], i: usize) -> (f32, f32) {
    // SAFETY: the 12 bytes of steps follow the two scales.
    let packed = unsafe { std::slice::from_raw_parts(block.add(4), 12) };
    let (s, t) = scale_and_offset(packed, i);
    (d * s, m * t)
}

impl Block for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let scales = V::two_f16(block);
            for i in 0..4 {
                let ((d_low, m_low), (d_high, m_high)) = (step(block, scales, 2 * i), step(block, scales, 2 * i + 1));
                let [low, high] = halves(32, block.add(16 + 32 * i), to.x, 64 * i);
                to.add(low, d_low);
                to.add(high, d_high);
                to.add_offset(2 * i, -m_low);
                to.add_offset(2 * i + 1, -m_high);
            }
        }
    }
}

impl Block for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract.
        unsafe {
            let scales = V::two_f16(block);
            for i in 0..4 {
                let ((d_low, m_low), (d_high, m_high)) = (step(block, scales, 2 * i), step(block, scales, 2 * i + 1));
                let q = block.add(48 + 32 * i);
                // The fifth bits of both halves are bits 2 i and 2 i + 1 of 32 bytes.
                let fifth = |j, bit| V::left(V::and(V::right(V::bytes(block.add(16 + j)), bit), 1), 4);
                to.add(product(32, to.x, 64 * i, |j| V::or(V::and(V::bytes(q.add(j)), 15), fifth(j, 2 * i))), d_low);
                let high = |j| V::or(V::right(V::bytes(q.add(j)), 4), fifth(j, 2 * i + 1));
                to.add(product(32, to.x, 64 * i + 32, high), d_high);
                to.add_offset(2 * i, -m_low);
                to.add_offset(2 * i + 1, -m_high);
            }
        }
    }
}

impl Block for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    unsafe fn add<V: Codes, const N: usize>(block: *const u8, to: &mut Products<V, N>) {
        // SAFETY: by the contract; the scale is the last two bytes.
        unsafe {
            let [_, d] = V::two_f16(block.add(206));
            // 16 values share a step. Their lower four bits are half of the bits of 16 bytes; two bits of 16 other
            // bytes are the upper ones.
            for i in 0..16 {
                let (half, part, group) = (i / 8, i % 8 / 2, i % 2);
                let low = block.add(64 * half + 32 * (part % 2) + 16 * group);
                let high = block.add(128 + 32 * half + 16 * group);
                let sum = product(16, to.x, 16 * i, |j| {
                    let lower = V::and(V::right(V::bytes(low.add(j)), part / 2 * 4), 15);
                    let upper = V::and(V::right(V::bytes(high.add(j)), 2 * part), 3);
                    V::plus(V::or(lower, V::left(upper, 4)), -32)
                });
                let step = block.add(192 + i).cast::<i8>().read();
                to.add(sum, d * f32::from(step));
            }
        }
    }
}
