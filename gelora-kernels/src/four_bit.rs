//! The 4-bit weights of bitsandbytes: x = table(code) absmax. A code of 4 bits selects one of 16 table values, and a
//! block of adjacent values shares absmax, its largest magnitude.
//!
//! A matrix of [`DType::Nf4`] or [`DType::Fp4`] has blocks of 64 values: absmax as a little-endian
//! f32, then 32 bytes with two codes each, the first code in the upper half. bitsandbytes itself stores the codes of a
//! whole tensor in one array and all absmax in another; [`blocks`] interleaves the two.
//! Source: Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs" (arXiv 2305.14314), section 3 and
//! appendix E; the tables and the order of codes are those of bitsandbytes' `functional.get_4bit_type` and
//! `csrc/kernels.cu`.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{DType, Error, Result, Rounding};

/// The values of NF4: quantiles of the normal distribution, scaled to [-1, 1], and zero.
#[allow(clippy::excessive_precision)] // as bitsandbytes writes them
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The values of FP4: a sign, two bits of exponent and one bit of mantissa, scaled to [-1, 1].
pub const FP4: [f32; 16] = {
    const UNSCALED: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let (mut all, mut i) = ([0.0; 16], 0);
    while i < 8 {
        all[i] = UNSCALED[i] / 12.0;
        all[i + 8] = -(UNSCALED[i] / 12.0);
        i += 1;
    }
    all
};

/// Number of values in a block of [`DType::Nf4`], bytes of their codes, and bytes of the block.
const VALUES: usize = 64;
const CODES: usize = VALUES / 2;
const BYTES: usize = 4 + CODES;

/// The table and the rounding of a 4-bit type; None for other types.
pub(crate) fn table(dtype: DType) -> Option<(&'static [f32; 16], Rounding)> {
    match dtype {
        DType::Nf4(rounding) => Some((&NF4, rounding)),
        DType::Fp4(rounding) => Some((&FP4, rounding)),
        _ => None,
    }
}

/// The value rounded to a type, as f32.
#[inline(always)]
pub(crate) fn rounded(value: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::F32 => value,
        Rounding::Bf16 => bf16::from_f32(value).to_f32(),
        Rounding::F16 => f16::from_f32(value).to_f32(),
    }
}

/// The values of the 16 codes in a block with this absmax.
#[inline(always)]
fn block_values(table: &[f32; 16], absmax: f32, rounding: Rounding) -> [f32; 16] {
    table.map(|value| rounded(value * absmax, rounding))
}

/// Writes the values of whole blocks.
pub(crate) fn decode(table: &[f32; 16], rounding: Rounding, bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(BYTES).zip(out.chunks_exact_mut(VALUES)) {
        let values = block_values(table, f32::from_le_bytes([block[0], block[1], block[2], block[3]]), rounding);
        for (out, byte) in out.chunks_exact_mut(2).zip(&block[4..]) {
            out[0] = values[usize::from(byte >> 4)];
            out[1] = values[usize::from(byte & 15)];
        }
    }
}

/// Whether a matrix with `cols` columns and quantization blocks of `block` values can be stored in blocks of 64.
pub fn fits(cols: usize, block: usize) -> bool {
    cols.is_multiple_of(VALUES) && block.is_multiple_of(VALUES)
}

/// The bytes of a matrix of [`DType::Nf4`] or [`DType::Fp4`], from the codes of all values (two a
/// byte) and the absmax of every `block` values. Only the last block may be shorter.
///
/// # Errors
/// If `block` is not a multiple of 64, the codes do not fill blocks of 64, or the number of scales is not that of the
/// blocks.
///
/// ```
/// use gelora_kernels::{DType, Rounding, Tensor, four_bit};
///
/// let codes = [0x7f; 32]; // 0.0, 1.0, 0.0, 1.0, ...
/// let bytes = four_bit::blocks(&codes, &[3.0], 64)?;
/// let end = bytes.len();
/// let t = Tensor::from_bytes(std::sync::Arc::new(bytes), 0..end, DType::Nf4(Rounding::F32), [1, 64])?;
/// assert_eq!(t.to_vec()?[..4], [0.0, 3.0, 0.0, 3.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn blocks(codes: &[u8], absmax: &[f32], block: usize) -> Result<Vec<u8>> {
    check(2 * codes.len(), absmax, block)?;
    if !fits(2 * codes.len(), block) {
        return Err(error(format!("{} values in blocks of {block} are no blocks of {VALUES}", 2 * codes.len())));
    }
    let mut bytes = vec![0; codes.len() / CODES * BYTES];
    bytes.par_chunks_exact_mut(BYTES).zip(codes.par_chunks_exact(CODES)).enumerate().for_each(|(i, (out, codes))| {
        out[..4].copy_from_slice(&absmax[i * VALUES / block].to_le_bytes());
        out[4..].copy_from_slice(codes);
    });
    Ok(bytes)
}

