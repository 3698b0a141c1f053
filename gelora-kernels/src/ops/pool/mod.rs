//! One vector for each sequence: the mean of its tokens, or a chosen row such as the first or the last token.
//!
//! - mean: y_b = 1/T_b sum of the rows of sequence b. Backward: dx_i = dy_b / T_b for every row i of b.
//! - rows: `y_b = x[rows_b]`. Backward: dy_b becomes row rows_b of a zero matrix; the rows are distinct.
//!
//! x (N, C), y (B, C). Accumulation: f32, over rows in ascending order; on a GPU in blocks of 256 rows.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Offsets, Result, Tensor, profile};

/// The mean of each sequence's rows: x (N, C) -> (B, C).
///
/// # Errors
/// If the number of rows of x is not that of the sequences' tokens, or x is not f32.
///
/// ```
/// use gelora_kernels::{Offsets, Tensor, ops::pool};
///
/// let x = Tensor::from_vec(vec![1.0, 3.0, 7.0], [3, 1])?;
/// let y = pool::mean(&x, &Offsets::from_lengths(&[2, 1])?)?;
/// assert_eq!(y.to_vec()?, [2.0, 7.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn mean(x: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    const OP: &str = "pool.mean";
    let (_, c) = check::matrix(OP, "x", x)?;
    check::shape(OP, "x", x, &[sequences.tokens(), c])?;
    check::f32(OP, "x", x)?;
    let _span = mean_span(OP, sequences, c);
    on_device!(x.device(), cpu::mean(x, sequences), gpu => gpu::mean(gpu, x, sequences))
}

/// The backward pass of [`mean`]: dy (B, C) -> dx (N, C).
///
/// # Errors
/// If dy does not have one row for each sequence, or is not f32.
pub fn mean_backward(dy: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    const OP: &str = "pool.mean_backward";
    let (_, c) = check::matrix(OP, "dy", dy)?;
    check::shape(OP, "dy", dy, &[sequences.sequences(), c])?;
    check::f32(OP, "dy", dy)?;
    let _span = mean_span(OP, sequences, c);
    on_device!(dy.device(), cpu::mean_backward(dy, sequences), gpu => gpu::mean_backward(gpu, dy, sequences))
}

/// The chosen rows: x (N, C) -> (number of rows, C).
///
/// # Errors
/// If no row is chosen, a row is not below N, or x is not f32.
pub fn rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    const OP: &str = "pool.rows";
    let (n, c) = check::matrix(OP, "x", x)?;
    check::f32(OP, "x", x)?;
    check_rows(OP, rows, n)?;
    let _span = profile::span(OP, 0.0, 8.0 * (rows.len() * c) as f64);
    on_device!(x.device(), cpu::rows(x, rows), gpu => gpu::rows(gpu, x, rows))
}

/// The backward pass of [`rows`] for distinct ascending rows: dy (number of rows, C) -> dx (n, C).
///
/// # Errors
/// If the rows are not ascending or not below n, or dy does not have one row for each of them.
pub fn rows_backward(dy: &Tensor, rows: &[usize], n: usize) -> Result<Tensor> {
    const OP: &str = "pool.rows_backward";
    let (_, c) = check::matrix(OP, "dy", dy)?;
    check::shape(OP, "dy", dy, &[rows.len(), c])?;
    check::f32(OP, "dy", dy)?;
    check_rows(OP, rows, n)?;
    check::value(OP, rows.windows(2).all(|w| w[0] < w[1]), || "rows must ascend".into())?;
    let _span = profile::span(OP, 0.0, 4.0 * ((n + rows.len()) * c) as f64);
    on_device!(dy.device(), cpu::rows_backward(dy, rows, n), gpu => gpu::rows_backward(gpu, dy, rows, n))
}

fn mean_span(op: &'static str, sequences: &Offsets, c: usize) -> profile::Span {
    let (n, b) = (sequences.tokens(), sequences.sequences());
    profile::span(op, (n * c) as f64, 4.0 * ((n + b) * c) as f64)
}

fn check_rows(op: &'static str, rows: &[usize], n: usize) -> Result<()> {
    check::value(op, !rows.is_empty(), || "needs at least one row".into())?;
    check::value(op, rows.iter().all(|r| *r < n), || format!("rows must be below {n}, got {:?}", rows.iter().max()))
}
