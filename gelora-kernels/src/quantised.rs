//! Weights in blocks of few bits, as GGUF files have them: of each block a scale, or a scale and an offset, and small integers.
//!
//! With scale d and offset m in f16: Q4_0 x = d (q - 8), Q4_1 x = d q + m, Q8_0 x = d q, 32 values a block; Q4_K x = d s q -
//! m t with a scale s and an offset t of 6 bits for each 32 of 256 values; Q6_K x = d s (q - 32) with a scale s of 8 bits for
//! each 16 of 256 values. A row is a whole number of blocks.
//!
//! Source: the blocks of ggml's `ggml-common.h`, in the order in which `ggml-quants.c` takes them apart.

use crate::DType;

/// A scale in f16. Not by the crate half, which asks each time what the CPU can do: there is a scale every few values.
#[inline(always)]
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    /// 2^112: the bias of exponents is 127 in f32 and 15 in f16.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
    let special = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
    // Kept apart from other blocks: the compiler would work on 16 at once, their values scattered.
    std::hint::black_box(f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16))
}

/// The values of N bytes with two of 4 bits each: those of the lower halves, then those of the upper ones.
#[inline(always)]
fn halves<const N: usize>(bytes: &[u8], out: &mut [f32], low: impl Fn(f32) -> f32, high: impl Fn(f32) -> f32) {
    let (lows, highs) = out.split_at_mut(N);
    each::<N>(bytes, lows, |q| low(f32::from(q & 15)));
    each::<N>(bytes, highs, |q| high(f32::from(q >> 4)));
}

/// The values of N bytes, in a loop whose length the compiler knows.
#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (Some(bytes), Some(out)) = (bytes.first_chunk::<N>(), out.first_chunk_mut::<N>()) else { return };
    for (out, q) in out.iter_mut().zip(bytes) {
        *out = value(*q);
    }
}

crate::cpu::vectorised! {
    fn q4_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            halves::<16>(&block[2..], out, |q| d * (q - 8.0), |q| d * (q - 8.0));
        }
    }
}

crate::cpu::vectorised! {
    fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            halves::<16>(&block[4..], out, |q| d * q + m, |q| d * q + m);
        }
    }
}

crate::cpu::vectorised! {
    fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            each::<32>(&block[2..], out, |q| d * f32::from(q as i8));
        }
    }
}

crate::cpu::vectorised! {
    fn q4_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(144).zip(out.chunks_exact_mut(256)) {
            let (d, m, packed) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
            // (s, t) of the i-th 32 values.
            let of = |i: usize| {
                let (s, t) = if i < 4 {
                    (packed[i] & 63, packed[i + 4] & 63)
                } else {
                    (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
                };
                (d * f32::from(s), m * f32::from(t))
            };
            for (i, (q, out)) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
                let ((d_low, m_low), (d_high, m_high)) = (of(2 * i), of(2 * i + 1));
                halves::<32>(q, out, |q| d_low * q - m_low, |q| d_high * q - m_high);
            }
        }
    }
}

crate::cpu::vectorised! {
    fn q6_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(210).zip(out.chunks_exact_mut(256)) {
            let d = f16_at(block, 208);
            for (half, out) in out.chunks_exact_mut(128).enumerate() {
                let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
                let scales = &block[192 + 8 * half..][..8];
                for (part, out) in out.chunks_exact_mut(32).enumerate() {
                    let low = &low[32 * (part % 2)..][..32];
                    for (l, out) in out.iter_mut().enumerate() {
                        let four = if part < 2 { low[l] & 15 } else { low[l] >> 4 };
                        let q = (four | (high[l] >> (2 * part) & 3) << 4) as i32 - 32;
                        *out = d * f32::from(scales[2 * part + l / 16] as i8) * q as f32;
                    }
                }
            }
        }
    }
}

/// The values of whole blocks.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.bytes(out.len()), bytes.len());
    match dtype {
        DType::Q4_0 => q4_0(bytes, out),
        DType::Q4_1 => q4_1(bytes, out),
        DType::Q8_0 => q8_0(bytes, out),
        DType::Q4K => q4_k(bytes, out),
        DType::Q6K => q6_k(bytes, out),
        DType::F32 | DType::Bf16 | DType::F16 | DType::F64 => unreachable!("not a quantised type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_what_half_says() {
        for bits in 0..=u16::MAX {
            let (got, want) = (f16_at(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got} {want}");
        }
    }
}
