//! Weights in blocks of few bits, as GGUF files have them: of each block a scale, or a scale and an offset, and small integers.
//!
//! With scale d and offset m in f16: Q4_0 x = d (q - 8), Q4_1 x = d q + m, Q8_0 x = d q, 32 values a block; Q4_K x = d s q -
//! m t with a scale s and an offset t of 6 bits for each 32 of 256 values; Q6_K x = d s (q - 32) with a scale s of 8 bits for
//! each 16 of 256 values. A row is a whole number of blocks.
//!
//! Source: the blocks of ggml's `ggml-common.h`, in the order in which `ggml-quants.c` takes them apart.

use half::f16;

use crate::DType;

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

crate::cpu::vectorised! {
    fn q4_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            let (low, high) = out.split_at_mut(16);
            for ((q, low), high) in block[2..].iter().zip(low).zip(high) {
                *low = d * ((q & 15) as i32 - 8) as f32;
                *high = d * ((q >> 4) as i32 - 8) as f32;
            }
        }
    }
}

crate::cpu::vectorised! {
    fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            let (low, high) = out.split_at_mut(16);
            for ((q, low), high) in block[4..].iter().zip(low).zip(high) {
                *low = d * (q & 15) as f32 + m;
                *high = d * (q >> 4) as f32 + m;
            }
        }
    }
}

crate::cpu::vectorised! {
    fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
            let d = f16_at(block, 0);
            for (q, out) in block[2..].iter().zip(out) {
                *out = d * f32::from(*q as i8);
            }
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
                let (low, high) = out.split_at_mut(32);
                for ((q, low), high) in q.iter().zip(low).zip(high) {
                    *low = d_low * (q & 15) as f32 - m_low;
                    *high = d_high * (q >> 4) as f32 - m_high;
                }
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
