//! Quantized weights on a GPU. They are packed into planes when they are uploaded (see [`planes`]), and kernels decode
//! four values at a time where they read them, so a weight takes no more memory than in its file.
use cubecl::prelude::*;

use super::tally::Purpose;
use super::{Backend, Four, Gpu, GpuBuffer, Lifetime};
use crate::quantized::planes::{self, Packing, Scale};
use crate::{DType, DeviceKind, Error, Result, Rounding};

/// 2^-24, the least positive f16, and its inverse.
const LEAST_F16: f32 = 5.960_464_5e-8;
const INVERSE_OF_LEAST_F16: f32 = 16_777_216.0;

impl<R: Backend> Gpu<R> {
    /// Memory with the values of a quantized CPU tensor, in planes: `len` values of a type, from their blocks.
    pub(super) fn upload_quantized(
        &self,
        dtype: DType,
        len: usize,
        blocks: &[u8],
        lifetime: Lifetime,
    ) -> Result<GpuBuffer> {
        let words = planes::words(dtype, len);
        self.check_words(len, words)?;
        if R::KIND == DeviceKind::Plan {
            // The CPU leaves the blocks as they are.
            let size = if self.tally().plans_cpu() { blocks.len() } else { 4 * words };
            let handle = self.take_sized(size, lifetime, || self.client().empty(size))?;
            return Ok(self.buffer(handle, len, 0, dtype, Purpose::Upload));
        }
        let Some(words) = planes::pack(dtype, blocks) else {
            return Err(Error::DType { op: "upload", name: "tensor", expected: "a quantized type", got: dtype });
        };
        let handle = self.take(bytemuck::cast_slice(&words), lifetime)?;
        Ok(self.buffer(handle, len, 0, dtype, Purpose::Upload))
    }

    /// The values of a quantized buffer.
    pub(super) fn read_quantized(&self, buffer: &GpuBuffer) -> Result<Vec<f32>> {
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&self.read_bytes(buffer)?);
        Ok(planes::values(buffer.dtype, &words, buffer.len()))
    }
}

/// The word at an index. Kernels for other types are generic over the same array, which then holds no words.
#[cube]
fn word<W: Numeric, N: Size>(words: &Array<Vector<W, N>>, index: usize) -> u32 {
    u32::cast_from(words[index])
}

/// The f16 with these bits, as f32.
#[cube]
fn half(bits: u32) -> f32 {
    let exponent = (bits >> 10) & 31;
    let mantissa = bits & 1023;
    let widened = select(exponent == 31, 255u32, exponent + 112);
    let normal = f32::reinterpret((widened << 23) | (mantissa << 13));
    let subnormal = f32::cast_from(mantissa) * LEAST_F16;
    let magnitude = select(exponent == 0, subnormal, normal);
    select((bits & 0x8000) == 0, magnitude, -magnitude)
}

/// The value rounded to a type.
#[cube]
fn rounded(value: f32, #[comptime] rounding: Rounding) -> f32 {
    let bits = u32::reinterpret(value);
    let mut result = value;
    if comptime!(rounding == Rounding::Bf16) {
        result = f32::reinterpret((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000u32);
    }
    if comptime!(rounding == Rounding::F16) {
        let normal = f32::reinterpret((bits + 0xfff + ((bits >> 13) & 1)) & 0xffff_e000u32);
        // Subnormal values are multiples of the least one. Ties do not matter at this size.
        let subnormal = f32::floor(value * INVERSE_OF_LEAST_F16 + 0.5) * LEAST_F16;
        result = select((bits & 0x7fff_ffff) < 0x3880_0000, subnormal, normal);
    }
    result
}

/// Decodes four adjacent values of a row, in a matrix of `len` values. `first`, the index of the first value, is a
/// multiple of 4.
#[cube]
pub(crate) fn decode<W: Numeric, N: Size>(
    words: &Array<Vector<W, N>>,
    first: usize,
    len: usize,
    #[comptime] packing: Packing,
) -> Four {
    let low = comptime!(packing.low);
    let codes = word::<W, N>(words, first / comptime!(32 / low)) >> (first % comptime!(32 / low) * low) as u32;
    // The start of each plane.
    let high_plane = len / 32 * low;
    let scale_plane = high_plane + len / 32 * comptime!(packing.high);
    let scales = len / comptime!(packing.scaled);
    let mut step_plane = scale_plane + scales;
    if comptime!(packing.scale == Scale::F16) {
        step_plane = scale_plane + scales.div_ceil(2);
    }
    let mut table = step_plane;
    let mut high = 0u32;
    if comptime!(packing.high > 0) {
        let bits = comptime!(packing.high);
        high = word::<W, N>(words, high_plane + first / comptime!(32 / bits))
            >> (first % comptime!(32 / bits) * bits) as u32;
    }
    // The scale d and the offset m of the four values.
    let which = first / comptime!(packing.scaled);
    let mut d = 0.0f32;
    let mut m = 0.0f32;
    if comptime!(packing.scale == Scale::F32) {
        d = f32::reinterpret(word::<W, N>(words, scale_plane + which));
    }
    if comptime!(packing.scale == Scale::F16) {
        d = half((word::<W, N>(words, scale_plane + which / 2) >> (which % 2 * 16) as u32) & 0xffff);
    }
    if comptime!(packing.scale == Scale::F16AndOffset) {
        let both = word::<W, N>(words, scale_plane + which);
        d = half(both & 0xffff);
        m = half(both >> 16);
    }
    if comptime!(packing.steps.is_some()) {
        let steps = comptime!(packing.steps.unwrap());
        let which = first / comptime!(steps.values);
        if comptime!(steps.of_offset) {
            let both = word::<W, N>(words, step_plane + which / 2) >> (which % 2 * 16) as u32;
            d *= f32::cast_from(both & 255);
            m = -m * f32::cast_from((both >> 8) & 255);
            table = step_plane + len / comptime!(2 * steps.values);
        } else {
            let step = (word::<W, N>(words, step_plane + which / 4) >> (which % 4 * 8) as u32) & 255;
            d *= f32::cast_from(step) - comptime!(steps.zero as f32);
            table = step_plane + len / comptime!(4 * steps.values);
        }
    }
    // x = d (q - zero) + m, or d v(q) + m, for each code q.
    let mut four = Four::new(0.0f32);
    #[unroll]
    for e in 0..4usize {
        let lower = (codes >> comptime!((e * low) as u32)) & comptime!((1u32 << low) - 1);
        let mut code = lower;
        if comptime!(packing.high > 0) {
            let upper = (high >> comptime!((e * packing.high) as u32)) & comptime!((1u32 << packing.high) - 1);
            code = lower | (upper << comptime!(low as u32));
        }
        let mut value = f32::cast_from(code) - comptime!(packing.zero as f32);
        if comptime!(packing.table) {
            value = f32::reinterpret(word::<W, N>(words, table + code as usize));
        }
        four[e] = rounded(d * value + m, packing.rounding);
    }
    four
}
