//! Concatenation of matrices by columns or rows, and the split by columns.
//!
//! - columns: y = [x_1 x_2 ..], x_i (N, C_i), y (N, sum of C_i). split_columns is its inverse; each is the backward
//!   pass of the other.
//! - rows: y = x_1 over x_2 over .., x_i (N_i, C), y (sum of N_i, C). append does the same in place; on a CPU, x_1
//!   keeps capacity for more rows.
//!
//! Values are copied; nothing is computed.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{DeviceKind, Result, Tensor, profile};

/// A block of `rows` rows of `width` values, with the place of its first value and the distance of its rows, in x and
/// in y.
#[derive(Clone, Copy, Debug)]
struct Block {
    rows: usize,
    width: usize,
    /// (first, distance) in x.
    from: (usize, usize),
    /// (first, distance) in y.
    to: (usize, usize),
}

/// Concatenates matrices by columns: x_i (N, C_i) -> (N, sum of C_i).
///
/// # Errors
/// If there is no matrix, the numbers of rows differ, a matrix is not f32, or devices differ.
///
/// ```
/// use gelora_kernels::{Tensor, ops::concat};
///
/// let x = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2])?;
/// let z = Tensor::from_vec(vec![5.0, 6.0], [2, 1])?;
/// let y = concat::columns(&[&x, &z])?;
/// assert_eq!(y.to_vec()?, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
/// assert_eq!(concat::split_columns(&y, &[2, 1])?[1].to_vec()?, [5.0, 6.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn columns(parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "concat.columns";
    let n = parts.first().map_or(0, |x| x.rows());
    check_parts(OP, parts, |c| [n, c[1]])?;
    let width: usize = parts.iter().map(|x| x.cols()).sum();
    let blocks = starts(parts.iter().map(|x| x.cols())).zip(parts).map(|(first, x)| {
        let c = x.cols();
        (*x, Block { rows: n, width: c, from: (0, c), to: (first, width) })
    });
    assemble(OP, [n, width], &blocks.collect::<Vec<_>>())
}

/// Splits a matrix (N, sum of C_i) by columns, into matrices (N, C_i) with C_i = `widths[i]`.
///
/// # Errors
/// If the sum of the widths is not the number of columns, a width is 0, or x is not f32.
pub fn split_columns(x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    const OP: &str = "concat.split_columns";
    let (n, c) = check::matrix(OP, "x", x)?;
    check::f32(OP, "x", x)?;
    check::value(OP, widths.iter().sum::<usize>() == c && !widths.contains(&0), || {
        format!("widths {widths:?} do not make up {c} columns")
    })?;
    let part = |(first, &width): (usize, &usize)| {
        assemble(OP, [n, width], &[(x, Block { rows: n, width, from: (first, c), to: (0, width) })])
    };
    starts(widths.iter().copied()).zip(widths).map(part).collect()
}

/// Concatenates matrices by rows: x_i (N_i, C) -> (sum of N_i, C).
///
/// # Errors
/// If there is no matrix, the numbers of columns differ, a matrix is not f32, or devices differ.
pub fn rows(parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "concat.rows";
    let c = parts.first().map_or(0, |x| x.cols());
    check_parts(OP, parts, |n| [n[0], c])?;
    let n = parts.iter().map(|x| x.rows()).sum();
    let blocks = starts(parts.iter().map(|x| x.len()))
        .zip(parts)
        .map(|(first, x)| (*x, Block { rows: 1, width: x.len(), from: (0, x.len()), to: (first, x.len()) }));
    assemble(OP, [n, c], &blocks.collect::<Vec<_>>())
}

/// Appends the rows of `more` to `x`: (N, C), (M, C) -> (N + M, C). On a CPU the time is that of the new rows alone,
/// unless `x` shares its values with a clone.
///
/// # Errors
/// As [`rows`]. `x` is unchanged on an error.
///
/// ```
/// use gelora_kernels::{Tensor, ops::concat};
///
/// let mut keys = Tensor::from_vec(vec![1.0, 2.0], [1, 2])?;
/// concat::append(&mut keys, &Tensor::from_vec(vec![3.0, 4.0], [1, 2])?)?;
/// assert_eq!((keys.shape(), keys.to_vec()?), (&[2, 2][..], vec![1.0, 2.0, 3.0, 4.0]));
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn append(x: &mut Tensor, more: &Tensor) -> Result<()> {
    const OP: &str = "concat.append";
    check_parts(OP, &[x, more], |n| [n[0], x.cols()])?;
    if x.device().kind() == DeviceKind::Cpu {
        let _span = profile::span(OP, 0.0, 8.0 * more.len() as f64);
        return x.append(more.as_slice()?);
    }
    *x = rows(&[x, more])?;
    Ok(())
}

/// The start of each part, for parts of these lengths that follow one another.
fn starts(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    lengths.scan(0, |end, length| {
        *end += length;
        Some(*end - length)
    })
}

/// Checks that there is a matrix, and that all are f32, on one device and of the expected shape.
fn check_parts(op: &'static str, parts: &[&Tensor], expected: impl Fn([usize; 2]) -> [usize; 2]) -> Result<()> {
    check::value(op, !parts.is_empty(), || "needs at least one matrix".into())?;
    for x in parts {
        let (n, c) = check::matrix(op, "x", x)?;
        check::shape(op, "x", x, &expected([n, c]))?;
        check::f32(op, "x", x)?;
    }
    check::same_device(op, parts)
}

/// Copies the blocks into a new matrix.
fn assemble(op: &'static str, shape: [usize; 2], blocks: &[(&Tensor, Block)]) -> Result<Tensor> {
    let _span = profile::span(op, 0.0, 8.0 * (shape[0] * shape[1]) as f64);
    on_device!(blocks[0].0.device(), cpu::assemble(shape, blocks), gpu => gpu::assemble(gpu, op, shape, blocks))
}
