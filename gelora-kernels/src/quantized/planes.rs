//! Quantized weights as GPU kernels read them: codes and scales apart, in 32-bit words.
//!
//! One buffer holds these planes one after the other, each from a whole word on: the lower bits of all codes; their
//! upper bits, if codes have 3, 5 or 6 bits; one scale for every 32, 64 or 256 values; in the K types one step of the
//! scale for every 16 or 32 values; and the 16 values of a table, if codes are not integers. Codes stand in the order
//! of the matrix's values, so four values that are adjacent in a row lie in one word of each plane.
//!
//! With scale d, offset m, code q, steps s and t and a table v, a value x is d (q - zero) + m, d s (q - zero) - m t, or
//! the same with v(q) in place of q - zero.

use rayon::prelude::*;

use super::{NONLINEAR, f16_at, steps_of};
use crate::{DType, Rounding, four_bit};

/// The layout of a type's values in planes: a comptime setting of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packing {
    /// Bits of a code in the first plane: 2, 4 or 8.
    pub(crate) low: usize,
    /// Bits of a code in the second plane: 0, 1 or 2.
    pub(crate) high: usize,
    /// The code of the value 0, in types without a table.
    pub(crate) zero: usize,
    /// Whether codes select values of a table.
    pub(crate) table: bool,
    /// The type of scales.
    pub(crate) scale: Scale,
    /// Number of values that share a scale.
    pub(crate) scaled: usize,
    /// Steps of the scale, in the K types.
    pub(crate) steps: Option<Steps>,
    /// The type that values are rounded to.
    pub(crate) rounding: Rounding,
}

/// The type of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scale {
    /// f16, two in a word.
    F16,
    /// Two f16 in a word: the scale in the lower half, the offset in the upper half.
    F16AndOffset,
    /// f32.
    F32,
}

/// Steps of a scale, integers of 8 bits: the factors of a scale for groups of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Steps {
    /// Number of values that share a step.
    pub(crate) values: usize,
    /// The step of the factor 0.
    pub(crate) zero: usize,
    /// Whether the offset has steps too. Each follows the step of the scale.
    pub(crate) of_offset: bool,
}

/// Bytes of each plane, in the order of the planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes([usize; 5]);

impl Packing {
    /// The layout of a quantized type; None for other types.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let plain = Self {
            low: 4,
            high: 0,
            zero: 0,
            table: false,
            scale: Scale::F16,
            scaled: 32,
            steps: None,
            rounding: Rounding::F32,
        };
        let with_offset = Self { scale: Scale::F16AndOffset, ..plain };
        let steps = |values, zero| Some(Steps { values, zero, of_offset: false });
        let k = Self { scaled: 256, ..plain };
        let k_with_offset = |values| {
            let steps = Some(Steps { values, zero: 0, of_offset: true });
            Self { scale: Scale::F16AndOffset, scaled: 256, steps, ..plain }
        };
        Some(match dtype {
            DType::Q4_0 => Self { zero: 8, ..plain },
            DType::Q4_1 => with_offset,
            DType::Q5_0 => Self { high: 1, zero: 16, ..plain },
            DType::Q5_1 => Self { high: 1, ..with_offset },
            DType::Q8_0 => Self { low: 8, zero: 128, ..plain },
            DType::Q2K => Self { low: 2, ..k_with_offset(16) },
            DType::Q3K => Self { low: 2, high: 1, zero: 4, steps: steps(16, 32), ..k },
            DType::Q4K => k_with_offset(32),
            DType::Q5K => Self { high: 1, ..k_with_offset(32) },
            DType::Q6K => Self { high: 2, zero: 32, steps: steps(16, 128), ..k },
            DType::Iq4Nl => Self { table: true, ..plain },
            DType::Iq4Xs => Self { table: true, steps: steps(32, 32), ..k },
            DType::Nf4(rounding) | DType::Fp4(rounding) => {
                Self { table: true, scale: Scale::F32, scaled: 64, rounding, ..plain }
            }
            DType::F32 | DType::Bf16 | DType::F16 | DType::F64 => return None,
        })
    }

    /// Bytes of a scale.
    const fn scale_bytes(&self) -> usize {
        if let Scale::F16 = self.scale { 2 } else { 4 }
    }

    /// Bytes of the planes of `len` values in whole blocks.
    fn sizes(&self, len: usize) -> Sizes {
        let steps = self.steps.map_or(0, |s| len / s.values * if s.of_offset { 2 } else { 1 });
        let scales = len / self.scaled * self.scale_bytes();
        Sizes([len / 8 * self.low, len / 8 * self.high, scales, steps, if self.table { 64 } else { 0 }])
    }

    /// Number of words of a buffer of `len` values.
    pub(crate) fn words(&self, len: usize) -> usize {
        self.sizes(len).0.iter().map(|bytes| bytes.div_ceil(4)).sum()
    }
}

/// Number of 32-bit words in a GPU buffer of `len` values. A type without planes has one word for each value.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn words(dtype: DType, len: usize) -> usize {
    Packing::of(dtype).map_or(len, |packing| packing.words(len))
}

