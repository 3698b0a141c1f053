use super::Weight;
use crate::cpu::{Onto, View, ViewMut, gemm, product};
use crate::{Result, Tensor};

pub fn forward(x: &Tensor, w: &Weight, b: Option<&Tensor>, n: usize) -> Result<Tensor> {
    let mut y = Tensor::output([n, w.c_out()])?;
    let onto = b.map(Tensor::as_slice).transpose()?.map_or(Onto::Nothing, Onto::Row);
    product(y.as_mut_slice()?, onto, x.as_slice()?, w.forward()?, None);
    Ok(y)
}

pub fn backward_input(dy: &Tensor, w: &Weight, n: usize) -> Result<Tensor> {
    let mut dx = Tensor::output([n, w.c_in()])?;
    product(dx.as_mut_slice()?, Onto::Nothing, dy.as_slice()?, w.backward()?, None);
    Ok(dx)
}

pub fn backward_weight(dy: &Tensor, x: &Tensor, n: usize, c_in: usize, c_out: usize) -> Result<(Tensor, Tensor)> {
    let (mut dw, mut db) = (Tensor::output([c_out, c_in])?, Tensor::output([c_out])?);
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    gemm(
        ViewMut::new(dw.as_mut_slice()?, c_out, c_in),
        Onto::Nothing,
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
