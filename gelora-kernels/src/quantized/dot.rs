//! Inner products of quantized rows with one vector. Codes are never written to memory as f32: they are widened in
//! registers, multiplied with x, and the sum of a block is scaled once.
//!
//! With the names of the parent module, a block of Q4_1 adds d sum(q x) + m sum(x) to the product. The sums of x are
//! made once for all rows ([`Sums`]).

use super::scale_and_offset;
use crate::DType;
use crate::cpu::{Codes, Scratch, by_vector};

/// Number of values that share a sum of x.
const SHARED: usize = 32;

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

/// y_o = w_o x for the rows w_o of a quantized matrix, given as their bytes. A row has as many values as x.
pub(crate) fn rows(dtype: DType, bytes: &[u8], x: &[f32], sums: &Sums, y: &mut [f32]) {
    assert!(has_rows(dtype), "quantized rows of {dtype}");
    assert_eq!(bytes.len(), y.len() * dtype.bytes(x.len()));
    assert_eq!(sums.0.len(), x.len() / SHARED);
    by_dtype(dtype, bytes, x, &sums.0, y);
}

by_vector! {
    fn by_dtype(dtype: DType, bytes: &[u8], x: &[f32], sums: &[f32], y: &mut [f32]) = of_dtype
}

/// # Safety
/// As [`Codes`]. Lengths are as [`rows`] asserts.
#[inline(always)]
unsafe fn of_dtype<V: Codes>(dtype: DType, bytes: &[u8], x: &[f32], sums: &[f32], y: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::Q4_0 => of_blocks::<V, Q4_0>(bytes, x, sums, y),
            DType::Q4_1 => of_blocks::<V, Q4_1>(bytes, x, sums, y),
            DType::Q5_0 => of_blocks::<V, Q5_0>(bytes, x, sums, y),
            DType::Q5_1 => of_blocks::<V, Q5_1>(bytes, x, sums, y),
            DType::Q8_0 => of_blocks::<V, Q8_0>(bytes, x, sums, y),
            DType::Q4K => of_blocks::<V, Q4K>(bytes, x, sums, y),
            DType::Q5K => of_blocks::<V, Q5K>(bytes, x, sums, y),
            DType::Q6K => of_blocks::<V, Q6K>(bytes, x, sums, y),
            _ => {}
        }
    }
}

/// # Safety
/// As [`of_dtype`].
#[inline(always)]
unsafe fn of_blocks<V: Codes, B: Block>(bytes: &[u8], x: &[f32], sums: &[f32], y: &mut [f32]) {
    let blocks = x.len() / B::VALUES;
    for (row, y) in bytes.chunks_exact(blocks * B::BYTES).zip(y) {
        let (block, x, sums) = (row.as_ptr(), x.as_ptr(), sums.as_ptr());
        // SAFETY: a row has this number of blocks, x their values and `sums` the sums of those.
        unsafe {
            let (mut total, mut offsets) = (V::splat(0.0), 0.0);
            for b in 0..blocks {
                let sums = sums.add(b * (B::VALUES / SHARED));
                total = B::add::<V>(block.add(b * B::BYTES), x.add(b * B::VALUES), sums, total, &mut offsets);
            }
            *y = total.sum() + offsets;
        }
    }
}

/// A block of a quantized type.
trait Block {
    const VALUES: usize;
    const BYTES: usize;

    /// Adds the product of a block with VALUES values of x: its lanes to `total`, and what offsets add to `offsets`.
    ///
    /// # Safety
    /// As [`Codes`]. Pointers are to BYTES bytes, VALUES values and the sums of these.
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, total: V, offsets: &mut f32) -> V;
}

/// sum(q x) of `len` codes, in lanes. `codes` has the codes of LANES values from an index on.
#[inline(always)]
unsafe fn product<V: Codes>(len: usize, x: *const f32, codes: impl Fn(usize) -> V::Integers) -> V {
    // SAFETY: x has `len` values by the contract of the callers.
    unsafe {
        let (mut sum, mut j) = (V::splat(0.0), 0);
        while j < len {
            sum = V::to_f32(codes(j)).mul_add(V::load(x.add(j)), sum);
            j += V::LANES;
        }
        sum
    }
}

/// sum(q x) of 2 N codes of 4 bits: the lower halves of N bytes, then the upper halves.
#[inline(always)]
unsafe fn halves<V: Codes>(n: usize, q: *const u8, x: *const f32) -> (V, V) {
    // SAFETY: by the contract of the callers.
    unsafe {
        let low = product(n, x, |j| V::and(V::bytes(q.add(j)), 15));
        let high = product(n, x.add(n), |j| V::right(V::bytes(q.add(j)), 4));
        (low, high)
    }
}