/// The values in f32 of a matrix that cannot be stored in blocks of 64, from its codes and the absmax of every `block`
/// values. There are two codes a byte; the last half byte may be unused.
///
/// # Errors
/// If the type does not have 4 bits, or the number of codes or scales is not that of the values.
pub fn values(dtype: DType, codes: &[u8], absmax: &[f32], block: usize, count: usize) -> Result<Vec<f32>> {
    check(count, absmax, block)?;
    let Some((table, rounding)) = table(dtype) else {
        return Err(Error::DType { op: "four_bit", name: "type", expected: "nf4 or fp4", got: dtype });
    };
    if codes.len() != count.div_ceil(2) {
        return Err(error(format!("{count} values need {} bytes of codes, got {}", count.div_ceil(2), codes.len())));
    }
    let mut out = vec![0.0; count];
    out.par_chunks_mut(block).zip(absmax).enumerate().for_each(|(i, (out, absmax))| {
        let values = block_values(table, *absmax, rounding);
        for (j, out) in out.iter_mut().enumerate() {
            let index = i * block + j;
            *out = values[usize::from(codes[index / 2] >> (4 * (1 - index % 2)) & 15)];
        }
    });
    Ok(out)
}

/// Checks that there is one scale for each block.
fn check(count: usize, absmax: &[f32], block: usize) -> Result<()> {
    if block == 0 || absmax.len() != count.div_ceil(block) {
        return Err(error(format!("{count} values in blocks of {block} do not have {} scales", absmax.len())));
    }
    Ok(())
}

fn error(message: String) -> Error {
    Error::Value { op: "four_bit", message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Random codes and scales, and their values by the formula.
    fn random(count: usize, block: usize, table: &[f32; 16]) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let mut stream = Stream::new(7);
        let codes: Vec<u8> = (0..count.div_ceil(2)).map(|_| stream.bits() as u8).collect();
        let absmax: Vec<f32> = (0..count.div_ceil(block)).map(|_| stream.uniform() as f32).collect();
        let code = |i: usize| if i.is_multiple_of(2) { codes[i / 2] / 16 } else { codes[i / 2] % 16 };
        let want = (0..count).map(|i| table[usize::from(code(i))] * absmax[i / block]).collect();
        (codes, absmax, want)
    }

    #[test]
    fn both_ways_of_reading_give_the_products_of_table_and_scale() -> Result<()> {
        for (dtype, table) in [(DType::Nf4(Rounding::F32), &NF4), (DType::Fp4(Rounding::F32), &FP4)] {
            let (codes, absmax, want) = random(384, 128, table);
            let bytes = blocks(&codes, &absmax, 128)?;
            let mut got = vec![0.0; 384];
            decode(table, Rounding::F32, &bytes, &mut got);
            assert_eq!(got, want);
            let (codes, absmax, want) = random(3 * 33, 32, table);
            assert_eq!(values(dtype, &codes, &absmax, 32, 3 * 33)?, want);
        }
        Ok(())
    }

    #[test]
    fn values_are_rounded_to_the_type_of_the_model() -> Result<()> {
        let (codes, absmax, want) = random(128, 64, &NF4);
        for (rounding, dtype) in [(Rounding::Bf16, DType::Bf16), (Rounding::F16, DType::F16)] {
            let quantized = DType::Nf4(rounding);
            let got = values(quantized, &codes, &absmax, 64, 128)?;
            let rounded = crate::Tensor::from_vec(want.clone(), [128])?.to_dtype(dtype)?;
            assert_eq!(quantized.unquantized(), dtype);
            assert_eq!(got, rounded.to_vec()?);
            assert_ne!(got, want);
        }
        Ok(())
    }

    #[test]
    fn sizes_that_do_not_fit() {
        let message = |result: Result<Vec<u8>>| result.unwrap_err().to_string();
        assert_eq!(message(blocks(&[0; 32], &[1.0], 32)), "four_bit: 64 values in blocks of 32 do not have 1 scales");
        assert!(message(blocks(&[0; 16], &[1.0], 32)).contains("32 values in blocks of 32 are no blocks of 64"));
        assert!(message(blocks(&[0; 32], &[1.0, 1.0], 0)).contains("blocks of 0"));
        let short = values(DType::Nf4(Rounding::F32), &[0; 3], &[1.0], 64, 7).unwrap_err().to_string();
        assert_eq!(short, "four_bit: 7 values need 4 bytes of codes, got 3");
        assert!(values(DType::F32, &[0; 4], &[1.0], 64, 7).unwrap_err().to_string().contains("nf4 or fp4"));
    }
}
