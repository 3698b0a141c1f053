//! Elementary functions and reductions without branches or calls, so that the compiler turns loops over them into
//! vector code.

/// x rounded to the nearest bf16, ties to even. A NaN stays a NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16
}

super::vectorized! {
    /// Rounds rows of k values to rows of bf16 pairs. An odd last value is paired with zero.
    pub(crate) fn rows_to_bf16(x: &[f32], k: usize, out: &mut [u16]) {
        if k.is_multiple_of(2) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = to_bf16(*x);
            }
        } else {
            for (out, x) in out.chunks_exact_mut(k + 1).zip(x.chunks_exact(k)) {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = to_bf16(*x);
                }
                out[k] = 0;
            }
        }
    }
}

/// e^x within 2 ulp; 0 below -87.3, infinity above 88.7.
///
/// Source: range reduction by ln 2 in two parts (Cody and Waite 1980) and the degree-5 polynomial of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits. A saturating conversion would not become vector
    // code.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let (n, exponent) = (shifted - ROUND, shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32);
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let e = p * r * r + r + 1.0;
    // 2^n as two factors, because n reaches 128, one more than the largest exponent.
    let half = exponent >> 1;
    let pow2 = |k: i32| f32::from_bits((k.wrapping_add(127) << 23) as u32);
    let value = e * pow2(half) * pow2(exponent.wrapping_sub(half));
    if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else {
        value
    }
}

/// The error function within 6e-7 absolute: 1.5e-7 from the formula, the rest from rounding.
///
/// Source: Abramowitz and Stegun, equation 7.1.26.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    (1.0 - p * exp(-a * a)).copysign(x)
}

/// tanh within 2e-7 absolute.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// Number of interleaved partial sums. The order of a sum is the same on every machine.
const LANES: usize = 16;

/// The sum of the values, in 16 interleaved partial sums.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The inner product of two slices of the same length, in 16 interleaved partial sums.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The inner product of two slices of the same length, in 64 interleaved partial sums, so that no sum waits for the one
/// before.
#[inline(always)]
pub(crate) fn wide_dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; 4 * LANES];
    let ((xs, rest_x), (ys, rest_y)) = (x.as_chunks::<{ 4 * LANES }>(), y.as_chunks::<{ 4 * LANES }>());
    for (x, y) in xs.iter().zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    sum(&lanes) + dot(rest_x, rest_y)
}

/// The largest value, in 16 interleaved partial maxima; negative infinity if there are no values.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    lanes.iter().fold(rest, |m, v| m.max(*v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        let mut s = crate::random::Stream::new(1);
        for _ in 0..100_000 {
            let x = f32::from_bits(s.below(usize::MAX) as u32);
            let (got, want) = (half::bf16::from_bits(to_bf16(x)), half::bf16::from_f32(x));
            assert!(got == want || got.is_nan() && want.is_nan(), "{x:e}: {got} {want}");
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 2.4e-7 * want, "exp({x}) = {} not {want}", exp(x));
        }
        assert_eq!((exp(-200.0), exp(f32::NEG_INFINITY), exp(200.0)), (0.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_and_tanh_are_close() {
        // erf by its series, in f64.
        let erf64 = |x: f64| {
            let mut term = x;
            let mut sum = x;
            for n in 1..200 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        for i in -40_000..40_000 {
            let x = i as f32 * 1e-4;
            assert!((f64::from(erf(x)) - erf64(f64::from(x))).abs() < 6e-7, "erf({x})");
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2.4e-7, "tanh({x})");
        }
    }
}