/// sum(q x) of 32 codes of 5 bits, whose fifth bits are in a word.
#[inline(always)]
unsafe fn fives<V: Codes>(q: *const u8, word: u32, x: *const f32) -> V {
    // SAFETY: by the contract of the callers.
    unsafe {
        let low = product(16, x, |j| V::or(V::and(V::bytes(q.add(j)), 15), V::left(V::bits(word >> j), 4)));
        let high =
            product(16, x.add(16), |j| V::or(V::right(V::bytes(q.add(j)), 4), V::left(V::bits(word >> (16 + j)), 4)));
        V::add(low, high)
    }
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
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract; the codes follow the scale, so four bytes can be read.
        unsafe {
            let [d, _] = V::two_f16(block);
            let (low, high) = halves::<V>(16, block.add(2), x);
            *offsets -= 8.0 * d * *sums;
            low.add(high).mul_add(V::splat(d), total)
        }
    }
}

impl Block for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let [d, m] = V::two_f16(block);
            let (low, high) = halves::<V>(16, block.add(4), x);
            *offsets += m * *sums;
            low.add(high).mul_add(V::splat(d), total)
        }
    }
}

impl Block for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let [d, _] = V::two_f16(block);
            let fifth = block.add(2).cast::<u32>().read_unaligned();
            *offsets -= 16.0 * d * *sums;
            fives::<V>(block.add(6), u32::from_le(fifth), x).mul_add(V::splat(d), total)
        }
    }
}

impl Block for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let [d, m] = V::two_f16(block);
            let fifth = block.add(4).cast::<u32>().read_unaligned();
            *offsets += m * *sums;
            fives::<V>(block.add(8), u32::from_le(fifth), x).mul_add(V::splat(d), total)
        }
    }
}

impl Block for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, _: *const f32, total: V, _: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let [d, _] = V::two_f16(block);
            product::<V>(32, x, |j| V::signed_bytes(block.add(2 + j))).mul_add(V::splat(d), total)
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
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, mut total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let scales = V::two_f16(block);
            for i in 0..4 {
                let ((d_low, m_low), (d_high, m_high)) = (step(block, scales, 2 * i), step(block, scales, 2 * i + 1));
                let (low, high) = halves::<V>(32, block.add(16 + 32 * i), x.add(64 * i));
                *offsets -= m_low * *sums.add(2 * i) + m_high * *sums.add(2 * i + 1);
                total = high.mul_add(V::splat(d_high), low.mul_add(V::splat(d_low), total));
            }
            total
        }
    }
}

impl Block for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, sums: *const f32, mut total: V, offsets: &mut f32) -> V {
        // SAFETY: by the contract.
        unsafe {
            let scales = V::two_f16(block);
            for i in 0..4 {
                let ((d_low, m_low), (d_high, m_high)) = (step(block, scales, 2 * i), step(block, scales, 2 * i + 1));
                let (q, x) = (block.add(48 + 32 * i), x.add(64 * i));
                // The fifth bits of both halves are bits 2 i and 2 i + 1 of 32 bytes.
                let fifth = |j, bit| V::left(V::and(V::right(V::bytes(block.add(16 + j)), bit), 1), 4);
                let low = product::<V>(32, x, |j| V::or(V::and(V::bytes(q.add(j)), 15), fifth(j, 2 * i)));
                let high = product::<V>(32, x.add(32), |j| V::or(V::right(V::bytes(q.add(j)), 4), fifth(j, 2 * i + 1)));
                *offsets -= m_low * *sums.add(2 * i) + m_high * *sums.add(2 * i + 1);
                total = high.mul_add(V::splat(d_high), low.mul_add(V::splat(d_low), total));
            }
            total
        }
    }
}

impl Block for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    unsafe fn add<V: Codes>(block: *const u8, x: *const f32, _: *const f32, mut total: V, _: &mut f32) -> V {
        // SAFETY: by the contract; the scale is the last two bytes.
        unsafe {
            let [_, d] = V::two_f16(block.add(206));
            // 16 values share a step. Their lower four bits are half of the bits of 16 bytes; two bits of 16 other
            // bytes are the upper ones.
            for i in 0..16 {
                let (half, part, group) = (i / 8, i % 8 / 2, i % 2);
                let low = block.add(64 * half + 32 * (part % 2) + 16 * group);
                let high = block.add(128 + 32 * half + 16 * group);
                let sum = product::<V>(16, x.add(16 * i), |j| {
                    let lower = V::and(V::right(V::bytes(low.add(j)), part / 2 * 4), 15);
                    let upper = V::and(V::right(V::bytes(high.add(j)), 2 * part), 3);
                    V::plus(V::or(lower, V::left(upper, 4)), -32)
                });
                let step = block.add(192 + i).cast::<i8>().read();
                total = sum.mul_add(V::splat(d * f32::from(step)), total);
            }
            total
        }
    }
}
