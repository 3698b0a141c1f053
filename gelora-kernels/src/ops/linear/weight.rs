//! A frozen weight, and its packed layouts.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::budget::{Budget, Share};
use crate::cpu::{Packed, Scratch, View};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::gpu::tally::{Alive, Tally};
use crate::ops::check;
use crate::{DType, Error, Result, Tensor};

/// A packed layout of a weight: kept with the weight, or made for one product.
pub(crate) enum Layout<'a> {
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

/// The most rows of x for which a product reads the weight as it is stored.
const FEW: usize = 8;

/// A frozen weight W (C_out, C_in), packed for its products. Clones share the packed layouts.
///
/// A layout is kept from the second product on, as long as the layouts of all weights fit into half of the machine's
/// memory. The first product does not keep it: a weight that is used once, as for one prompt, would only take memory. A
/// quantized weight is packed anew for every product, because a kept layout would undo the quantization.
///
/// An f32 product of few rows reads a weight of fewer bits as it is stored. Packing costs as much as many such
/// products, and a packed layout has more bytes to read.
///
/// ```
/// use gelora_kernels::ops::linear::{self, Weight};
/// use gelora_kernels::{DType, Tensor};
///
/// let w = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2])?; // C_out = 3, C_in = 2
/// let w = Weight::new(w, DType::F32)?;
/// let x = Tensor::from_vec(vec![1.0, -1.0], [1, 2])?;
/// assert_eq!(linear::forward(&x, &w, None)?.to_vec()?, [-1.0, -1.0, -1.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tensor: Tensor,
    compute: DType,
    c_in: usize,
    c_out: usize,
    /// Whether layouts are kept, and the budget for them.
    keep: Keep,
    budget: Arc<Budget>,
    /// W^T, for y = x W^T.
    forward: Slot,
    /// W, for dx = dy W.
    backward: Slot,
    /// W in bf16 on its GPU, for the matrix units.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    rounded: OnceLock<crate::gpu::GpuBuffer>,
}

/// When a layout is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Never,
    FromSecondUse,
    Always,
}

/// The place of one layout.
#[derive(Debug, Default)]
struct Slot {
    kept: OnceLock<(Packed, Share)>,
    /// In a plan of the CPU, the bytes of the layout that is kept.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    planned: OnceLock<(Alive, Share)>,
    used: AtomicBool,
}

impl Weight {
    /// A weight of any storage type. `compute` is the type of its products: f32, or bf16, which rounds both factors to
    /// bf16 and sums in f32. A device without bf16 products (see
    /// [`Device::multiplies_bf16`](crate::Device::multiplies_bf16)) computes them in f32.
    ///
    /// # Errors
    /// If the tensor is not a matrix, or `compute` is neither f32 nor bf16.
    pub fn new(tensor: Tensor, compute: DType) -> Result<Self> {
        let (c_out, c_in) = check::matrix("linear", "W", &tensor)?;
        if !matches!(compute, DType::F32 | DType::Bf16) {
            return Err(Error::DType { op: "linear", name: "products of W", expected: "f32 or bf16", got: compute });
        }
        let keep = if tensor.dtype().is_quantized() { Keep::Never } else { Keep::FromSecondUse };
        Ok(Self::with(tensor, compute, [c_out, c_in], keep, Budget::of_machine()))
    }

    fn with(tensor: Tensor, compute: DType, [c_out, c_in]: [usize; 2], keep: Keep, budget: Arc<Budget>) -> Self {
        let (forward, backward) = (Slot::default(), Slot::default());
        Self(Arc::new(Inner {
            tensor,
            compute,
            c_in,
            c_out,
            keep,
            budget,
            forward,
            backward,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            rounded: OnceLock::new(),
        }))
    }

    /// The same weight for several consecutive products. Its layouts are kept until the returned weight is dropped.
    pub fn kept(&self) -> Self {
        if self.0.keep != Keep::Never {
            [&self.0.forward, &self.0.backward].iter().for_each(|slot| slot.used.store(true, Ordering::Relaxed));
            return self.clone();
        }
        // No limit: these layouts live for a few products, not as long as the model.
        let budget = Budget::of(u64::MAX);
        Self::with(self.0.tensor.clone(), self.0.compute, [self.0.c_out, self.0.c_in], Keep::Always, budget)
    }

    /// Whether a product of n rows reads the weight as it is stored.
    pub(in crate::ops) fn reads_stored(&self, n: usize) -> bool {
        let half = matches!(self.0.tensor.dtype(), DType::F16 | DType::Bf16) && self.0.compute == DType::F32;
        n <= FEW && (half || self.0.keep == Keep::Never)
    }

