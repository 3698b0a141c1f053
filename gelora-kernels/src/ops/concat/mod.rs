//! Matrices beside or below one another, and taken apart again.
//!
//! columns: y = [x_1 x_2 ..], x_i (N, C_i), y (N, sum of C_i). split_columns is its inverse, and each is the other's backward.
//! rows: y = x_1 over x_2 over .., x_i (N_i, C), y (sum of N_i, C). append does the same to x_1 itself, which on a CPU keeps
//! room for more. Values are copied, nothing is computed.

pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{DeviceKind, Result, Tensor, profile};

/// A block of `rows` rows of `width` values: where its first value is and how far apart its rows are, in x and in y.
#[derive(Clone, Copy, Debug)]
struct Block {
    rows: usize,
    width: usize,
    /// (first, distance) in x.
    from: (usize, usize),
    /// (first, distance) in y.
    to: (usize, usize),
}

/// The matrices side by side: x_i (N, C_i) -> (N, sum of C_i).
///
/// # Errors
/// If there is none, their rows differ in number, one is not f32, or devices differ.
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
    let blocks = firsts(parts.iter().map(|x| x.cols())).zip(parts).map(|(first, x)| {
        let c = x.cols();
        (*x, Block { rows: n, width: c, from: (0, c), to: (first, width) })
    });
    assemble(OP, [n, width], &blocks.collect::<Vec<_>>())
}

/// The matrix (N, sum of C_i) taken apart into matrices of so many columns, C_i each.
///
/// # Errors
/// If the widths do not sum to the columns, one is 0, or x is not f32.
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
    firsts(widths.iter().copied()).zip(widths).map(part).collect()
}

/// The matrices one below the other: x_i (N_i, C) -> (sum of N_i, C).
///
/// # Errors
/// If there is none, their columns differ in number, one is not f32, or devices differ.
pub fn rows(parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "concat.rows";
    let c = parts.first().map_or(0, |x| x.cols());
    check_parts(OP, parts, |n| [n[0], c])?;
    let n = parts.iter().map(|x| x.rows()).sum();
    let blocks = firsts(parts.iter().map(|x| x.len()))
        .zip(parts)
        .map(|(first, x)| (*x, Block { rows: 1, width: x.len(), from: (0, x.len()), to: (first, x.len()) }));
    assemble(OP, [n, c], &blocks.collect::<Vec<_>>())
}

/// Puts the rows of another matrix below those of `x`: (N, C), (M, C) -> (N + M, C). On a CPU that takes time for the new rows
/// alone, if no clone of `x` is around.
///
/// # Errors
/// As [`rows`]; `x` is as before.
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

/// Where each of several lengths begins when they follow one another.
fn firsts(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    lengths.scan(0, |at, length| {
        *at += length;
        Some(*at - length)
    })
}

fn check_parts(op: &'static str, parts: &[&Tensor], expected: impl Fn([usize; 2]) -> [usize; 2]) -> Result<()> {
    check::value(op, !parts.is_empty(), || "needs at least one matrix".into())?;
    for x in parts {
        let (n, c) = check::matrix(op, "x", x)?;
        check::shape(op, "x", x, &expected([n, c]))?;
        check::f32(op, "x", x)?;
    }
    check::same_device(op, parts)
}

fn assemble(op: &'static str, shape: [usize; 2], blocks: &[(&Tensor, Block)]) -> Result<Tensor> {
    let _span = profile::span(op, 0.0, 8.0 * (shape[0] * shape[1]) as f64);
    on_device!(blocks[0].0.device(), cpu::assemble(shape, blocks), gpu => gpu::assemble(gpu, op, shape, blocks))
}
