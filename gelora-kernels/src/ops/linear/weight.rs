use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::cpu::{Packed, Scratch, View};
use crate::ops::check;
use crate::{DType, Error, Result, Tensor};

/// A layout that a weight keeps, or that was made for one product.
pub enum Layout<'a> {
    Kept(&'a Packed),
    Made(Packed),
}

impl Deref for Layout<'_> {
    type Target = Packed;

    fn deref(&self) -> &Packed {
        match self {
            Layout::Kept(packed) => packed,
            Layout::Made(packed) => packed,
        }
    }
}

/// Rows of x up to which a product reads the blocks of a quantised weight as they are.
const FEW: usize = 8;

/// A frozen weight W (C_out, C_in), laid out for its products once, at the first of them. Clones share it.
///
/// A quantised weight is laid out anew for every product: it is there to be small. One of few rows reads its blocks as they are.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tensor: Tensor,
    compute: DType,
    c_in: usize,
    c_out: usize,
    /// Whether layouts are kept.
    keep: bool,
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
        let keep = !tensor.dtype().is_quantised();
        Ok(Self::with(tensor, compute, [c_out, c_in], keep))
    }

    fn with(tensor: Tensor, compute: DType, [c_out, c_in]: [usize; 2], keep: bool) -> Self {
        let (forward, backward) = (OnceLock::new(), OnceLock::new());
        Self(Arc::new(Inner { tensor, compute, c_in, c_out, keep, forward, backward }))
    }

    /// The same weight for several products that follow one another: its layouts are kept until this is dropped.
    pub fn kept(&self) -> Self {
        if self.0.keep {
            return self.clone();
        }
        Self::with(self.0.tensor.clone(), self.0.compute, [self.0.c_out, self.0.c_in], true)
    }

    /// Whether a product of n rows reads the blocks as they are.
    pub(in crate::ops) fn reads_blocks(&self, n: usize) -> bool {
        !self.0.keep && n <= FEW
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
    pub(in crate::ops) fn forward(&self) -> Result<Layout<'_>> {
        self.packed(&self.0.forward, |w| w.t())
    }

    /// W (C_out, C_in).
    pub(in crate::ops) fn backward(&self) -> Result<Layout<'_>> {
        self.packed(&self.0.backward, |w| w)
    }

    fn packed<'a>(&self, slot: &'a OnceLock<Packed>, order: impl Fn(View<'_>) -> View<'_>) -> Result<Layout<'a>> {
        if let Some(packed) = slot.get() {
            return Ok(Layout::Kept(packed));
        }
        let (values, mut decoded);
        let rows: &[f32] = if self.0.tensor.dtype().is_quantised() {
            // In memory that is there already: these come again and again.
            decoded = Scratch::new(self.0.tensor.len());
            self.0.tensor.decode_rows(&mut decoded)?;
            &decoded
        } else {
            values = self.0.tensor.to_f32()?;
            &values
        };
        let view = order(View::new(rows, self.0.c_out, self.0.c_in));
        let pack = if self.0.compute == DType::Bf16 { Packed::bf16 } else { Packed::f32 };
        // Packed before the slot is locked: a thread of the pool that waits for others may take up work that comes back here.
        let packed = pack(view);
        self.0.tensor.set_aside();
        Ok(if self.0.keep { Layout::Kept(slot.get_or_init(|| packed)) } else { Layout::Made(packed) })
    }
}
