//! Forward: xa, then y with the adapter's terms in its sums. Backward: dxa, then dX with the adapter's terms in its
//! sums, and dA and dB as products over N. See [`crate::gpu::product`].

use super::LoraLinear;
use crate::gpu::product::{Adapter, Product, columns, rows};
use crate::gpu::tally::Alive;
use crate::gpu::{Backend, Gpu};
use crate::{DType, Result, Tensor};

const OP: &str = "lora_linear";

/// (y, xa).
pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let _planned = layer.weight.plan_layout(gpu.tally(), x.rows(), true);
    let xa = Product::new(OP, rows(x).dropped(layer.active_dropout()), rows(layer.a)).run(gpu)?;
    let adapter = Adapter { left: rows(&xa), right: rows(layer.b), scale: layer.scaling, dropout: None };
    let y = Product {
        adapter: Some(adapter),
        bias: layer.bias,
        bf16: layer.weight.compute() == DType::Bf16,
        ..Product::new(OP, rows(x), rows(layer.weight.tensor()).kept_in(layer.weight.rounded()))
    };
    Ok((y.run(gpu)?, xa))
}

/// dxa = s dY B.
pub(crate) fn d_xa<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, dy: &Tensor) -> Result<Tensor> {
    Product { scale: layer.scaling, ..Product::new(OP, rows(dy), columns(layer.b)) }.run(gpu)
}

/// dX = dY W + mask / (1 - p) * (dxa A).
pub(crate) fn d_input<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, dy: &Tensor, dxa: &Tensor) -> Result<Tensor> {
    let _planned = layer.weight.plan_layout(gpu.tally(), dy.rows(), false);
    let _masked = plan_dropout(gpu, layer, dy.rows());
    let adapter = Adapter { left: rows(dxa), right: columns(layer.a), scale: 1.0, dropout: layer.active_dropout() };
    let bf16 = layer.weight.compute() == DType::Bf16;
    Product {
        adapter: Some(adapter),
        bf16,
        ..Product::new(OP, rows(dy), columns(layer.weight.tensor()).kept_in(layer.weight.rounded()))
    }
    .run(gpu)
}

/// In a plan of the CPU, the bytes of n rows of inputs that the backward pass masks. None on other devices.
fn plan_dropout<R: Backend>(gpu: &Gpu<R>, layer: &LoraLinear<'_>, n: usize) -> Option<Alive> {
    let is_planned = gpu.tally().plans_cpu() && layer.active_dropout().is_some();
    is_planned.then(|| gpu.tally().alive((n * layer.weight.c_in() * size_of::<f32>()) as u64))
}

/// (dA = dxa^T drop(x), dB = s dY^T xa).
pub(crate) fn d_parameters<R: Backend>(
    gpu: &Gpu<R>,
    layer: &LoraLinear<'_>,
    x: &Tensor,
    dy: &Tensor,
    xa: &Tensor,
    dxa: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let _masked = plan_dropout(gpu, layer, x.rows());
    let da = Product::new(OP, columns(dxa), columns(x).dropped(layer.active_dropout())).run(gpu)?;
    let db = Product { scale: layer.scaling, ..Product::new(OP, columns(dy), columns(xa)) }.run(gpu)?;
    Ok((da, db))
}