/// One decoded block.
struct Block {
    codes: [u8; 256],
    scale: u32,
    steps: [u8; 32],
}

/// The planes of a matrix, from its blocks; None for unquantized types.
pub(crate) fn pack(dtype: DType, bytes: &[u8]) -> Option<Vec<u32>> {
    let packing = Packing::of(dtype)?;
    let (values, size) = dtype.block();
    let len = bytes.len() / size * values;
    let mut words = vec![0u32; packing.words(len)];
    let Sizes(sizes) = packing.sizes(len);
    let mut rest: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut planes = sizes.map(|bytes| {
        let (plane, others) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(4));
        rest = others;
        &mut plane[..bytes]
    });
    if packing.table {
        planes[4].copy_from_slice(bytemuck::cast_slice(table(dtype)));
    }
    // Split the blocks into tasks, and each plane into the parts that the tasks write.
    const TASK: usize = 64;
    let Sizes(shares) = packing.sizes(TASK * values);
    let mut tasks = Vec::with_capacity(len / values / TASK + 1);
    for blocks in bytes.chunks(TASK * size) {
        let mut share = |plane: usize| {
            let all = std::mem::take(&mut planes[plane]);
            let (taken, others) = all.split_at_mut(shares[plane].min(all.len()));
            planes[plane] = others;
            taken
        };
        tasks.push((blocks, [share(0), share(1), share(2), share(3)]));
    }
    tasks.into_par_iter().for_each(|(blocks, [low, high, scales, steps])| {
        let mut block = Block { codes: [0; 256], scale: 0, steps: [0; 32] };
        let mut steps = steps.chunks_exact_mut((shares[3] / TASK).max(1));
        for (i, (bytes, scale)) in blocks.chunks_exact(size).zip(scales.chunks_exact_mut(shares[2] / TASK)).enumerate()
        {
            decode_block(dtype, bytes, &mut block);
            scale.copy_from_slice(&block.scale.to_le_bytes()[..scale.len()]);
            if let Some(steps) = steps.next() {
                steps.copy_from_slice(&block.steps[..steps.len()]);
            }
            for (j, code) in block.codes[..values].iter().enumerate() {
                let index = i * values + j;
                put(low, packing.low, index, code & low_mask(packing.low));
                if packing.high > 0 {
                    put(high, packing.high, index, code >> packing.low);
                }
            }
        }
    });
    Some(words)
}

const fn low_mask(bits: usize) -> u8 {
    (0xff >> (8 - bits)) as u8
}

/// Writes the bits of the code with index `index` into a plane.
fn put(plane: &mut [u8], bits: usize, index: usize, code: u8) {
    plane[index * bits / 8] |= code << (index * bits % 8);
}

/// The 16 values that the codes of a type with a table select.
fn table(dtype: DType) -> &'static [f32; 16] {
    four_bit::table(dtype).map_or(&NONLINEAR, |(table, _)| table)
}

/// The values of a buffer that [`pack`] made, after it was read back from a device.
pub(crate) fn values(dtype: DType, words: &[u32], len: usize) -> Vec<f32> {
    let Some(packing) = Packing::of(dtype) else { return Vec::new() };
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let mut begin = 0;
    let [low, high, scales, steps, _] = packing.sizes(len).0.map(|size| {
        let plane = &bytes[begin..begin + size];
        begin += size.next_multiple_of(4);
        plane
    });
    let bits = |plane: &[u8], bits: usize, index: usize| plane[index * bits / 8] >> (index * bits % 8) & low_mask(bits);
    let value = |index: usize| {
        let mut code = bits(low, packing.low, index);
        if packing.high > 0 {
            code |= bits(high, packing.high, index) << packing.low;
        }
        let integer = f32::from(code) - packing.zero as f32;
        let v = if packing.table { table(dtype)[usize::from(code)] } else { integer };
        let scale = &scales[index / packing.scaled * packing.scale_bytes()..];
        let (d, m) = match packing.scale {
            Scale::F32 => (f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]), 0.0),
            Scale::F16 => (f16_at(scale, 0), 0.0),
            Scale::F16AndOffset => (f16_at(scale, 0), f16_at(scale, 2)),
        };
        let x = match packing.steps {
            None if packing.scale == Scale::F16AndOffset => d * v + m,
            None => d * v,
            Some(Steps { values, of_offset: true, .. }) => {
                let [s, t] = [0, 1].map(|i| f32::from(steps[index / values * 2 + i]));
                d * s * v - m * t
            }
            Some(Steps { values, zero, .. }) => d * (f32::from(steps[index / values]) - zero as f32) * v,
        };
        four_bit::rounded(x, packing.rounding)
    };
    (0..len).into_par_iter().with_min_len(1 << 14).map(value).collect()
}

