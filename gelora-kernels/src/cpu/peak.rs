//! Peak rates of this machine, measured. Measured rates of operators are compared with them.
//!
//! Operations are multiply-adds that never leave the registers, on all threads of the pool. Bytes are those of a triad
//! over arrays that no cache holds. A rate is the best of several runs, because a peak is what nothing slows down.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Values of one array of the triad: 64 MiB.
const TRIAD_LEN: usize = 16 << 20;
/// Values of one task of the triad.
const TRIAD_BLOCK: usize = 64 * 1024;
/// The least duration of a run of multiply-adds.
const RUN: Duration = Duration::from_millis(20);
const RUNS: usize = 8;

/// Rate of f32 operations on all threads, in GFLOP/s. A multiply-add counts as two. The rate is measured once, in about
/// 0.2 s.
pub fn gflops_f32() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the machine has AVX-512.
                return gflops(x86::FLOPS_F32_AVX512, |rounds| unsafe { x86::f32_avx512(rounds) });
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the machine has AVX2 and FMA.
                return gflops(x86::FLOPS_F32_AVX2, |rounds| unsafe { x86::f32_avx2(rounds) });
            }
        }
        gflops(FLOPS_PORTABLE, f32_portable)
    })
}

/// Rate of products of bf16 summed in f32 on all threads, in GFLOP/s; None if the machine has no instruction for them.
pub fn gflops_bf16() -> Option<f64> {
    static MEASURED: OnceLock<Option<f64>> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512 and its bf16 products.
            return Some(gflops(x86::FLOPS_BF16_AVX512, |rounds| unsafe { x86::bf16_avx512(rounds) }));
        }
        None
    })
}

/// Bandwidth between memory and all threads in GB/s, of a triad a = b + s c: two arrays read, one written. The read
/// that a write may cause is not counted. The bandwidth is measured once, in about 0.2 s and 192 MiB.
pub fn bandwidth_gbs() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let (b, c) = (vec![1.0_f32; TRIAD_LEN], vec![2.0_f32; TRIAD_LEN]);
        let mut a = vec![0.0_f32; TRIAD_LEN];
        let fastest = (0..RUNS).map(|_| {
            let began = Instant::now();
            let blocks = a.par_chunks_mut(TRIAD_BLOCK).zip(b.par_chunks(TRIAD_BLOCK)).zip(c.par_chunks(TRIAD_BLOCK));
            blocks.for_each(|((a, b), c)| {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + 0.5 * c;
                }
            });
            black_box(&mut a);
            began.elapsed().as_secs_f64()
        });
        3.0 * 4.0 * TRIAD_LEN as f64 / fastest.fold(f64::INFINITY, f64::min) / 1e9
    })
}

/// The best rate of `kernel(rounds)`, which does `flops` operations in a round and returns a value that depends on all
/// of them.
fn gflops(flops: f64, kernel: impl Fn(u64) -> f32 + Sync) -> f64 {
    let time = |rounds: u64| {
        let began = Instant::now();
        rayon::broadcast(|_| black_box(kernel(black_box(rounds))));
        began.elapsed()
    };
    let mut rounds = 1 << 10;
    while time(rounds) < RUN {
        rounds *= 2;
    }
    let fastest = (0..RUNS).map(|_| time(rounds).as_secs_f64()).fold(f64::INFINITY, f64::min);
    flops * rounds as f64 * rayon::current_num_threads() as f64 / fastest / 1e9
}

/// Independent sums: more than the latency of a multiply-add times the number of units that compute it.
const SUMS: usize = 12;
/// Lanes of one sum, if the compiler chooses the vectors.
const PORTABLE_LANES: usize = 8;
const FLOPS_PORTABLE: f64 = (2 * SUMS * PORTABLE_LANES) as f64;

fn f32_portable(rounds: u64) -> f32 {
    let (factor, term) = (black_box(0.5_f32), black_box(1.0_f32));
    let mut sums = [[term; PORTABLE_LANES]; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in sum {
                *lane = *lane * factor + term;
            }
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;

    pub(super) const FLOPS_F32_AVX512: f64 = (2 * SUMS * 16) as f64;
    pub(super) const FLOPS_F32_AVX2: f64 = (2 * SUMS * 8) as f64;
    pub(super) const FLOPS_BF16_AVX512: f64 = (2 * SUMS * 32) as f64;

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(rounds: u64) -> f32 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [term; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(term, |a, b| _mm512_add_ps(a, b)))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(rounds: u64) -> f32 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [term; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        _mm256_cvtss_f32(sums.into_iter().fold(term, |a, b| _mm256_add_ps(a, b)))
    }

    /// Two products in each lane, added to its sum: 64 operations in an instruction.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(rounds: u64) -> f32 {
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1e-3)));
        let (x, y) = (_mm512_cvtne2ps_pbh(x, x), _mm512_cvtne2ps_pbh(y, y));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, y);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |a, b| _mm512_add_ps(a, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that the compiler had folded away would seem to do far more than any machine can.
    #[test]
    fn peaks_are_those_of_a_machine() {
        let per_thread = 1.0 / rayon::current_num_threads() as f64;
        let bf16 = gflops_bf16().unwrap_or(100.0);
        for gflops in [gflops_f32(), bf16] {
            assert!((0.1..2000.0).contains(&(gflops * per_thread)), "{gflops} GFLOP/s");
        }
        assert!((0.1..5000.0).contains(&bandwidth_gbs()), "{} GB/s", bandwidth_gbs());
    }
}
