use std::borrow::Cow;

use rayon::prelude::*;

use super::{LoraLinear, Sizes};
use crate::cpu::{View, for_row_blocks, gemm, gemm_serial};
use crate::ops::dropout;
use crate::{Result, Tensor};

/// Row blocks that dA and dB are summed in, at most: each holds a partial result of its own.
const MAX_BLOCKS: usize = 16;

pub fn forward(layer: &LoraLinear<'_>, x: &Tensor, sizes: Sizes) -> Result<(Tensor, Tensor)> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let (mut y, mut xa) = (Tensor::output([n, c_out])?, Tensor::output([n, r])?);
    let (a, b, x) = (View::new(layer.a.as_slice()?, r, c_in), View::new(layer.b.as_slice()?, c_out, r), x.as_slice()?);

    thin(xa.as_mut_slice()?, r, c_in, |first, rows, xa| {
        let x = dropped(layer, &x[first * c_in..][..rows * c_in], first * c_in);
        gemm_serial(xa, r, 0.0, 1.0, View::new(&x, rows, c_in), a.t());
    });

    let out = y.as_mut_slice()?;
    let beta = match layer.bias {
        Some(bias) => {
            let bias = bias.as_slice()?;
            for_row_blocks(out, c_out, |_, rows| {
                rows.chunks_exact_mut(c_out).for_each(|row| row.copy_from_slice(bias));
            });
            1.0
        }
        None => 0.0,
    };
    gemm(out, c_out, beta, 1.0, View::new(x, n, c_in), View::new(&layer.weight.to_f32()?, c_out, c_in).t());
    let xa_values = xa.as_slice()?;
    thin(out, c_out, r, |first, rows, y| {
        gemm_serial(y, c_out, 1.0, layer.scaling, View::new(&xa_values[first * r..], rows, r), b.t());
    });
    Ok((y, xa))
}

/// dxa = s dY B.
pub fn d_xa(layer: &LoraLinear<'_>, dy: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { n, c_out, r, .. } = sizes;
    let (dy, b) = (dy.as_slice()?, View::new(layer.b.as_slice()?, c_out, r));
    let mut dxa = Tensor::output([n, r])?;
    thin(dxa.as_mut_slice()?, r, c_out, |first, rows, dxa| {
        gemm_serial(dxa, r, 0.0, layer.scaling, View::new(&dy[first * c_out..], rows, c_out), b);
    });
    Ok(dxa)
}

/// dX = dY W + mask / (1 - p) * (dxa A).
pub fn d_input(layer: &LoraLinear<'_>, dy: &Tensor, dxa: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let dxa = dxa.as_slice()?;
    let mut dx = Tensor::output([n, c_in])?;
    let out = dx.as_mut_slice()?;
    let a = View::new(layer.a.as_slice()?, r, c_in);
    gemm(out, c_in, 0.0, 1.0, View::new(dy.as_slice()?, n, c_out), View::new(&layer.weight.to_f32()?, c_out, c_in));
    thin(out, c_in, r, |first, rows, dx| {
        let dxa = View::new(&dxa[first * r..], rows, r);
        match layer.active_dropout() {
            None => gemm_serial(dx, c_in, 1.0, 1.0, dxa, a),
            Some(d) => {
                let mut through_a = vec![0.0; rows * c_in];
                gemm_serial(&mut through_a, c_in, 0.0, 1.0, dxa, a);
                dropout::cpu::add_block(d, (first * c_in) as u32, &through_a, dx);
            }
        }
    });
    Ok(dx)
}

/// (dA = dxa^T drop(x), dB = s dY^T xa).
pub fn d_parameters(
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    dxa: &Tensor,
    sizes: Sizes,
) -> Result<(Tensor, Tensor)> {
    let Sizes { n, c_in, c_out, r } = sizes;
    let (x, dy, xa, dxa) = (x.as_slice()?, dy.as_slice()?, xa.as_slice()?, dxa.as_slice()?);
    // The blocks depend on N alone, so the order of the sums does not depend on the number of threads.
    let block = n.div_ceil(MAX_BLOCKS).max(64);
    let partial = |first: usize| {
        let rows = block.min(n - first);
        let (mut da, mut db) = (vec![0.0; r * c_in], vec![0.0; c_out * r]);
        let x = dropped(layer, &x[first * c_in..][..rows * c_in], first * c_in);
        gemm_serial(&mut da, c_in, 0.0, 1.0, View::new(&dxa[first * r..], rows, r).t(), View::new(&x, rows, c_in));
        let (dy, xa) = (View::new(&dy[first * c_out..], rows, c_out), View::new(&xa[first * r..], rows, r));
        gemm_serial(&mut db, r, 0.0, layer.scaling, dy.t(), xa);
        (da, db)
    };
    let partials: Vec<_> = (0..n).into_par_iter().step_by(block).map(partial).collect();
    let (mut da, mut db) = (Tensor::output([r, c_in])?, Tensor::output([c_out, r])?);
    let (da_sum, db_sum) = (da.as_mut_slice()?, db.as_mut_slice()?);
    da_sum.fill(0.0);
    db_sum.fill(0.0);
    for (da, db) in &partials {
        da_sum.iter_mut().zip(da).for_each(|(sum, v)| *sum += v);
        db_sum.iter_mut().zip(db).for_each(|(sum, v)| *sum += v);
    }
    Ok((da, db))
}

/// Calls `f(first_row, rows, block)` on blocks of whole rows of `out`, a block a thread: for products whose other
/// dimensions are so thin that a GEMM split over threads spends its time packing.
fn thin(out: &mut [f32], cols: usize, inner: usize, f: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let n = out.len() / cols;
    let small = n * cols * inner < 64 * 64 * 64;
    let rows = if small { n } else { n.div_ceil(rayon::current_num_threads()).max(8) };
    if rows >= n {
        return f(0, n, out);
    }
    out.par_chunks_mut(rows * cols).enumerate().for_each(|(i, block)| f(i * rows, block.len() / cols, block));
}

/// drop(x) for the elements from flat index `first`.
fn dropped<'x>(layer: &LoraLinear<'_>, x: &'x [f32], first: usize) -> Cow<'x, [f32]> {
    match layer.active_dropout() {
        None => Cow::Borrowed(x),
        Some(d) => {
            let mut y = vec![0.0; x.len()];
            dropout::cpu::block(d, first as u32, x, &mut y);
            Cow::Owned(y)
        }
    }
}
