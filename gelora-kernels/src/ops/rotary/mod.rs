//! Rotary position embedding: in each head, the values j and j + D/2 of a row at position p are rotated together by the
//! angle a = p f_j.
//!
//! y_j = x_j cos a - x_(j+D/2) sin a; y_(j+D/2) = x_(j+D/2) cos a + x_j sin a. Pairs are D/2 apart, as in the models of
//! Hugging Face. Backward is the rotation by -a: dx = backward(dy).
//!
//! x, y (N, H D), and D/2 inverse frequencies f, which include the scaling of a model. As in transformers, a is rounded
//! to f32 before its cosine is computed. Nothing is summed.
//!
//! The sine of a shading language is useless at an angle of 1e5. So cosines and sines come from a [`Table`] that the
//! host computes once for a model, in f64, and rounds to f32.
//!
//! Source: Su et al., "RoFormer", arXiv 2104.09864.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Device, Result, Tensor, profile};

/// theta^(-2 j / D) for j below D/2, rounded as in transformers: the inverse frequencies of a model without scaling.
pub fn inverse_frequencies(theta: f64, d: usize) -> Vec<f32> {
    let power = |j: usize| theta.powf(f64::from((2 * j) as f32 / d as f32)) as f32;
    (0..d / 2).map(|j| 1.0 / power(j)).collect()
}

/// Cosines and sines of the angles at positions 0 to P - 1, on one device. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Table {
    /// (P, D/2).
    cos: Tensor,
    /// (P, D/2).
    sin: Tensor,
}

impl Table {
    /// The table of P = `positions` positions.
    ///
    /// # Errors
    /// If there is no position or no frequency, a frequency is not finite, or the device is out of memory.
    pub fn new(inverse_frequencies: &[f32], positions: usize, device: &Device) -> Result<Self> {
        const OP: &str = "rotary.table";
        check::value(OP, !inverse_frequencies.is_empty() && positions > 0, || {
            "needs at least one frequency and one position".into()
        })?;
        check::value(OP, inverse_frequencies.iter().all(|f| f.is_finite()), || "frequencies must be finite".into())?;
        let half = inverse_frequencies.len();
        let _span = profile::span(OP, 0.0, 8.0 * (positions * half) as f64);
        let (cos, sin) = cpu::table(inverse_frequencies, positions)?;
        Ok(Self { cos: cos.to_device(device)?, sin: sin.to_device(device)? })
    }

    /// The angles of a batch, from the position of each of its N rows.
    ///
    /// # Errors
    /// If there is no row, or a position is not below P.
    pub fn at(&self, positions: &[u32]) -> Result<Angles> {
        const OP: &str = "rotary";
        let limit = self.cos.rows();
        check::value(OP, !positions.is_empty(), || "needs at least one position".into())?;
        check::value(OP, positions.iter().all(|p| (*p as usize) < limit), || {
            format!("positions must be below {limit}, got {:?}", positions.iter().max())
        })?;
        let rows = positions.len();
        let positions = on_device!(
            self.cos.device(),
            Positions::Host(positions.to_vec()),
            gpu => Positions::Gpu(gpu.upload_u32(positions))
        );
        Ok(Angles { table: self.clone(), positions, rows })
    }
}

/// The angles of a batch, made by [`Table::at`]. The queries and keys of all layers use them, forward and backward.
#[derive(Debug)]
pub struct Angles {
    table: Table,
    positions: Positions,
    rows: usize,
}

#[derive(Debug)]
enum Positions {
    Host(Vec<u32>),
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Gpu(crate::gpu::GpuBuffer),
}

/// Rotates every head: x (N, H D); y in the shape of x.
///
/// # Errors
/// If the number of rows of x is not that of the angles, the columns are not whole heads, or x is not f32 or on another
/// device.
///
/// ```
/// use gelora_kernels::{Device, Tensor, ops::rotary};
///
/// let table = rotary::Table::new(&[std::f32::consts::FRAC_PI_2], 2, &Device::Cpu)?;
/// let x = Tensor::from_vec(vec![1.0, 2.0, 1.0, 2.0], [2, 2])?;
/// let y = rotary::forward(&x, &table.at(&[0, 1])?)?.to_vec()?;
/// assert!(y.iter().zip([1.0, 2.0, -2.0, 1.0]).all(|(y, want)| (y - want).abs() < 1e-6));
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    rotate("rotary", "x", x, angles, 1.0)
}

/// The backward pass of [`forward`], a rotation by the negative angles: dy (N, H D); dx in the shape of dy.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, angles: &Angles) -> Result<Tensor> {
    rotate("rotary.backward", "dy", dy, angles, -1.0)
}

fn rotate(op: &'static str, name: &'static str, x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (_, cols) = check::matrix(op, name, x)?;
    let head = 2 * angles.table.cos.cols();
    check::shape(op, name, x, &[angles.rows, cols])?;
    check::value(op, cols.is_multiple_of(head), || {
        format!("{name} must have whole heads of {head}, got {cols} values")
    })?;
    check::f32(op, name, x)?;
    check::same_device(op, &[x, &angles.table.cos])?;
    let len = x.len() as f64;
    let _span = profile::span(op, 3.0 * len, 8.0 * len + 4.0 * (angles.rows * head) as f64);
    on_device!(x.device(), cpu::rotate(x, angles, sign), gpu => gpu::rotate(gpu, op, x, angles, sign))
}
