//! The kernel of all matrix products: a tile of the result, held in registers while the sum over k runs.

use super::simd::{Portable, Vector};
use super::{Level, level};

/// What one call computes: c = start + scale (sum over k of a_ik b_kj + sum over k2 of a2_ik b2_kj), for `mr` rows and `nv`
/// vectors of columns, the last of which has `last` lanes in use.
///
/// Strides are in values. a and b are f32, or, in the bf16 kernel, pairs of bf16 with k counting pairs: rows of a hold the
/// pairs one after the other and b holds, for each pair, the pair of each column in turn.
#[derive(Clone, Copy)]
pub struct Tile {
    pub k: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_k: usize,
    pub b: *const f32,
    pub b_k: usize,
    pub k2: usize,
    pub a2: *const f32,
    pub a2_row: usize,
    pub b2: *const f32,
    pub b2_k: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub start: Start,
    pub scale: f32,
    pub last: usize,
}

/// What the sums are added to.
#[derive(Clone, Copy)]
pub enum Start {
    /// Nothing.
    Zero,
    /// The values that are in c.
    Accumulate,
    /// A row of one value for each column.
    Row(*const f32),
}

/// Rows and vectors of a full tile, and lanes of a vector.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub mr: usize,
    pub nv: usize,
    pub lanes: usize,
}

impl Shape {
    /// Columns of a full tile.
    pub fn width(self) -> usize {
        self.nv * self.lanes
    }
}

/// The tile of this machine. Accumulators, one vector of b for each column and the broadcast a fit the registers: 24 + 3 + 1
/// of 32 (AVX-512), 12 + 2 + 1 of 16 (AVX2).
pub fn shape() -> Shape {
    match level() {
        Level::Avx512 | Level::Avx512Bf16 => Shape { mr: 8, nv: 3, lanes: 16 },
        Level::Avx2 => Shape { mr: 6, nv: 2, lanes: 8 },
        Level::Portable => Shape { mr: 4, nv: 2, lanes: 4 },
    }
}

/// A kernel for one size of tile.
pub type Kernel = unsafe fn(&Tile);

/// Sums of the f32 product of `MR` rows of a and `NV` vectors of b. With `MASKED`, only the lanes in use of the last vector
/// of b are read (b is not padded).
#[inline(always)]
unsafe fn sums<V: Vector, const MR: usize, const NV: usize, const MASKED: bool>(
    acc: &mut [[V; NV]; MR],
    k: usize,
    (mut a, a_row, a_k): (*const f32, usize, usize),
    (mut b, b_k): (*const f32, usize),
    last: usize,
) {
    for _ in 0..k {
        // SAFETY: the caller's tile is valid for k steps of these strides.
        unsafe {
            let mut column = [V::splat(0.0); NV];
            for (v, column) in column.iter_mut().enumerate() {
                let p = b.add(v * V::LANES);
                *column = if MASKED && v + 1 == NV { V::load_first(p, last) } else { V::load(p) };
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = V::splat(a.add(i * a_row).read());
                for (acc, column) in acc.iter_mut().zip(column) {
                    *acc = x.mul_add(column, *acc);
                }
            }
            a = a.wrapping_add(a_k);
            b = b.wrapping_add(b_k);
        }
    }
}

/// Adds the start and writes the tile.
#[inline(always)]
unsafe fn finish<V: Vector, const MR: usize, const NV: usize>(t: &Tile, acc: [[V; NV]; MR]) {
    for (i, acc) in acc.into_iter().enumerate() {
        for (v, acc) in acc.into_iter().enumerate() {
            let lanes = if v + 1 == NV { t.last } else { V::LANES };
            // SAFETY: the caller's tile is valid; no lane beyond those in use is touched.
            unsafe {
                let c = t.c.add(i * t.c_row + v * V::LANES);
                let read = |p: *const f32| if lanes == V::LANES { V::load(p) } else { V::load_first(p, lanes) };
                let start = match t.start {
                    Start::Zero => V::splat(0.0),
                    Start::Accumulate => read(c),
                    Start::Row(row) => read(row.add(v * V::LANES)),
                };
                let value = acc.mul_add(V::splat(t.scale), start);
                if lanes == V::LANES { value.store(c) } else { value.store_first(c, lanes) }
            }
        }
    }
}