/// Unpacks two codes from each byte: first the lower halves of all bytes, then the upper halves.
fn halves(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Adds the fifth bits of 32 codes.
fn fives(word: &[u8], codes: &mut [u8]) {
    for (j, code) in codes[..32].iter_mut().enumerate() {
        *code |= (word[j / 8] >> (j % 8) & 1) << 4;
    }
}

/// A little-endian word of two or four bytes.
fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// Decodes codes, scale and steps of a block. The parent module describes the layouts of blocks.
fn decode_block(dtype: DType, bytes: &[u8], out: &mut Block) {
    let Block { codes, scale, steps } = out;
    let pairs = |steps: &mut [u8; 32]| {
        for i in 0..8 {
            (steps[2 * i], steps[2 * i + 1]) = steps_of(&bytes[4..16], i);
        }
    };
    match dtype {
        DType::Q4_0 | DType::Iq4Nl => {
            *scale = word(&bytes[..2]);
            halves(&bytes[2..18], codes);
        }
        DType::Q4_1 => {
            *scale = word(&bytes[..4]);
            halves(&bytes[4..20], codes);
        }
        DType::Q5_0 => {
            *scale = word(&bytes[..2]);
            halves(&bytes[6..22], codes);
            fives(&bytes[2..6], codes);
        }
        DType::Q5_1 => {
            *scale = word(&bytes[..4]);
            halves(&bytes[8..24], codes);
            fives(&bytes[4..8], codes);
        }
        DType::Q8_0 => {
            *scale = word(&bytes[..2]);
            codes.iter_mut().zip(&bytes[2..34]).for_each(|(code, q)| *code = q ^ 0x80);
        }
        DType::Q4K | DType::Q5K => {
            *scale = word(&bytes[..4]);
            pairs(steps);
            let first = if dtype == DType::Q4K { 16 } else { 48 };
            for (q, codes) in bytes[first..].chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
                halves(q, codes);
            }
            if dtype == DType::Q5K {
                for (i, code) in codes.iter_mut().enumerate() {
                    *code |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
        }
        DType::Q2K | DType::Q3K => {
            let (first, scale_offset) = if dtype == DType::Q2K { (16, 80) } else { (32, 108) };
            *scale = word(&bytes[scale_offset..]);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = bytes[first + 32 * (i / 128) + i % 32] >> (i % 128 / 32 * 2) & 3;
            }
            for i in 0..16 {
                if dtype == DType::Q2K {
                    (steps[2 * i], steps[2 * i + 1]) = (bytes[i] & 15, bytes[i] >> 4);
                } else {
                    let packed = &bytes[96..108];
                    steps[i] = packed[i % 8] >> (i / 8 * 4) & 15 | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
                }
            }
            if dtype == DType::Q3K {
                for (i, code) in codes.iter_mut().enumerate() {
                    *code |= (bytes[i % 32] >> (i / 32) & 1) << 2;
                }
            }
        }
        DType::Q6K => {
            *scale = word(&bytes[208..]);
            for (i, code) in codes.iter_mut().enumerate() {
                let (half, part, l) = (i / 128, i % 128 / 32, i % 32);
                let low = bytes[64 * half + 32 * (part % 2) + l] >> (part / 2 * 4) & 15;
                *code = low | (bytes[128 + 32 * half + l] >> (2 * part) & 3) << 4;
            }
            steps.iter_mut().zip(&bytes[192..208]).for_each(|(step, s)| *step = s ^ 0x80);
        }
        DType::Iq4Xs => {
            *scale = word(&bytes[..2]);
            let upper = word(&bytes[2..4]);
            for (i, (q, codes)) in bytes[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)).enumerate() {
                steps[i] = bytes[4 + i / 2] >> (i % 2 * 4) & 15 | ((upper >> (2 * i) & 3) << 4) as u8;
                halves(q, codes);
            }
        }
        DType::Nf4(_) | DType::Fp4(_) => {
            *scale = word(&bytes[..4]);
            for (codes, byte) in codes.chunks_exact_mut(2).zip(&bytes[4..]) {
                (codes[0], codes[1]) = (byte >> 4, byte & 15);
            }
        }
        DType::F32 | DType::Bf16 | DType::F16 | DType::F64 => {} // they have no packing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear::cases::QUANTIZED;
    use crate::verify::random_quantized;

    #[test]
    fn what_is_packed_has_the_values_of_the_blocks() -> crate::Result<()> {
        for dtype in QUANTIZED {
            // More blocks than a task has, and an odd number of them, so that scales of two bytes end within a word.
            for shape in [[1, dtype.block().0], [67, 768]] {
                let t = random_quantized(shape, dtype, 1);
                let words = pack(dtype, t.bytes()?).expect("a quantized type");
                assert_eq!(words.len(), Packing::of(dtype).expect("as above").words(t.len()));
                assert_eq!(values(dtype, &words, t.len()), t.to_vec()?, "{dtype}");
            }
        }
        Ok(())
    }

    #[test]
    fn bits_a_value_stay_few() {
        let bits = |dtype| 32.0 * Packing::of(dtype).map_or(32, |p| p.words(1 << 20)) as f64 / f64::from(1 << 20);
        let near = |dtype, want: f64| assert!((bits(dtype) - want).abs() < 0.01, "{dtype}: {}", bits(dtype));
        near(DType::Q4_0, 4.5);
        near(DType::Nf4(Rounding::Bf16), 4.5);
        near(DType::Q4K, 4.625);
        near(DType::Q6K, 6.5625);
        near(DType::Q8_0, 8.5);
    }
}
