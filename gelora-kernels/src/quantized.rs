//! Quantized weights in the blocks of GGUF files: small integers, and a scale or a scale and an offset for each block.
//! [`four_bit`](crate::four_bit) has those of bitsandbytes.
//!
//! With scale d and offset m in f16, and integers q of as many bits as the name says, a value x is
//!
//! | | x | values a block | scales |
//! |---|---|---|---|
//! | Q4_0, Q5_0 | d (q - 8), d (q - 16) | 32 | |
//! | Q4_1, Q5_1 | d q + m | 32 | |
//! | Q8_0 | d q | 32 | |
//! | Q4_K, Q5_K | d s q - m t | 256 | s and t of 6 bits for each 32 |
//! | Q2_K | d s q - m t | 256 | s and t of 4 bits for each 16 |
//! | Q3_K, Q6_K | d s (q - 4), d s (q - 32) | 256 | s of 6 or 8 bits for each 16 |
//! | IQ4_NL, IQ4_XS | d v(q), d s v(q) | 32, 256 | s of 6 bits for each 32 |
//!
//! with a table v of 16 values. A row is a whole number of blocks.
//!
//! Source: the blocks of ggml's `ggml-common.h`, in the order in which `ggml-quants.c` decodes them.

pub(crate) mod dot;
#[cfg(any(feature = "wgpu", feature = "cuda", test))]
pub(crate) mod planes;

use crate::{DType, four_bit};

/// The f16 at byte `offset`, as f32. The crate `half` asks the CPU for its features on every call, which is too slow
/// for one scale every few values.
#[inline(always)]
pub(crate) fn f16_at(bytes: &[u8], offset: usize) -> f32 {
    /// 2^112: the bias of exponents is 127 in f32 and 15 in f16.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
    let special = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
    // `black_box` keeps blocks apart. Without it, the compiler would decode 16 blocks at once and scatter their values.
    std::hint::black_box(f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16))
}

/// Scale and offset, 6 bits each, of the i-th 32 values of a block of 256 values, from 12 packed bytes.
#[inline(always)]
fn steps_of(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    }
}

/// [`steps_of`] as f32.
#[inline(always)]
fn scale_and_offset(packed: &[u8], i: usize) -> (f32, f32) {
    let (s, t) = steps_of(packed, i);
    (f32::from(s), f32::from(t))
}

/// The values of the codes of IQ4_NL and IQ4_XS: closer together where weights are frequent.
const NONLINEAR: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Decodes N bytes with two codes of 4 bits each: first the values of all lower halves, then those of all upper halves.
#[inline(always)]
fn halves<const N: usize>(bytes: &[u8], out: &mut [f32], low: impl Fn(f32) -> f32, high: impl Fn(f32) -> f32) {
    let (lows, highs) = out.split_at_mut(N);
    each::<N>(bytes, lows, |q| low(f32::from(q & 15)));
    each::<N>(bytes, highs, |q| high(f32::from(q >> 4)));
}

/// Decodes N bytes with one code each. The compiler knows the length of the loop.
#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (Some(bytes), Some(out)) = (bytes.first_chunk::<N>(), out.first_chunk_mut::<N>()) else { return };
    for (out, q) in out.iter_mut().zip(bytes) {
        *out = value(*q);
    }
}

crate::cpu::vectorized! {
    fn q4_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            halves::<16>(&block[2..], out, |q| d * (q - 8.0), |q| d * (q - 8.0));
        }
    }
}

crate::cpu::vectorized! {
    fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            halves::<16>(&block[4..], out, |q| d * q + m, |q| d * q + m);
        }
    }
}

crate::cpu::vectorized! {
    fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            each::<32>(&block[2..], out, |q| d * f32::from(q as i8));
        }
    }
}

crate::cpu::vectorized! {
    fn q4_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(144).zip(out.chunks_exact_mut(256)) {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            let step = |i: usize| {
                let (s, t) = scale_and_offset(&block[4..16], i);
                (d * s, m * t)
            };
            for (i, (q, out)) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
                let ((d_low, m_low), (d_high, m_high)) = (step(2 * i), step(2 * i + 1));
                halves::<32>(q, out, |q| d_low * q - m_low, |q| d_high * q - m_high);
            }
        }
    }
}

/// Decodes 16 bytes with two codes of 4 bits each. `fifth` is a word with the fifth bit of each of the 32 codes.
#[inline(always)]
fn fives(bytes: &[u8], fifth: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (Some(bytes), Some((fifth, _)), Some(out)) =
        (bytes.first_chunk::<16>(), fifth.split_first_chunk::<4>(), out.first_chunk_mut::<32>())
    else {
        return;
    };
    let fifth = u32::from_le_bytes(*fifth);
    for (j, (byte, (low, high))) in bytes.iter().zip(out_halves(out)).enumerate() {
        *low = value(f32::from(byte & 15 | ((fifth >> j & 1) << 4) as u8));
        *high = value(f32::from(byte >> 4 | ((fifth >> (j + 16) & 1) << 4) as u8));
    }
}

