use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::budget::{Budget, Share};
use crate::cpu::{Packed, Scratch, View};
use crate::ops::check;
use crate::quantised::decode;
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

/// A frozen weight W (C_out, C_in), laid out for its products once, at the first of them, as long as the layouts of all weights
/// fit into half of the machine's memory; beyond that it is laid out anew for every product. Clones share it.
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
    /// Whether layouts are kept, and in what memory.
    keep: bool,
    budget: Arc<Budget>,
    /// W^T, for y = x W^T.
    forward: OnceLock<(Packed, Share)>,
    /// W, for dx = dy W.
    backward: OnceLock<(Packed, Share)>,
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
        Ok(Self::with(tensor, compute, [c_out, c_in], keep, Budget::of_machine()))
    }

    fn with(tensor: Tensor, compute: DType, [c_out, c_in]: [usize; 2], keep: bool, budget: Arc<Budget>) -> Self {
        let (forward, backward) = (OnceLock::new(), OnceLock::new());
        Self(Arc::new(Inner { tensor, compute, c_in, c_out, keep, budget, forward, backward }))
    }

    /// The same weight for several products that follow one another: its layouts are kept until this is dropped.
    pub fn kept(&self) -> Self {
        if self.0.keep {
            return self.clone();
        }
        // Of the few that follow one another, not of the whole model.
        let budget = Budget::of(u64::MAX);
        Self::with(self.0.tensor.clone(), self.0.compute, [self.0.c_out, self.0.c_in], true, budget)
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
        self.packed(&self.0.forward, true)
    }

    /// W (C_out, C_in).
    pub(in crate::ops) fn backward(&self) -> Result<Layout<'_>> {
        self.packed(&self.0.backward, false)
    }

    /// The layout of W^T if `transposed`, else of W.
    fn packed<'a>(&self, slot: &'a OnceLock<(Packed, Share)>, transposed: bool) -> Result<Layout<'a>> {
        if let Some((packed, _)) = slot.get() {
            return Ok(Layout::Kept(packed));
        }
        // Packed before the slot is locked: a thread of the pool that waits for others may take up work that comes back here.
        let packed = self.pack(transposed)?;
        self.0.tensor.set_aside();
        let share = if self.0.keep { self.0.budget.take(packed.bytes()) } else { None };
        Ok(match share {
            Some(share) => Layout::Kept(&slot.get_or_init(|| (packed, share)).0),
            None => Layout::Made(packed),
        })
    }

    fn pack(&self, transposed: bool) -> Result<Packed> {
        let Inner { tensor, c_in, c_out, .. } = &*self.0;
        let (c_in, c_out, dtype, bf16) = (*c_in, *c_out, tensor.dtype(), self.0.compute == DType::Bf16);
        // Few rows or columns of W at a time become f32, and whole matrices only where blocks do not end where panels do.
        match dtype {
            DType::F16 | DType::Bf16 if transposed => {
                Ok(Packed::made_of([c_in, c_out], bf16, &|first, rows, panel| {
                    let mut values = Scratch::new(rows * c_in);
                    tensor.widen(first * c_in, &mut values).expect("a tensor in half precision");
                    panel(View::new(&values, rows, c_in).t(), 0);
                }))
            }
            DType::F16 | DType::Bf16 => Ok(Packed::made_of([c_out, c_in], bf16, &|first, columns, panel| {
                let mut values = Scratch::new(c_out * columns);
                for (o, row) in values.chunks_exact_mut(columns).enumerate() {
                    tensor.widen(o * c_in + first, row).expect("a tensor in half precision");
                }
                panel(View::new(&values, c_out, columns), 0);
            })),
            _ if dtype.is_quantised() && transposed => {
                let (bytes, size) = (tensor.bytes()?, dtype.bytes(c_in));
                Ok(Packed::made_of([c_in, c_out], bf16, &|first, rows, panel| {
                    let mut values = Scratch::new(rows * c_in);
                    decode(dtype, &bytes[first * size..][..rows * size], &mut values);
                    panel(View::new(&values, rows, c_in).t(), 0);
                }))
            }
            _ => {
                let (values, mut decoded);
                let rows: &[f32] = if dtype.is_quantised() {
                    // In memory that is there already: these come again and again.
                    decoded = Scratch::new(tensor.len());
                    tensor.decode_rows(&mut decoded)?;
                    &decoded
                } else {
                    values = tensor.to_f32()?;
                    &values
                };
                let w = View::new(rows, c_out, c_in);
                Ok(Packed::of(bf16, if transposed { w.t() } else { w }, 1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear;
    use crate::verify::random;

    /// Where there is no memory for layouts, products have the same bits.
    #[test]
    fn a_layout_that_is_not_kept_gives_the_same() -> Result<()> {
        let (x, w) = (random([9, 70], 1), random([33, 70], 2));
        let kept = Weight::new(w.clone(), DType::F32)?;
        let made = Weight::with(w, DType::F32, [33, 70], true, Budget::of(0));
        for _ in 0..2 {
            assert_eq!(linear::forward(&x, &kept, None)?.to_vec()?, linear::forward(&x, &made, None)?.to_vec()?);
        }
        assert!(kept.0.forward.get().is_some() && made.0.forward.get().is_none());
        Ok(())
    }
}
