//! Products head by head with a table of rows that all tokens share: the terms of positions in attention scores.
//!
//! y_(n,h,r) = sum_d x_(n,h,d) t_(r,h,d), with x (N, H D), t (R, H D) and y (N, H R), heads side by side.
//! Backward, given dy: dx_(n,h,d) = sum_r dy_(n,h,r) t_(r,h,d); dt_(r,h,d) = sum_n dy_(n,h,r) x_(n,h,d).
//!
//! Accumulation: f32; on the CPU as in [`linear`](super::linear), on a GPU in ascending order of the summed index.
//!
//! Source: the content-to-position and position-to-content terms of He et al., arXiv 2006.03654.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Rows of x, N.
    n: usize,
    /// Rows of the table, R.
    r: usize,
    /// Heads, H.
    heads: usize,
    /// Channels of a head, D.
    d: usize,
}

/// y (N, H R) of x (N, H D) and a table (R, H D).
///
/// # Errors
/// If the widths of x and the table differ, the heads do not divide them, one is not f32, or devices differ.
///
/// ```
/// use gelora_kernels::{Tensor, ops::head_product};
///
/// let x = Tensor::from_vec(vec![1.0, 2.0], [1, 2])?; // one row of two heads of size 1
/// let table = Tensor::from_vec(vec![10.0, 100.0, 20.0, 200.0], [2, 2])?;
/// assert_eq!(head_product::forward(&x, &table, 2)?.to_vec()?, [10.0, 20.0, 200.0, 400.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(x: &Tensor, table: &Tensor, heads: usize) -> Result<Tensor> {
    const OP: &str = "head_product";
    let sizes = check_pair(OP, x, table, heads)?;
    let _span = span(OP, sizes);
    on_device!(x.device(), cpu::forward(sizes, x, table), gpu => gpu::forward(gpu, sizes, x, table))
}

/// dx (N, H D) from dy (N, H R).
///
/// # Errors
/// As [`forward`], and if dy does not have the shape of y.
pub fn backward_input(dy: &Tensor, table: &Tensor, heads: usize) -> Result<Tensor> {
    const OP: &str = "head_product.backward_input";
    let (r, c) = check::matrix(OP, "table", table)?;
    let n = check::matrix(OP, "dy", dy)?.0;
    let sizes = check_heads(OP, n, r, c, heads)?;
    check_gradient(OP, dy, sizes, ("table", table))?;
    let _span = span(OP, sizes);
    on_device!(dy.device(), cpu::backward_input(sizes, dy, table), gpu => gpu::backward_input(gpu, sizes, dy, table))
}

/// dt (R, H D) from dy (N, H R) and x (N, H D).
///
/// # Errors
/// As [`forward`], and if dy does not have the rows of x or the heads do not divide its columns.
pub fn backward_table(dy: &Tensor, x: &Tensor, heads: usize) -> Result<Tensor> {
    const OP: &str = "head_product.backward_table";
    let (n, c) = check::matrix(OP, "x", x)?;
    let width = check::matrix(OP, "dy", dy)?.1;
    check::value(OP, heads > 0 && width.is_multiple_of(heads), || {
        format!("{heads} heads do not divide the {width} columns of dy")
    })?;
    let sizes = check_heads(OP, n, width / heads, c, heads)?;
    check_gradient(OP, dy, sizes, ("x", x))?;
    let _span = span(OP, sizes);
    on_device!(dy.device(), cpu::backward_table(sizes, dy, x), gpu => gpu::backward_table(gpu, sizes, dy, x))
}

fn check_pair(op: &'static str, x: &Tensor, table: &Tensor, heads: usize) -> Result<Sizes> {
    let (n, c) = check::matrix(op, "x", x)?;
    let (r, _) = check::matrix(op, "table", table)?;
    check::shape(op, "table", table, &[r, c])?;
    check::f32(op, "x", x)?;
    check::f32(op, "table", table)?;
    check::same_device(op, &[x, table])?;
    check_heads(op, n, r, c, heads)
}

fn check_heads(op: &'static str, n: usize, r: usize, c: usize, heads: usize) -> Result<Sizes> {
    check::value(op, heads > 0 && c.is_multiple_of(heads), || format!("{heads} heads do not divide {c} channels"))?;
    Ok(Sizes { n, r, heads, d: c / heads })
}

fn check_gradient(op: &'static str, dy: &Tensor, sizes: Sizes, (name, other): (&'static str, &Tensor)) -> Result<()> {
    check::shape(op, "dy", dy, &[sizes.n, sizes.heads * sizes.r])?;
    check::f32(op, "dy", dy)?;
    check::f32(op, name, other)?;
    check::same_device(op, &[dy, other])
}

fn span(op: &'static str, Sizes { n, r, heads, d }: Sizes) -> profile::Span {
    profile::span(op, (2 * n * r * heads * d) as f64, (4 * heads * (n * d + r * d + n * r)) as f64)
}
