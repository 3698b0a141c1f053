//! Each function is one product; see [`crate::gpu::product`].

use super::Weight;
use crate::gpu::product::{Product, column_sums, columns, rows};
use crate::gpu::{Backend, Gpu};
use crate::{DType, Result, Tensor};

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    let _planned = w.plan_layout(gpu.tally(), x.rows(), true);
    let bf16 = w.compute() == DType::Bf16;
    Product { bias, bf16, ..Product::new("linear", rows(x), rows(w.tensor()).kept_in(w.rounded())) }.run(gpu)
}

pub(crate) fn backward_input<R: Backend>(gpu: &Gpu<R>, dy: &Tensor, w: &Weight) -> Result<Tensor> {
    let _planned = w.plan_layout(gpu.tally(), dy.rows(), false);
    let bf16 = w.compute() == DType::Bf16;
    Product { bf16, ..Product::new("linear.backward_input", rows(dy), columns(w.tensor()).kept_in(w.rounded())) }
        .run(gpu)
}

pub(crate) fn backward_weight<R: Backend>(gpu: &Gpu<R>, dy: &Tensor, x: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "linear.backward_weight";
    let dw = Product::new(OP, columns(dy), columns(x)).run(gpu)?;
    Ok((dw, column_sums(gpu, OP, dy)?))
}
