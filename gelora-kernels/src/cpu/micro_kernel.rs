//! The micro kernel of all matrix products: one tile of the result, held in registers while the sum over the inner
//! dimension runs.

use super::simd::{Portable, Vector};
use super::{Level, level};

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init<'a> {
    /// Zero: the destination is overwritten.
    Zero,
    /// The values that the destination holds.
    Accumulate,
    /// One row, such as a bias, added to every row of the destination.
    Row(&'a [f32]),
}

/// The arguments of one call: c = init + scale (sum over k of a_ik b_kj + sum over k2 of a2_ik b2_kj), for `mr` rows
/// and `nv` vectors of columns.
///
/// Strides are in values. a and b are f32. In the bf16 kernel they are pairs of bf16, and k counts pairs: a row of a
/// holds its pairs one after the other, and b holds, for each pair of steps, the pair of each column in turn.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) k: usize,
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    pub(super) b: *const f32,
    pub(super) b_step: usize,
    pub(super) k2: usize,
    pub(super) a2: *const f32,
    pub(super) a2_row: usize,
    pub(super) b2: *const f32,
    pub(super) b2_step: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    pub(super) init: Init<'a>,
    pub(super) scale: f32,
    /// Lanes in use of the last vector of columns.
    pub(super) last_lanes: usize,
}

/// The size of a full tile: rows, vectors of columns, and lanes of a vector.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileShape {
    pub(super) mr: usize,
    pub(super) nv: usize,
    pub(super) lanes: usize,
}

impl TileShape {
    /// Columns of a full tile.
    pub(super) fn width(self) -> usize {
        self.nv * self.lanes
    }
}

/// The tile of this machine. The registers hold all sums, `nv` vectors of b and one broadcast value of a: 24 + 3 + 1 of
/// 32 registers with AVX-512, 12 + 2 + 1 of 16 with AVX2.
pub(super) fn shape() -> TileShape {
    match level() {
        Level::Avx512 | Level::Avx512Bf16 => TileShape { mr: 8, nv: 3, lanes: 16 },
        Level::Avx2 => TileShape { mr: 6, nv: 2, lanes: 8 },
        Level::Portable => TileShape { mr: 4, nv: 2, lanes: 4 },
    }
}

