//! Vectors of f32, with one implementation for each level, for the micro kernel of matrix products. All other code
//! leaves vectors to the compiler ([`vectorized`](super::level::vectorized)).

/// A vector register of f32 lanes.
///
/// # Safety
/// The machine must have the instructions of the implementation. Pointers must be valid for as many values as are read
/// or written.
pub(crate) unsafe trait Vector: Copy {
    /// Number of f32 lanes.
    const LANES: usize;

    /// The same value in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// Reads LANES values.
    unsafe fn load(p: *const f32) -> Self;
    /// Reads `n` values into the first lanes; the other lanes are zero.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// Writes LANES values.
    unsafe fn store(self, p: *mut f32);
    /// Writes the first `n` lanes.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    /// self * x + y.
    unsafe fn mul_add(self, x: Self, y: Self) -> Self;
    /// self + x.
    unsafe fn add(self, x: Self) -> Self;
    /// A mask with a bit for each lane, the lowest for the first: whether self <= x.
    unsafe fn at_most(self, x: Self) -> u32;
}

/// Compiles a function that is generic over its vector once for each level, and calls the one for
/// [`level`](super::level()).
macro_rules! by_vector {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $generic:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) {
                    // SAFETY: this function is compiled with the vector's instructions.
                    unsafe { $generic::<std::arch::x86_64::__m512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) {
                    // SAFETY: as above.
                    unsafe { $generic::<std::arch::x86_64::__m256>($($arg),*) }
                }
                match $crate::cpu::level() {
                    // SAFETY: the level is never above what the machine has.
                    $crate::cpu::Level::Avx512 | $crate::cpu::Level::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::Level::Portable => {}
                }
            }
            // SAFETY: no instructions beyond the target's.
            unsafe { $generic::<$crate::cpu::Portable>($($arg),*) }
        }
    };
}
pub(crate) use by_vector;

/// Four lanes, which the compiler maps to the instructions of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(super) [f32; 4]);

// SAFETY: no instructions beyond the target's.
unsafe impl Vector for Portable {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: valid for four values by the contract; an array of f32 has the alignment of f32.
        Self(unsafe { p.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; 4];
        for (l, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: valid for n values by the contract.
            *lane = unsafe { p.add(l).read() };
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for load.
        unsafe { p.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for (l, lane) in self.0.iter().enumerate().take(n) {
            // SAFETY: valid for n values by the contract.
            unsafe { p.add(l).write(*lane) };
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, y: Self) -> Self {
        // If the target has no fused multiply-add, `mul_add` would be a function call.
        let multiply_add =
            |s: f32, x: f32, y: f32| if cfg!(target_arch = "aarch64") { s.mul_add(x, y) } else { s * x + y };
        Self(std::array::from_fn(|l| multiply_add(self.0[l], x.0[l], y.0[l])))
    }

    #[inline(always)]
    unsafe fn add(self, x: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] + x.0[l]))
    }

    #[inline(always)]
    unsafe fn at_most(self, x: Self) -> u32 {
        (0..4).fold(0, |mask, l| mask | u32::from(self.0[l] <= x.0[l]) << l)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    // SAFETY: the instructions are those of AVX-512F.
    #[allow(clippy::undocumented_unsafe_blocks)] // each is one instruction under the trait's contract
    unsafe impl Vector for __m512 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            unsafe { _mm512_maskz_loadu_ps(first(n), p) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, first(n), self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, x: Self, y: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, x, y) }
        }

        #[inline(always)]
        unsafe fn add(self, x: Self) -> Self {
            unsafe { _mm512_add_ps(self, x) }
        }

        #[inline(always)]
        unsafe fn at_most(self, x: Self) -> u32 {
            unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self, x).into() }
        }
    }

    /// A mask of the first n of 16 lanes.
    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    // SAFETY: the instructions are those of AVX2 and FMA.
    #[allow(clippy::undocumented_unsafe_blocks)] // each is one or two instructions under the trait's contract
    unsafe impl Vector for __m256 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            unsafe { _mm256_maskload_ps(p, first_of_8(n)) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm256_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm256_maskstore_ps(p, first_of_8(n), self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, x: Self, y: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, x, y) }
        }

        #[inline(always)]
        unsafe fn add(self, x: Self) -> Self {
            unsafe { _mm256_add_ps(self, x) }
        }

        #[inline(always)]
        unsafe fn at_most(self, x: Self) -> u32 {
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(self, x)) as u32 }
        }
    }

    /// The sign bit of the first n of 8 lanes.
    #[inline(always)]
    unsafe fn first_of_8(n: usize) -> __m256i {
        // SAFETY: AVX2, by the contract of the callers.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }
}
