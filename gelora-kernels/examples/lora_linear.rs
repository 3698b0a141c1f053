//! The fused LoRA product on the CPU, compared with the f64 reference and timed against separate products:
//!
//! ```sh
//! cargo run --release -p gelora-kernels --example lora_linear
//! ```

use std::io::Write;
use std::time::Instant;

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::lora_linear::{LoraLinear, reference};
use gelora_kernels::ops::{add, scale};
use gelora_kernels::verify::random;
use gelora_kernels::{DType, Error, Tensor};

/// Rows, input channels, output channels, rank.
const SIZES: [usize; 4] = [512, 768, 768, 8];
const SCALING: f32 = 2.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [n, c_in, c_out, r] = SIZES;
    let (x, w) = (random([n, c_in], 1), random([c_out, c_in], 2));
    let (a, b) = (random([r, c_in], 3), random([c_out, r], 4));
    let weight = Weight::new(w.clone(), DType::F32)?;
    let layer = LoraLinear { weight: &weight, bias: None, a: &a, b: &b, scaling: SCALING, dropout: None };

    // y = x W^T + s x A^T B^T, fused and in f64.
    let (y, saved) = layer.forward(&x)?;
    let f64s = [x.to_vec_f64()?, w.to_vec_f64()?, a.to_vec_f64()?, b.to_vec_f64()?];
    let (want, _) = reference::forward(&f64s[0], &f64s[1], None, &f64s[2], &f64s[3], SCALING.into(), None, c_in);
    let largest = want.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let error = y.to_vec_f64()?.iter().zip(&want).map(|(y, w)| (y - w).abs()).fold(0.0, f64::max) / largest;

    // The gradients of x, A and B for dy = y.
    let gradients = layer.backward(&x, &y, saved)?;

    let fused = fastest(|| layer.forward(&x).map(|(y, _)| y))?;
    let (down, up) = (Weight::new(a.clone(), DType::F32)?, Weight::new(b.clone(), DType::F32)?);
    let separate = fastest(|| {
        let adapter = linear::forward(&linear::forward(&x, &down, None)?, &up, None)?;
        add::forward(&linear::forward(&x, &weight, None)?, &scale::forward(SCALING, &adapter)?)
    })?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "x ({n}, {c_in}), W ({c_out}, {c_in}), rank {r}")?;
    writeln!(out, "largest error against f64: {error:.1e} of the largest value")?;
    for (name, gradient) in [("dx", &gradients.dx), ("dA", &gradients.da), ("dB", &gradients.db)] {
        writeln!(out, "{name}: {:?}", gradient.shape())?;
    }
    writeln!(out, "fused {:.2} ms, separate products {:.2} ms", fused * 1e3, separate * 1e3)?;
    Ok(())
}

/// Seconds of the fastest of ten runs.
fn fastest(run: impl Fn() -> Result<Tensor, Error>) -> Result<f64, Error> {
    let mut fastest = f64::INFINITY;
    for _ in 0..10 {
        let began = Instant::now();
        run()?;
        fastest = fastest.min(began.elapsed().as_secs_f64());
    }
    Ok(fastest)
}
