//! Peak rates of a GPU, measured: multiply-adds that never leave the registers, and a large copy.

use std::time::Instant;

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::{cmma, prelude::*};
use half::bf16;

use super::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, copy_kernel, elementwise};
use crate::Result;

/// Values of the copy: 256 MiB, more than any cache, if the device takes as much.
const COPY_LEN: usize = 64 << 20;
/// Independent sums of a unit or a plane, so that no sum waits for another.
const CHAINS: usize = 8;
const CUBES: u32 = 2048;
/// The least duration of a run in seconds, so that its launch does not count.
const LASTING: f64 = 0.01;
/// Each rate is the best of this many runs, because a peak is what nothing slows down.
const RUNS: usize = 5;

#[cube(launch)]
fn multiply_adds(out: &mut Array<f32>, factor: f32, rounds: usize) {
    let mut sums = Array::<f32>::new(CHAINS);
    #[unroll]
    for i in 0..CHAINS {
        sums[i] = factor;
    }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..CHAINS {
            sums[i] = fma(sums[i], factor, factor);
        }
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..CHAINS {
        sum += sums[i];
    }
    out[ABSOLUTE_POS] = sum;
}

#[cube(launch)]
fn matrix_multiply_adds(out: &mut Array<f32>, factor: f32, rounds: usize) {
    let ones = bf16::cast_from(factor);
    let a = cmma::Matrix::<bf16>::from_value(
        cmma::MatrixIdent::A,
        16usize,
        16usize,
        16usize,
        cmma::MatrixLayout::RowMajor,
        ones,
    );
    let b = cmma::Matrix::<bf16>::from_value(
        cmma::MatrixIdent::B,
        16usize,
        16usize,
        16usize,
        cmma::MatrixLayout::ColMajor,
        ones,
    );
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..CHAINS {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            16usize,
            16usize,
            16usize,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..CHAINS {
            cmma::execute::<bf16, bf16, f32, f32>(&a, &b, sums.index(i), sums.index(i));
        }
    }
    #[unroll]
    for i in 0..CHAINS {
        let first = (CUBE_POS_X as usize * CHAINS + i) * 256;
        cmma::store(&mut out.slice_mut(first, first + 256), sums.index(i), 16u32, cmma::MatrixLayout::RowMajor);
    }
}

impl<R: Backend> Gpu<R> {
    /// Whether the device multiplies 16 x 16 blocks of bf16 and sums them in f32.
    pub(crate) fn has_bf16_matrix_units(&self) -> bool {
        let storage = |kind| StorageType::Scalar(ElemType::Float(kind));
        let (factor, sum) = (storage(FloatKind::BF16), storage(FloatKind::F32));
        let config = |n| MmaConfig { a_type: factor, b_type: factor, cd_type: sum, m: 16, n, k: 16 };
        let features = self.client().features();
        let matmul = &features.matmul;
        let has_units = matmul.cmma.contains(&config(16)) && matmul.mma.contains(&config(8));
        has_units && matmul.ldmatrix.contains(&factor) && features.copy_async
    }

    /// Rounds per second in the fastest run of `launch(rounds)`.
    fn fastest(&self, launch: impl Fn(usize)) -> Result<f64> {
        let run = |rounds| {
            let began = Instant::now();
            launch(rounds);
            self.wait()?;
            Ok(began.elapsed().as_secs_f64())
        };
        run(1)?; // compiles it
        let mut rounds = 1;
        while run(rounds)? < LASTING && rounds < 1 << 24 {
            rounds *= 2;
        }
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            best = best.min(run(rounds)?);
        }
        Ok(rounds as f64 / best)
    }

    /// Bandwidth of a large copy in GB/s, counting bytes read and bytes written.
    pub(crate) fn copy_gbs(&self) -> Result<f64> {
        let most = self.client().properties().memory.max_page_size / 4;
        let len = COPY_LEN.min(most as usize);
        let (from, to): (GpuBuffer, GpuBuffer) = (self.scratch(len)?, self.scratch(len)?);
        let copies = self.fastest(|copies| {
            for _ in 0..copies {
                let dim = CubeDim::new_1d(ELEMENTWISE_UNITS);
                copy_kernel::launch::<R>(self.client(), elementwise(len), dim, from.arg(), to.arg());
            }
        })?;
        Ok(8.0 * len as f64 * copies / 1e9)
    }

    /// Rate of f32 operations in GFLOP/s. A multiply-add counts as two.
    pub(crate) fn gflops_f32(&self) -> Result<f64> {
        let units = (CUBES * ELEMENTWISE_UNITS) as usize;
        let out = self.scratch(units)?;
        let rounds = self.fastest(|rounds| {
            let (count, dim) = (CubeCount::Static(CUBES, 1, 1), CubeDim::new_1d(ELEMENTWISE_UNITS));
            multiply_adds::launch::<R>(self.client(), count, dim, out.arg(), 0.5, rounds);
        })?;
        Ok(2.0 * (units * CHAINS) as f64 * rounds / 1e9)
    }

    /// Rate of products of bf16 summed in f32, in GFLOP/s; None without matrix units.
    pub(crate) fn gflops_bf16(&self) -> Result<Option<f64>> {
        if !self.has_bf16_matrix_units() {
            return Ok(None);
        }
        let plane = self.client().properties().hardware.plane_size_max;
        let out = self.scratch(CUBES as usize * CHAINS * 256)?;
        let rounds = self.fastest(|rounds| {
            let (count, dim) = (CubeCount::Static(CUBES, 1, 1), CubeDim::new_1d(plane));
            matrix_multiply_adds::launch::<R>(self.client(), count, dim, out.arg(), 0.5, rounds);
        })?;
        Ok(Some(2.0 * 4096.0 * CUBES as f64 * CHAINS as f64 * rounds / 1e9))
    }
}
