//! Vectors of small integers that are widened from bytes, for products with quantized weights.

use super::simd::{Portable, Vector};

/// A vector of f32 lanes that is made from the codes of quantized weights.
///
/// # Safety
/// As [`Vector`]. Methods that take a pointer read LANES bytes, or as many as they say.
pub(crate) unsafe trait Codes: Vector {
    /// As many lanes of 32-bit integers.
    type Integers: Copy;

    /// LANES bytes.
    unsafe fn bytes(p: *const u8) -> Self::Integers;
    /// LANES bytes with a sign.
    unsafe fn signed_bytes(p: *const u8) -> Self::Integers;
    /// a & mask.
    unsafe fn and(a: Self::Integers, mask: i32) -> Self::Integers;
    /// a | b.
    unsafe fn or(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// a + n.
    unsafe fn plus(a: Self::Integers, n: i32) -> Self::Integers;
    /// a << bits.
    unsafe fn left(a: Self::Integers, bits: usize) -> Self::Integers;
    /// a >> bits, for a of at least 0.
    unsafe fn right(a: Self::Integers, bits: usize) -> Self::Integers;
    /// Bit l of a word in lane l: 0 or 1.
    unsafe fn bits(word: u32) -> Self::Integers;
    /// The integers as f32.
    unsafe fn to_f32(a: Self::Integers) -> Self;
    /// The two f16 in four bytes.
    unsafe fn two_f16(p: *const u8) -> [f32; 2];
    /// The sum of the lanes.
    unsafe fn sum(self) -> f32;
}

// SAFETY: no instructions beyond the target's.
unsafe impl Codes for Portable {
    type Integers = [i32; 4];

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [i32; 4] {
        // SAFETY: valid for four bytes by the contract.
        unsafe { p.cast::<[u8; 4]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn signed_bytes(p: *const u8) -> [i32; 4] {
        // SAFETY: as above.
        unsafe { p.cast::<[i8; 4]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn and(a: [i32; 4], mask: i32) -> [i32; 4] {
        a.map(|a| a & mask)
    }

    #[inline(always)]
    unsafe fn or(a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        std::array::from_fn(|l| a[l] | b[l])
    }

    #[inline(always)]
    unsafe fn plus(a: [i32; 4], n: i32) -> [i32; 4] {
        a.map(|a| a + n)
    }

    #[inline(always)]
    unsafe fn left(a: [i32; 4], bits: usize) -> [i32; 4] {
        a.map(|a| a << bits)
    }

    #[inline(always)]
    unsafe fn right(a: [i32; 4], bits: usize) -> [i32; 4] {
        a.map(|a| a >> bits)
    }

    #[inline(always)]
    unsafe fn bits(word: u32) -> [i32; 4] {
        [0, 1, 2, 3].map(|l| (word >> l & 1) as i32)
    }

    #[inline(always)]
    unsafe fn to_f32(a: [i32; 4]) -> Self {
        Self(a.map(|a| a as f32))
    }

    #[inline(always)]
    unsafe fn two_f16(p: *const u8) -> [f32; 2] {
        // SAFETY: valid for four bytes by the contract.
        let bytes = unsafe { p.cast::<[u8; 4]>().read() };
        [0, 2].map(|i| crate::quantized::f16_at(&bytes, i))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Codes;

    /// The two f16 in four bytes, by the instruction of F16C.
    #[inline(always)]
    unsafe fn two_f16(p: *const u8) -> [f32; 2] {
        // SAFETY: valid for four bytes by the contract of the callers; Level::Avx2 has F16C.
        let both = unsafe { _mm_cvtph_ps(_mm_cvtsi32_si128(p.cast::<i32>().read_unaligned())) };
        // SAFETY: AVX.
        unsafe { [_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))] }
    }

    // SAFETY: the instructions are those of AVX-512F, and of F16C.
    #[allow(clippy::undocumented_unsafe_blocks)] // each is one or two instructions under the trait's contract
    unsafe impl Codes for __m512 {
        type Integers = __m512i;

        #[inline(always)]
        unsafe fn bytes(p: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
        }

        #[inline(always)]
        unsafe fn signed_bytes(p: *const u8) -> __m512i {
            unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
        }

        #[inline(always)]
        unsafe fn and(a: __m512i, mask: i32) -> __m512i {
            unsafe { _mm512_and_si512(a, _mm512_set1_epi32(mask)) }
        }

        #[inline(always)]
        unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_or_si512(a, b) }
        }

        #[inline(always)]
        unsafe fn plus(a: __m512i, n: i32) -> __m512i {
            unsafe { _mm512_add_epi32(a, _mm512_set1_epi32(n)) }
        }

        // Where the count is a constant, the compiler takes the instruction for it.
        #[inline(always)]
        unsafe fn left(a: __m512i, bits: usize) -> __m512i {
            unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn right(a: __m512i, bits: usize) -> __m512i {
            unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn bits(word: u32) -> __m512i {
            unsafe {
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                Self::and(_mm512_srlv_epi32(_mm512_set1_epi32(word as i32), lanes), 1)
            }
        }

        #[inline(always)]
        unsafe fn to_f32(a: __m512i) -> Self {
            unsafe { _mm512_cvtepi32_ps(a) }
        }

        #[inline(always)]
        unsafe fn two_f16(p: *const u8) -> [f32; 2] {
            unsafe { two_f16(p) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self) }
        }
    }

    // SAFETY: the instructions are those of AVX2 and F16C.
    #[allow(clippy::undocumented_unsafe_blocks)] // as above
    unsafe impl Codes for __m256 {
        type Integers = __m256i;

        #[inline(always)]
        unsafe fn bytes(p: *const u8) -> __m256i {
            unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
        }

        #[inline(always)]
        unsafe fn signed_bytes(p: *const u8) -> __m256i {
            unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
        }

        #[inline(always)]
        unsafe fn and(a: __m256i, mask: i32) -> __m256i {
            unsafe { _mm256_and_si256(a, _mm256_set1_epi32(mask)) }
        }

        #[inline(always)]
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(a, b) }
        }

        #[inline(always)]
        unsafe fn plus(a: __m256i, n: i32) -> __m256i {
            unsafe { _mm256_add_epi32(a, _mm256_set1_epi32(n)) }
        }

        #[inline(always)]
        unsafe fn left(a: __m256i, bits: usize) -> __m256i {
            unsafe { _mm256_sllv_epi32(a, _mm256_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn right(a: __m256i, bits: usize) -> __m256i {
            unsafe { _mm256_srlv_epi32(a, _mm256_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn bits(word: u32) -> __m256i {
            unsafe {
                let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                Self::and(_mm256_srlv_epi32(_mm256_set1_epi32(word as i32), lanes), 1)
            }
        }

        #[inline(always)]
        unsafe fn to_f32(a: __m256i) -> Self {
            unsafe { _mm256_cvtepi32_ps(a) }
        }

        #[inline(always)]
        unsafe fn two_f16(p: *const u8) -> [f32; 2] {
            unsafe { two_f16(p) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            let halves = unsafe { _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self)) };
            let pairs = unsafe { _mm_add_ps(halves, _mm_movehl_ps(halves, halves)) };
            unsafe { _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs))) }
        }
    }
}
