//! The adapter is computed along with the base product: xa for a block of rows that the base product is about to read,
//! and x W^T + s xa B^T as one sum over C_in + R terms, held in registers.

use super::{Gradients, LoraLinear, Sizes};
use crate::cpu::{Init, LowRank, Mask, Packed, Scratch, View, ViewMut, for_row_blocks, gemm, product};
use crate::ops::{dropout, linear};
use crate::{DType, Result, Tensor};

pub(crate) fn forward(layer: &LoraLinear<'_>, x: &Tensor, sizes: Sizes) -> Result<(Tensor, Tensor)> {
    let Sizes { n, c_in, c_out, r } = sizes;
    if layer.weight.reads_stored(n) {
        return few_rows(layer, x, sizes);
    }
    let (mut y, mut xa) = (Tensor::output([n, c_out])?, Tensor::output([n, r])?);
    let w = layer.weight.forward()?;
    let down = Packed::like(&w, View::new(layer.a.as_slice()?, r, c_in).t(), 1.0);
    let up = Packed::scaled(View::new(layer.b.as_slice()?, c_out, r).t(), layer.scaling);
    let mask = layer
        .active_dropout()
        .map(|d| move |first: usize, x: &[f32], dropped: &mut [f32]| dropout::cpu::block(d, first as u32, x, dropped));
    let mask = mask.as_ref().map(|f| f as &Mask<'_>);
    let low_rank = LowRank { down: &down, up: &up, inner: xa.as_mut_slice()?, mask };
    let init = layer.bias.map(Tensor::as_slice).transpose()?.map_or(Init::Zero, Init::Row);
    product(y.as_mut_slice()?, init, x.as_slice()?, &w, Some(low_rank));
    Ok((y, xa))
}

pub(crate) fn backward(
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    sizes: Sizes,
) -> Result<Gradients> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let (mut dx, mut dxa) = (Tensor::output([n, c_in])?, Tensor::output([n, r])?);
    let w = layer.weight.backward()?;
    let a = View::new(layer.a.as_slice()?, r, c_in);
    let d_out = dy.as_slice()?;
    match layer.active_dropout() {
        None => {
            let down = Packed::like(&w, View::new(layer.b.as_slice()?, c_out, r), layer.scaling);
            let low_rank = LowRank { down: &down, up: &Packed::f32(a), inner: dxa.as_mut_slice()?, mask: None };
            product(dx.as_mut_slice()?, Init::Zero, d_out, &w, Some(low_rank));
        }
        Some(d) => {
            dxa = d_xa(layer, dy, sizes)?;
            let dx = dx.as_mut_slice()?;
            product(dx, Init::Zero, d_out, &w, None);
            let mut through_a = Scratch::new(n * c_in);
            product(&mut through_a, Init::Zero, dxa.as_slice()?, &Packed::f32(a), None);
            for_row_blocks(dx, c_in, |first, dx| {
                let first = first * c_in;
                dropout::cpu::add_block(d, first as u32, &through_a[first..first + dx.len()], dx);
            });
        }
    }
    let (da, db) = d_parameters(layer, x, dy, xa, &dxa, sizes)?;
    Ok(Gradients { dx, da, db })
}

pub(crate) fn backward_parameters(
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    sizes: Sizes,
) -> Result<(Tensor, Tensor)> {
    d_parameters(layer, x, dy, xa, &d_xa(layer, dy, sizes)?, sizes)
}

/// The forward pass for few rows: the base product of `linear`, then the adapter's products.
fn few_rows(layer: &LoraLinear<'_>, x: &Tensor, sizes: Sizes) -> Result<(Tensor, Tensor)> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let mut y = linear::cpu::forward(x, layer.weight, layer.bias, n)?;
    let mut xa = Tensor::output([n, r])?;
    let mut dropped = Scratch::new(n * c_in);
    match layer.active_dropout() {
        Some(d) => dropout::cpu::block(d, 0, x.as_slice()?, &mut dropped),
        None => dropped.copy_from_slice(x.as_slice()?),
    }
    let a = View::new(layer.a.as_slice()?, r, c_in).t();
    gemm(ViewMut::new(xa.as_mut_slice()?, n, r), Init::Zero, 1.0, View::new(&dropped, n, c_in), a);
    let b = View::new(layer.b.as_slice()?, c_out, r).t();
    let inner = View::new(xa.as_slice()?, n, r);
    gemm(ViewMut::new(y.as_mut_slice()?, n, c_out), Init::Accumulate, layer.scaling, inner, b);
    Ok((y, xa))
}

/// dxa = s dY B, in the type that the weight's products are computed in.
fn d_xa(layer: &LoraLinear<'_>, dy: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { n, c_out, r, .. } = sizes;
    let mut dxa = Tensor::output([n, r])?;
    let b = View::new(layer.b.as_slice()?, c_out, r);
    let down = Packed::of(layer.weight.compute() == DType::Bf16, b, layer.scaling);
    product(dxa.as_mut_slice()?, Init::Zero, dy.as_slice()?, &down, None);
    Ok(dxa)
}

/// (dA = dxa^T drop(x), dB = s dY^T xa), in f32 even if the weight computes in bf16.
fn d_parameters(
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    dxa: &Tensor,
    sizes: Sizes,
) -> Result<(Tensor, Tensor)> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let mut da = Tensor::output([r, c_in])?;
    let dxa = View::new(dxa.as_slice()?, n, r).t();
    match layer.active_dropout() {
        None => {
            gemm(ViewMut::new(da.as_mut_slice()?, r, c_in), Init::Zero, 1.0, dxa, View::new(x.as_slice()?, n, c_in))
        }
        Some(d) => {
            let mut dropped = Scratch::new(n * c_in);
            let x = x.as_slice()?;
            for_row_blocks(&mut dropped, c_in, |first, dropped| {
                let first = first * c_in;
                dropout::cpu::block(d, first as u32, &x[first..first + dropped.len()], dropped);
            });
            gemm(ViewMut::new(da.as_mut_slice()?, r, c_in), Init::Zero, 1.0, dxa, View::new(&dropped, n, c_in));
        }
    }
    // dB^T = s xa^T dY, then its transpose: the product then has long rows, as dY.
    let mut transposed = Scratch::new(r * c_out);
    let (xa, dy) = (View::new(xa.as_slice()?, n, r).t(), View::new(dy.as_slice()?, n, c_out));
    gemm(ViewMut::new(&mut transposed, r, c_out), Init::Zero, layer.scaling, xa, dy);
    let mut db = Tensor::output([c_out, r])?;
    for (o, row) in db.as_mut_slice()?.chunks_exact_mut(r).enumerate() {
        row.iter_mut().enumerate().for_each(|(k, v)| *v = transposed[k * c_out + o]);
    }
    Ok((da, db))
}

/// W + s B A as f32 values.
pub(crate) fn merge(weight: &Tensor, a: &Tensor, b: &Tensor, scaling: f32, sizes: Sizes) -> Result<Tensor> {
    let Sizes { c_in, c_out, r, .. } = sizes;
    let (a, b, mut merged) = (a.to_vec()?, b.to_vec()?, weight.to_vec()?);
    let dst = ViewMut::new(&mut merged, c_out, c_in);
    gemm(dst, Init::Accumulate, scaling, View::new(&b, c_out, r), View::new(&a, r, c_in));
    Tensor::from_vec(merged, [c_out, c_in])
}
