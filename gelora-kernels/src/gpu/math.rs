//! Elementary functions whose accuracy does not depend on the driver. Shading languages promise too little for their
//! own functions: WGSL's exp may be wrong by 3 + 2 |x| units in the last place, and tanh of some drivers overflows.
//!
//! Arguments must be finite.

use cubecl::prelude::*;

/// e^x within 2 ulp; 0 below -87, and e^88 above 88.
///
/// Source: as `exp` in `cpu/math.rs`.
#[cube]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = clamp(x, -87.0f32, 88.0f32);
    let n = (clamped * std::f32::consts::LOG2_E).round();
    // ln 2 in two parts. The first has few bits, so n times it is exact.
    let r = clamped - n * 0.693_359_4f32 + n * 2.121_944_4e-4f32;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3f32;
    p = p * r + 8.333_452e-3f32;
    p = p * r + 4.166_579_6e-2f32;
    p = p * r + 1.666_666_5e-1f32;
    p = p * r + 5e-1f32;
    let power = f32::reinterpret(u32::cast_from(i32::cast_from(n) + 127) << 23);
    select(x < -87.0f32, 0.0f32, (p * r * r + r + 1.0f32) * power)
}

/// The error function within 1e-7 absolute.
///
/// Below 0.9, x + x q(x^2); above, 1 - e^p(|x|). q has degree 6 and p degree 8; they equal erf(x)/x - 1 and
/// ln(1 - erf(x)) at the Chebyshev nodes of [0, 0.81] and [0.9, 4]. From 4 on, erf is 1 to f32.
#[cube]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    // Both branches are computed, so neither may overflow.
    let small = clamp(x, -0.9f32, 0.9f32);
    let s = small * small;
    let mut q = 8.529_401e-5f32;
    q = q * s - 8.179_632e-4f32;
    q = q * s + 5.204_227e-3f32;
    q = q * s - 2.686_066_6e-2f32;
    q = q * s + 1.128_371_8e-1f32;
    q = q * s - 3.761_263_5e-1f32;
    q = q * s + 1.283_791_7e-1f32;
    let t = clamp(a, 0.9f32, 4.0f32);
    let mut p = 1.643_063_7e-6f32;
    p = p * t - 4.616_386e-5f32;
    p = p * t + 5.975_857_5e-4f32;
    p = p * t - 4.762_626e-3f32;
    p = p * t + 2.642_763_8e-2f32;
    p = p * t - 1.100_871_6e-1f32;
    p = p * t - 6.318_239e-1f32;
    p = p * t - 1.130_231f32;
    p = p * t + 3.185_396_5e-4f32;
    let tail = 1.0f32 - exp(p);
    select(a < 0.9f32, x + x * q, select(x < 0.0f32, -tail, tail))
}

/// tanh within 2e-7 absolute.
#[cube]
pub(crate) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0f32 * x.abs());
    let t = (1.0f32 - e) / (1.0f32 + e);
    select(x < 0.0f32, -t, t)
}

/// 1 / (1 + e^-x).
#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    select(x < 0.0f32, e, 1.0f32) / (1.0f32 + e)
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::device::WgpuDevice;
    use crate::gpu::{ELEMENTWISE_UNITS, elementwise};
    use crate::ops::activation::reference;
    use crate::{Device, Result, Tensor};

    /// exp, erf, tanh and sigmoid of x, one after the other.
    #[cube(launch)]
    fn all_kernel(x: &Array<f32>, y: &mut Array<f32>) {
        let len = x.len();
        if ABSOLUTE_POS < len {
            let x = x[ABSOLUTE_POS];
            y[ABSOLUTE_POS] = exp(x);
            y[len + ABSOLUTE_POS] = erf(x);
            y[2 * len + ABSOLUTE_POS] = tanh(x);
            y[3 * len + ABSOLUTE_POS] = sigmoid(x);
        }
    }

    #[test]
    fn functions_are_close_everywhere() -> Result<()> {
        let Some(device) = crate::verify::wgpu() else { return Ok(()) };
        let Device::Wgpu(WgpuDevice(gpu)) = &device else { return Ok(()) };
        let mut values: Vec<f32> = (-8000..=8000).map(|i| i as f32 * 1e-3).collect();
        values.extend([-1e30, -1e4, -89.0, -87.4, -86.9, 20.0, 86.9, 87.9, 88.0, 89.0, 1e4, 1e30]);
        let len = values.len();
        let x = Tensor::from_vec(values.clone(), [len])?.to_device(&device)?;
        let y = gpu.output([4 * len])?;
        let dim = CubeDim::new_1d(ELEMENTWISE_UNITS);
        all_kernel::launch(gpu.client(), elementwise(len), dim, x.gpu("test")?.arg(), y.gpu("test")?.arg());
        let y = y.to_vec()?;
        let (mut worst_exp, mut worst) = (0.0_f64, [0.0_f64; 3]);
        for (i, &x) in values.iter().enumerate() {
            let value = |k: usize| f64::from(y[k * len + i]);
            let x = f64::from(x);
            let want = x.min(88.0).exp();
            worst_exp = worst_exp.max((value(0) - want).abs() / want.max(1e-30));
            let wants = [reference::erf(x), x.tanh(), 1.0 / (1.0 + (-x).exp())];
            for (k, want) in wants.into_iter().enumerate() {
                worst[k] = worst[k].max((value(k + 1) - want).abs());
            }
        }
        assert!(worst_exp < 2.4e-7 && worst[0] < 1e-7 && worst[1] < 2e-7 && worst[2] < 2e-7, "{worst_exp:e} {worst:?}");
        Ok(())
    }
}