    /// W (C_out, C_in) in its storage type.
    pub fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// The place of W in bf16 on its GPU.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(in crate::ops) fn rounded(&self) -> &OnceLock<crate::gpu::GpuBuffer> {
        &self.0.rounded
    }

    /// The type of the products.
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
    fn packed<'a>(&self, slot: &'a Slot, transposed: bool) -> Result<Layout<'a>> {
        if let Some((packed, _)) = slot.kept.get() {
            return Ok(Layout::Kept(packed));
        }
        // Packing comes before locking the slot: a thread of the pool that waits for others may take up work that comes
        // back here.
        let packed = self.pack(transposed)?;
        self.0.tensor.set_aside();
        let used = slot.used.swap(true, Ordering::Relaxed);
        let keep = self.0.keep == Keep::Always || self.0.keep == Keep::FromSecondUse && used;
        let share = if keep { self.0.budget.take(packed.bytes()) } else { None };
        Ok(match share {
            Some(share) => Layout::Kept(&slot.kept.get_or_init(|| (packed, share)).0),
            None => Layout::Made(packed),
        })
    }

    /// In a plan of the CPU, the bytes of the layout that a product of n rows packs and drops: of W^T if `transposed`,
    /// else of W. A layout that is kept is counted as long as the weight lives. None on other devices.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(in crate::ops) fn plan_layout(&self, tally: &'static Tally, n: usize, transposed: bool) -> Option<Alive> {
        let Inner { tensor, compute, c_in, c_out, .. } = &*self.0;
        let slot = if transposed { &self.0.forward } else { &self.0.backward };
        if !tally.plans_cpu() || self.reads_stored(n) && transposed || slot.planned.get().is_some() {
            return None;
        }
        let shape = if transposed { [*c_in, *c_out] } else { [*c_out, *c_in] };
        let packed = tally.alive(Packed::bytes_of(shape, *compute == DType::Bf16));
        if tensor.dtype().is_quantized() && !transposed {
            // The decoded matrix lives beside the layout until it is packed.
            drop(tally.alive((tensor.len() * size_of::<f32>()) as u64));
        }
        if let Ok(buffer) = tensor.gpu("linear") {
            buffer.set_aside();
        }
        let used = slot.used.swap(true, Ordering::Relaxed);
        let keep = self.0.keep == Keep::Always || self.0.keep == Keep::FromSecondUse && used;
        match keep.then(|| self.0.budget.take(Packed::bytes_of(shape, *compute == DType::Bf16))).flatten() {
            Some(share) => {
                slot.planned.get_or_init(|| (packed, share));
                None
            }
            None => Some(packed),
        }
    }

    /// Packs W^T if `transposed`, else W.
    fn pack(&self, transposed: bool) -> Result<Packed> {
        let Inner { tensor, c_in, c_out, .. } = &*self.0;
        let (c_in, c_out, dtype, bf16) = (*c_in, *c_out, tensor.dtype(), self.0.compute == DType::Bf16);
        // A few rows or columns of W are widened to f32 at a time. The whole matrix is widened only if panels would
        // split quantized blocks.
        let half = matches!(dtype, DType::F16 | DType::Bf16);
        if transposed && (half || dtype.is_quantized()) {
            return Ok(Packed::made_of([c_in, c_out], bf16, &|first, rows, panel| {
                let mut values = Scratch::new(rows * c_in);
                tensor.widen(first * c_in, &mut values).expect("a tensor of fewer bits than f32");
                panel(View::new(&values, rows, c_in).t(), 0);
            }));
        }
        if half {
            return Ok(Packed::made_of([c_out, c_in], bf16, &|first, columns, panel| {
                let mut values = Scratch::new(c_out * columns);
                for (o, row) in values.chunks_exact_mut(columns).enumerate() {
                    tensor.widen(o * c_in + first, row).expect("a tensor of fewer bits than f32");
                }
                panel(View::new(&values, c_out, columns), 0);
            }));
        }
        let (values, mut decoded);
        let rows: &[f32] = if dtype.is_quantized() {
            // Scratch memory is reused: quantized weights are widened again and again.
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
        let made = Weight::with(w, DType::F32, [33, 70], Keep::FromSecondUse, Budget::of(0));
        for turn in 0..2 {
            assert!(kept.0.forward.kept.get().is_none(), "kept before the second use");
            assert_eq!(turn, usize::from(kept.0.forward.used.load(Ordering::Relaxed)));
            assert_eq!(linear::forward(&x, &kept, None)?.to_vec()?, linear::forward(&x, &made, None)?.to_vec()?);
        }
        assert!(kept.0.forward.kept.get().is_some() && made.0.forward.kept.get().is_none());
        Ok(())
    }
}
