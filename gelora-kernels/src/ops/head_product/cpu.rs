use rayon::prelude::*;

use super::Sizes;
use crate::cpu::{Onto, View, ViewMut, gemm_serial};
use crate::{Result, Tensor};

/// Rows of x that a task works on: enough that the table's layout for products costs little beside them.
const ROWS: usize = 256;

/// Head h of the rows of a matrix whose heads are `width` wide.
fn head(data: &[f32], h: usize, heads: usize, width: usize) -> View<'_> {
    let pitch = heads * width;
    View::strided(&data[h * width..], data.len() / pitch, width, pitch)
}

/// The heads of a matrix of `width` values a head, each by itself.
fn heads_of(data: &mut [f32], heads: usize, width: usize) -> impl Iterator<Item = ViewMut<'_>> {
    let rows = data.len() / (heads * width);
    ViewMut::new(data, rows, heads * width).columns(width)
}

/// out_h = x_h table_h for each head and block of rows: `right` makes the table's head a right factor.
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
        let heads_out: Vec<_> = heads_of(out, heads, width).enumerate().collect();
        heads_out.into_par_iter().for_each(|(h, out)| {
            gemm_serial(out, Onto::Nothing, 1.0, head(x, h, heads, x_width), right(h));
        });
    });
}

pub fn forward(s: Sizes, x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::output([s.n, s.heads * s.r])?;
    let (x, table) = (x.as_slice()?, table.as_slice()?);
    by_rows(y.as_mut_slice()?, s.r, (x, s.d), s.heads, |h| head(table, h, s.heads, s.d).t());
    Ok(y)
}

pub fn backward_input(s: Sizes, dy: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut dx = Tensor::output([s.n, s.heads * s.d])?;
    let (dy, table) = (dy.as_slice()?, table.as_slice()?);
    by_rows(dx.as_mut_slice()?, s.d, (dy, s.r), s.heads, |h| head(table, h, s.heads, s.d));
    Ok(dx)
}

pub fn backward_table(s: Sizes, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dt = Tensor::output([s.r, s.heads * s.d])?;
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    let parts: Vec<_> = heads_of(dt.as_mut_slice()?, s.heads, s.d).enumerate().collect();
    parts.into_par_iter().for_each(|(h, dt)| {
        gemm_serial(dt, Onto::Nothing, 1.0, head(dy, h, s.heads, s.r).t(), head(x, h, s.heads, s.d));
    });
    Ok(dt)
}