#[inline(always)]
unsafe fn run_f32<V: Vector, const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile) {
    // SAFETY: by the contract of the kernels.
    unsafe {
        let mut acc = [[V::splat(0.0); NV]; MR];
        sums::<V, MR, NV, MASKED>(&mut acc, t.k, (t.a, t.a_row, t.a_k), (t.b, t.b_k), t.last);
        sums::<V, MR, NV, false>(&mut acc, t.k2, (t.a2, t.a2_row, 1), (t.b2, t.b2_k), t.last);
        finish(t, acc);
    }
}

unsafe fn portable<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile) {
    // SAFETY: by the contract of the kernels.
    unsafe { run_f32::<Portable, MR, NV, MASKED>(t) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile) {
        // SAFETY: by the contract of the kernels.
        unsafe { run_f32::<__m256, MR, NV, MASKED>(t) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub unsafe fn avx512<const MR: usize, const NV: usize, const MASKED: bool>(t: &Tile) {
        // SAFETY: by the contract of the kernels.
        unsafe { run_f32::<__m512, MR, NV, MASKED>(t) }
    }

    /// The base product in pairs of bf16, summed in f32; a2 and b2 stay f32.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub unsafe fn bf16<const MR: usize, const NV: usize>(t: &Tile) {
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        let (mut a, mut b) = (t.a.cast::<i32>(), t.b);
        for _ in 0..t.k {
            // SAFETY: the caller's tile is valid for k pairs; all vectors of b are padded.
            unsafe {
                let mut column = [_mm512_setzero_ps(); NV];
                for (v, column) in column.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.add(v * 16));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(i * t.a_row).read_unaligned()));
                    for (acc, column) in acc.iter_mut().zip(column) {
                        *acc = _mm512_dpbf16_ps(*acc, pair, std::mem::transmute::<__m512, __m512bh>(column));
                    }
                }
                a = a.wrapping_add(1);
                b = b.wrapping_add(t.b_k);
            }
        }
        // SAFETY: by the contract of the kernels.
        unsafe {
            sums::<__m512, MR, NV, false>(&mut acc, t.k2, (t.a2, t.a2_row, 1), (t.b2, t.b2_k), t.last);
            finish(t, acc);
        }
    }
}

/// The f32 kernel for tiles of `mr` rows and `nv` vectors. `masked`: b is not padded, and of its last vector only the lanes in
/// use may be read.
///
/// # Panics
/// If the tile is larger than [`shape`] or has no rows or vectors.
pub fn kernel_f32(mr: usize, nv: usize, masked: bool) -> Kernel {
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
                $(($n, false) => kernel::<$m, $n, false> as Kernel,
                ($n, true) => kernel::<$m, $n, true> as Kernel,)*
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

/// The bf16 kernel for tiles of `mr` rows and `nv` vectors, or None where the machine has none.
///
/// # Panics
/// As [`kernel_f32`].
pub fn kernel_bf16(mr: usize, nv: usize) -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512Bf16 {
        macro_rules! table {
            ($($m:literal)*) => {
                match (mr, nv) {
                    $(($m, 1) => x86::bf16::<$m, 1> as Kernel,
                    ($m, 2) => x86::bf16::<$m, 2> as Kernel,
                    ($m, 3) => x86::bf16::<$m, 3> as Kernel,)*
                    _ => unreachable!("a tile has {mr} rows and {nv} vectors"),
                }
            };
        }
        return Some(table!(1 2 3 4 5 6 7 8));
    }
    let _ = (mr, nv);
    None
}