/// Pairs of the i-th and the (i + 16)-th of 32 values.
#[inline(always)]
fn out_halves(out: &mut [f32; 32]) -> impl Iterator<Item = (&mut f32, &mut f32)> {
    let (low, high) = out.split_at_mut(16);
    low.iter_mut().zip(high)
}

crate::cpu::vectorized! {
    fn q5_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(22).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            fives(&block[6..], &block[2..], out, |q| d * (q - 16.0));
        }
    }
}

crate::cpu::vectorized! {
    fn q5_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(24).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            fives(&block[8..], &block[4..], out, |q| d * q + m);
        }
    }
}

crate::cpu::vectorized! {
    fn q5_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(176).zip(out.chunks_exact_mut(256)) {
            let (d, m, fifth) = (f16_at(block, 0), f16_at(block, 2), &block[16..48]);
            for (i, (out, q)) in out.chunks_exact_mut(64).zip(block[48..].chunks_exact(32)).enumerate() {
                for (half, out) in out.chunks_exact_mut(32).enumerate() {
                    let which = 2 * i + half;
                    let (s, t) = scale_and_offset(&block[4..16], which);
                    let (d, m) = (d * s, m * t);
                    for ((out, q), fifth) in out.iter_mut().zip(q).zip(fifth) {
                        *out = d * f32::from(q >> (4 * half) & 15 | (fifth >> which & 1) << 4) - m;
                    }
                }
            }
        }
    }
}

crate::cpu::vectorized! {
    fn q2_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(84).zip(out.chunks_exact_mut(256)) {
            let (d, m) = (f16_at(block, 80), f16_at(block, 82));
            for (i, out) in out.chunks_exact_mut(16).enumerate() {
                let (scales, q) = (block[i], &block[16 + 32 * (i / 8) + 16 * (i % 2)..][..16]);
                let (d, m, shift) = (d * f32::from(scales & 15), m * f32::from(scales >> 4), i % 8 / 2 * 2);
                each::<16>(q, out, |q| d * f32::from(q >> shift & 3) - m);
            }
        }
    }
}

crate::cpu::vectorized! {
    fn q3_k(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(110).zip(out.chunks_exact_mut(256)) {
            let (d, packed) = (f16_at(block, 108), &block[96..108]);
            for (i, out) in out.chunks_exact_mut(16).enumerate() {
                let scale = packed[i % 8] >> (i / 8 * 4) & 15 | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
                let (d, shift) = (d * (f32::from(scale) - 32.0), i % 8 / 2 * 2);
                let (third, q) = (&block[16 * (i % 2)..][..16], &block[32 + 32 * (i / 8) + 16 * (i % 2)..][..16]);
                for ((out, q), third) in out.iter_mut().zip(q).zip(third) {
                    *out = d * (f32::from(q >> shift & 3 | (third >> (i / 2) & 1) << 2) - 4.0);
                }
            }
        }
    }
}

crate::cpu::vectorized! {
    fn iq4_nl(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            let (low, high) = out.split_at_mut(16);
            each::<16>(&block[2..], low, |q| d * NONLINEAR[usize::from(q & 15)]);
            each::<16>(&block[2..], high, |q| d * NONLINEAR[usize::from(q >> 4)]);
        }
    }
}

crate::cpu::vectorized! {
    fn iq4_xs(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(136).zip(out.chunks_exact_mut(256)) {
            let (d, upper) = (f16_at(block, 0), u16::from_le_bytes([block[2], block[3]]));
            for (i, (q, out)) in block[8..].chunks_exact(16).zip(out.chunks_exact_mut(32)).enumerate() {
                let scale = block[4 + i / 2] >> (i % 2 * 4) & 15 | ((upper >> (2 * i) & 3) << 4) as u8;
                let d = d * (f32::from(scale) - 32.0);
                let (low, high) = out.split_at_mut(16);
                each::<16>(q, low, |q| d * NONLINEAR[usize::from(q & 15)]);
                each::<16>(q, high, |q| d * NONLINEAR[usize::from(q >> 4)]);
            }
        }
    }
}

crate::cpu::vectorized! {
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

/// Writes the values of whole blocks.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.bytes(out.len()), bytes.len());
    match dtype {
        DType::Q4_0 => q4_0(bytes, out),
        DType::Q4_1 => q4_1(bytes, out),
        DType::Q8_0 => q8_0(bytes, out),
        DType::Q5_0 => q5_0(bytes, out),
        DType::Q5_1 => q5_1(bytes, out),
        DType::Q2K => q2_k(bytes, out),
        DType::Q3K => q3_k(bytes, out),
        DType::Q4K => q4_k(bytes, out),
        DType::Q5K => q5_k(bytes, out),
        DType::Iq4Nl => iq4_nl(bytes, out),
        DType::Iq4Xs => iq4_xs(bytes, out),
        DType::Q6K => q6_k(bytes, out),
        DType::Nf4(rounding) => four_bit::decode(&four_bit::NF4, rounding, bytes, out),
        DType::Fp4(rounding) => four_bit::decode(&four_bit::FP4, rounding, bytes, out),
        DType::F32 | DType::Bf16 | DType::F16 | DType::F64 => unreachable!("not a quantized type"),
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
