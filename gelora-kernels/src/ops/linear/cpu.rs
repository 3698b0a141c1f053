//! Products with packed weights, or, for few rows, with weights as they are stored.

use super::Weight;
use crate::cpu::{Init, Scratch, View, ViewMut, for_rows_of_token, gemm, math, product, vectorized};
use crate::quantized::dot;
use crate::{Result, Tensor};

pub(crate) fn forward(x: &Tensor, w: &Weight, b: Option<&Tensor>, n: usize) -> Result<Tensor> {
    if w.reads_stored(n) {
        return few_rows(x, w, b, n);
    }
    let mut y = Tensor::output([n, w.c_out()])?;
    let init = b.map(Tensor::as_slice).transpose()?.map_or(Init::Zero, Init::Row);
    let layout = w.forward()?;
    product(y.as_mut_slice()?, init, x.as_slice()?, &layout, None);
    Ok(y)
}

/// y for few rows of x. Rows of W are read as they are stored, once for all rows of x.
fn few_rows(x: &Tensor, w: &Weight, b: Option<&Tensor>, n: usize) -> Result<Tensor> {
    let c_out = w.c_out();
    let (x, b) = (x.as_slice()?, b.map(Tensor::as_slice).transpose()?);
    let mut y = Tensor::output([n, c_out])?;
    if n == 1 {
        transposed(x, w, b, n, y.as_mut_slice()?)?;
        return Ok(y);
    }
    let mut columns = Scratch::new(c_out * n);
    transposed(x, w, b, n, &mut columns)?;
    for (i, y) in y.as_mut_slice()?.chunks_exact_mut(c_out).enumerate() {
        y.iter_mut().zip(columns.iter().skip(i).step_by(n)).for_each(|(y, v)| *y = *v);
    }
    Ok(y)
}

/// Writes y^T (C_out, N) for few rows of x.
fn transposed(x: &[f32], w: &Weight, b: Option<&[f32]>, n: usize, y: &mut [f32]) -> Result<()> {
    let (c_in, dtype) = (w.c_in(), w.tensor().dtype());
    let bias = |o: usize| b.map_or(0.0, |b| b[o]);
    if !dot::has_rows(dtype) {
        for_rows_of_token(y, n, (n + 1) * c_in, |first, y| {
            let mut row = Scratch::new(c_in);
            for (o, y) in y.chunks_exact_mut(n).enumerate() {
                w.tensor().widen((first + o) * c_in, &mut row).expect("a weight of fewer bits than f32");
                products(&row, x, bias(first + o), y);
            }
        });
        return Ok(());
    }
    // Quantized types with products of their own.
    let (bytes, row, sums) = (w.tensor().bytes()?, dtype.bytes(c_in), dot::Sums::of(x));
    for_rows_of_token(y, n, n * c_in, |first, y| {
        dot::rows(dtype, &bytes[first * row..][..y.len() / n * row], x, n, &sums, y);
        for (o, y) in y.chunks_exact_mut(n).enumerate() {
            y.iter_mut().for_each(|y| *y += bias(first + o));
        }
    });
    Ok(())
}

vectorized! {
    /// y_i = b + row x_i.
    fn products(row: &[f32], x: &[f32], b: f32, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(row.len())) {
            *y = b + math::wide_dot(row, x);
        }
    }
}

pub(crate) fn backward_input(dy: &Tensor, w: &Weight, n: usize) -> Result<Tensor> {
    let mut dx = Tensor::output([n, w.c_in()])?;
    let layout = w.backward()?;
    product(dx.as_mut_slice()?, Init::Zero, dy.as_slice()?, &layout, None);
    Ok(dx)
}

pub(crate) fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    n: usize,
    c_in: usize,
    c_out: usize,
) -> Result<(Tensor, Tensor)> {
    let (mut dw, mut db) = (Tensor::output([c_out, c_in])?, Tensor::output([c_out])?);
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    gemm(
        ViewMut::new(dw.as_mut_slice()?, c_out, c_in),
        Init::Zero,
        1.0,
        View::new(dy, n, c_out).t(),
        View::new(x, n, c_in),
    );
    let sums = db.as_mut_slice()?;
    sums.fill(0.0);
    for row in dy.chunks_exact(c_out) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
    Ok((dw, db))
}
