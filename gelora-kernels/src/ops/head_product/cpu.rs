//! Matrix products, one for each head and block of rows.

use rayon::prelude::*;

use super::Sizes;
use crate::cpu::{Init, View, ViewMut, gemm_serial};
use crate::{Result, Tensor};

/// Rows of x in one task. With this many rows, packing the table costs little beside the product.
const ROWS: usize = 256;

/// The columns of head `h` in a matrix with `width` columns for each head.
fn head(data: &[f32], h: usize, heads: usize, width: usize) -> View<'_> {
    let pitch = heads * width;
    View::strided(&data[h * width..], data.len() / pitch, width, pitch)
}

/// The columns of every head in a matrix with `width` columns for each head.
fn head_views(data: &mut [f32], heads: usize, width: usize) -> impl Iterator<Item = ViewMut<'_>> {
    let rows = data.len() / (heads * width);
    ViewMut::new(data, rows, heads * width).columns(width)
}

/// out_h = x_h right(h), for each head and block of rows.
fn by_rows<'t>(
    out: &mut [f32],
    width: usize,
    x: (&[f32], usize),
    heads: usize,
    right: impl Fn(usize) -> View<'t> + Sync,
) {
    let (x, x_width) = x;
    let blocks = out.par_chunks_mut(ROWS * heads * width).zip(x.par_chunks(ROWS * heads * x_width));
    blocks.for_each(|(out, x)| {
        let heads_out: Vec<_> = head_views(out, heads, width).enumerate().collect();
        heads_out.into_par_iter().for_each(|(h, out)| {
            gemm_serial(out, Init::Zero, 1.0, head(x, h, heads, x_width), right(h));
        });
    });
}

pub(crate) fn forward(s: Sizes, x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output([s.n, s.heads * s.r])?;
    let (x, table) = (x.as_slice()?, table.as_slice()?);
    by_rows(y.as_mut_slice()?, s.r, (x, s.d), s.heads, |h| head(table, h, s.heads, s.d).t());
    Ok(y)
}

pub(crate) fn backward_input(s: Sizes, dy: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut dx = Tensor::output([s.n, s.heads * s.d])?;
    let (dy, table) = (dy.as_slice()?, table.as_slice()?);
    by_rows(dx.as_mut_slice()?, s.d, (dy, s.r), s.heads, |h| head(table, h, s.heads, s.d));
    Ok(dx)
}

pub(crate) fn backward_table(s: Sizes, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dt = Tensor::output([s.r, s.heads * s.d])?;
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    let parts: Vec<_> = head_views(dt.as_mut_slice()?, s.heads, s.d).enumerate().collect();
    parts.into_par_iter().for_each(|(h, dt)| {
        gemm_serial(dt, Init::Zero, 1.0, head(dy, h, s.heads, s.r).t(), head(x, h, s.heads, s.d));
    });
    Ok(dt)
}