/// A micro kernel for one size of tile.
///
/// # Safety
/// The machine must have the instructions of the kernel. The pointers of the tile must be valid for its rows, columns
/// and steps, and c may not be accessed by another thread during the call.
pub(super) type MicroKernel = unsafe fn(&Tile<'_>);

/// Adds the f32 product of `MR` rows of a and `NV` vectors of b to `sums`. With `MASKED`, b is not padded: only the
/// first `last_lanes` lanes of its last vector are read.
#[inline(always)]
unsafe fn add_products<V: Vector, const MR: usize, const NV: usize, const MASKED: bool>(
    sums: &mut [[V; NV]; MR],
    k: usize,
    (mut a, a_row, a_step): (*const f32, usize, usize),
    (mut b, b_step): (*const f32, usize),
    last_lanes: usize,
) {
    for _ in 0..k {
        // SAFETY: the caller's tile is valid for k steps of these strides.
        unsafe {
            // One row of b.
            let mut b_row = [V::splat(0.0); NV];
            for (v, b_vector) in b_row.iter_mut().enumerate() {
                let p = b.add(v * V::LANES);
                *b_vector = if MASKED && v + 1 == NV { V::load_first(p, last_lanes) } else { V::load(p) };
            }
            // The outer product of one column of a with it.
            for (i, row_sums) in sums.iter_mut().enumerate() {
                let a_value = V::splat(a.add(i * a_row).read());
                for (sum, b_vector) in row_sums.iter_mut().zip(b_row) {
                    *sum = a_value.mul_add(b_vector, *sum);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(b_step);
        }
    }
}

/// Writes c = init + scale sums.
#[inline(always)]
unsafe fn store<V: Vector, const MR: usize, const NV: usize>(t: &Tile<'_>, sums: [[V; NV]; MR]) {
    for (i, row_sums) in sums.into_iter().enumerate() {
        for (v, sum) in row_sums.into_iter().enumerate() {
            let lanes = if v + 1 == NV { t.last_lanes } else { V::LANES };
            // SAFETY: the caller's tile is valid, and no lane beyond those in use is accessed.
            unsafe {
                let c = t.c.add(i * t.c_row + v * V::LANES);
                let read = |p: *const f32| if lanes == V::LANES { V::load(p) } else { V::load_first(p, lanes) };
                let init = match t.init {
                    Init::Zero => V::splat(0.0),
                    Init::Accumulate => read(c),
                    Init::Row(row) => read(row.as_ptr().add(v * V::LANES)),
                };
                let value = sum.mul_add(V::splat(t.scale), init);
                if lanes == V::LANES { value.store(c) } else { value.store_first(c, lanes) }
            }
        }
    }
}

#[inline(always)]
unsafe fn run_f32<V: Vector, const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile<'_>) {
    // SAFETY: by the contract of the kernels.
    unsafe {
        let mut sums = [[V::splat(0.0); NV]; MR];
        add_products::<V, MR, NV, MASKED>(&mut sums, t.k, (t.a, t.a_row, t.a_step), (t.b, t.b_step), t.last_lanes);
        add_products::<V, MR, NV, false>(&mut sums, t.k2, (t.a2, t.a2_row, 1), (t.b2, t.b2_step), t.last_lanes);
        store(t, sums);
    }
}

unsafe fn portable<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile<'_>) {
    // SAFETY: by the contract of the kernels.
    unsafe { run_f32::<Portable, MR, NV, MASKED>(t) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn avx2<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile<'_>) {
        // SAFETY: by the contract of the kernels.
        unsafe { run_f32::<__m256, MR, NV, MASKED>(t) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(crate) unsafe fn avx512<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile<'_>) {
        // SAFETY: by the contract of the kernels.
        unsafe { run_f32::<__m512, MR, NV, MASKED>(t) }
    }

    /// The product of a and b in pairs of bf16, summed in f32. The product of a2 and b2 stays in f32.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(crate) unsafe fn bf16<const MR: usize, const NV: usize>(t: &Tile<'_>) {
        let mut sums = [[_mm512_setzero_ps(); NV]; MR];
        let (mut a, mut b) = (t.a.cast::<i32>(), t.b);
        for _ in 0..t.k {
            // SAFETY: the caller's tile is valid for k pairs; all vectors of b are padded.
            unsafe {
                // One row of pairs of b.
                let mut b_row = [_mm512_setzero_ps(); NV];
                for (v, b_vector) in b_row.iter_mut().enumerate() {
                    *b_vector = _mm512_loadu_ps(b.add(v * 16));
                }
                // Each lane adds the two products of its pair.
                for (i, row_sums) in sums.iter_mut().enumerate() {
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(i * t.a_row).read_unaligned()));
                    for (sum, b_vector) in row_sums.iter_mut().zip(b_row) {
                        *sum = _mm512_dpbf16_ps(*sum, pair, std::mem::transmute::<__m512, __m512bh>(b_vector));
                    }
                }
                a = a.wrapping_add(1);
                b = b.wrapping_add(t.b_step);
            }
        }
        // SAFETY: by the contract of the kernels.
        unsafe {
            add_products::<__m512, MR, NV, false>(
                &mut sums,
                t.k2,
                (t.a2, t.a2_row, 1),
                (t.b2, t.b2_step),
                t.last_lanes,
            );
            store(t, sums);
        }
    }
}

/// The f32 kernel for tiles of `mr` rows and `nv` vectors. With `masked`, b is not padded: the kernel reads only the
/// lanes in use of its last vector.
///
/// # Panics
/// If the tile is larger than [`shape`] or has no rows or no vectors.
pub(super) fn kernel_f32(mr: usize, nv: usize, masked: bool) -> MicroKernel {
    macro_rules! table {
        ($kernel:path, [$($m:literal)*], $n:tt) => {
            match mr {
                $($m => table!(@row $kernel, $m, $n),)*
                _ => unreachable!("a tile has {mr} rows"),
            }
        };
        (@row $kernel:path, $m:literal, [$($n:literal)*]) => {{
            use $kernel as kernel;
            match (nv, masked) {
                $(($n, false) => kernel::<$m, $n, false> as MicroKernel,
                ($n, true) => kernel::<$m, $n, true> as MicroKernel,)*
                _ => unreachable!("a tile has {nv} vectors"),
            }
        }};
    }
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => table!(x86::avx512, [1 2 3 4 5 6 7 8], [1 2 3]),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => table!(x86::avx2, [1 2 3 4 5 6], [1 2]),
        _ => table!(self::portable, [1 2 3 4], [1 2]),
    }
}

/// The bf16 kernel for tiles of `mr` rows and `nv` vectors; None if the machine has no bf16 instructions.
///
/// # Panics
/// As [`kernel_f32`].
pub(super) fn kernel_bf16(mr: usize, nv: usize) -> Option<MicroKernel> {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512Bf16 {
        macro_rules! table {
            ($($m:literal)*) => {
                match (mr, nv) {
                    $(($m, 1) => x86::bf16::<$m, 1> as MicroKernel,
                    ($m, 2) => x86::bf16::<$m, 2> as MicroKernel,
                    ($m, 3) => x86::bf16::<$m, 3> as MicroKernel,)*
                    _ => unreachable!("a tile has {mr} rows and {nv} vectors"),
                }
            };
        }
        return Some(table!(1 2 3 4 5 6 7 8));
    }
    let _ = (mr, nv);
    None
}
