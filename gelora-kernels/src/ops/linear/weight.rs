use std::sync::{Arc, OnceLock};

use crate::cpu::{Packed, View};
use crate::ops::check;
use crate::{DType, Error, Result, Tensor};

/// A frozen weight W (C_out, C_in), laid out for its products once, at the first of them. Clones share it.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tensor: Tensor,
    compute: DType,
    c_in: usize,
    c_out: usize,
    /// W^T, for y = x W^T.
    forward: OnceLock<Packed>,
    /// W, for dx = dy W.
    backward: OnceLock<Packed>,
}

impl Weight {
    /// A weight of any storage type whose products on the CPU are computed in `compute`: f32, or bf16, in which both factors are
    /// rounded to bf16 and the sums are f32. A CPU without products of bf16 (AVX-512 BF16) computes in f32 all the same. GPU
    /// kernels compute in the storage type.
    ///
    /// # Errors
    /// If the tensor is not a matrix, or `compute` is neither f32 nor bf16.
    pub fn new(tensor: Tensor, compute: DType) -> Result<Self> {
        let (c_out, c_in) = check::matrix("linear", "W", &tensor)?;
        if !matches!(compute, DType::F32 | DType::Bf16) {
            return Err(Error::DType { op: "linear", name: "products of W", expected: "f32 or bf16", got: compute });
        }
        let (forward, backward) = (OnceLock::new(), OnceLock::new());
        Ok(Self(Arc::new(Inner { tensor, compute, c_in, c_out, forward, backward })))
    }

    /// The same weight, laid out for products that follow one another.
    ///
    /// # Errors
    /// As [`Weight::new`].
    pub fn kept(&self) -> Result<Self> {
        Ok(self.clone())
    }

    /// W (C_out, C_in), as it was given.
    pub fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// The type that products are computed in.
    pub fn compute(&self) -> DType {
        self.0.compute
    }

    /// C_in.
    pub fn c_in(&self) -> usize {
        self.0.c_in
    }

    /// C_out.
    pub fn c_out(&self) -> usize {
        self.0.c_out
    }

    /// W^T (C_in, C_out).
    pub(in crate::ops) fn forward(&self) -> Result<&Packed> {
        self.packed(&self.0.forward, |w| w.t())
    }

    /// W (C_out, C_in).
    pub(in crate::ops) fn backward(&self) -> Result<&Packed> {
        self.packed(&self.0.backward, |w| w)
    }

    fn packed<'a>(&self, slot: &'a OnceLock<Packed>, order: impl Fn(View<'_>) -> View<'_>) -> Result<&'a Packed> {
        if let Some(packed) = slot.get() {
            return Ok(packed);
        }
        let values = self.0.tensor.to_f32()?;
        let view = order(View::new(&values, self.0.c_out, self.0.c_in));
        let pack = if self.0.compute == DType::Bf16 { Packed::bf16 } else { Packed::f32 };
        // Packed before the slot is locked: a thread of the pool that waits for others may take up work that comes back here.
        let packed = pack(view);
        Ok(slot.get_or_init(|| packed))
    }
}
