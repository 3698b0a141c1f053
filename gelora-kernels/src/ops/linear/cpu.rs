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
    let (x, b) = (x.as_slice()?, b.map(Tensor::as_slice).transpose()?);
    if n == 1 && dot::has_rows(w.tensor().dtype()) {
        return one_row(x, w, b);
    }
    let (c_in, c_out) = (w.c_in(), w.c_out());
    let mut transposed = Scratch::new(c_out * n);
    for_rows_of_token(&mut transposed, n, (n + 1) * c_in, |first, y| {
        let mut row = Scratch::new(c_in);
        for (o, y) in y.chunks_exact_mut(n).enumerate() {
            w.tensor().widen((first + o) * c_in, &mut row).expect("a weight of fewer bits than f32");
            products(&row, x, b.map_or(0.0, |b| b[first + o]), y);
        }
    });
    let mut y = Tensor::output([n, c_out])?;
    for (i, y) in y.as_mut_slice()?.chunks_exact_mut(c_out).enumerate() {
        y.iter_mut().zip(transposed.iter().skip(i).step_by(n)).for_each(|(y, v)| *y = *v);
    }
    Ok(y)
}

/// y for one row of x and a quantized W.
fn one_row(x: &[f32], w: &Weight, b: Option<&[f32]>) -> Result<Tensor> {
    let (bytes, dtype) = (w.tensor().bytes()?, w.tensor().dtype());
    let row = dtype.bytes(w.c_in());
    let sums = dot::Sums::of(x);
    let mut y = Tensor::output([1, w.c_out()])?;
    for_rows_of_token(y.as_mut_slice()?, 1, w.c_in(), |first, y| {
        dot::rows(dtype, &bytes[first * row..][..y.len() * row], x, &sums, y);
        if let Some(b) = b {
            y.iter_mut().zip(&b[first..]).for_each(|(y, b)| *y += b);
        }
    });
    Ok(y)
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
