use crate::cpu::{View, for_row_blocks, gemm};
use crate::{Result, Tensor};

pub fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, n: usize, c_in: usize, c_out: usize) -> Result<Tensor> {
    let mut y = Tensor::output([n, c_out])?;
    let out = y.as_mut_slice()?;
    let beta = match b {
        Some(b) => {
            let b = b.to_f32()?;
            for_row_blocks(out, c_out, |_, rows| rows.chunks_exact_mut(c_out).for_each(|row| row.copy_from_slice(&b)));
            1.0
        }
        None => 0.0,
    };
    gemm(out, c_out, beta, 1.0, View::new(x.as_slice()?, n, c_in), View::new(&w.to_f32()?, c_out, c_in).t());
    Ok(y)
}

pub fn backward_input(dy: &Tensor, w: &Tensor, n: usize, c_in: usize, c_out: usize) -> Result<Tensor> {
    let mut dx = Tensor::output([n, c_in])?;
    let (dy, w) = (View::new(dy.as_slice()?, n, c_out), w.to_f32()?);
    gemm(dx.as_mut_slice()?, c_in, 0.0, 1.0, dy, View::new(&w, c_out, c_in));
    Ok(dx)
}

pub fn backward_weight(dy: &Tensor, x: &Tensor, n: usize, c_in: usize, c_out: usize) -> Result<(Tensor, Tensor)> {
    let (mut dw, mut db) = (Tensor::output([c_out, c_in])?, Tensor::output([c_out])?);
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    gemm(dw.as_mut_slice()?, c_in, 0.0, 1.0, View::new(dy, n, c_out).t(), View::new(x, n, c_in));
    let sums = db.as_mut_slice()?;
    sums.fill(0.0);
    for row in dy.chunks_exact(c_out) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
    Ok((dw, db))
}
