//! Values on their way from a device to the host.

use crate::{Error, Result, Tensor};

/// Values on their way from a device to the host. The copy is queued at once, so it does not wait for work that is
/// launched later.
///
/// ```
/// use gelora_kernels::{Pending, Tensor};
///
/// let (loss, norm) = (Tensor::from_vec(vec![0.5], [1])?, Tensor::from_vec(vec![2.0], [1])?);
/// let values = Pending::read(&[&loss, &norm])?;
/// // ... launch more ...
/// assert_eq!(values.wait()?, [[0.5], [2.0]]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[must_use = "the values come with Pending::wait"]
pub struct Pending(State);

enum State {
    Here(Vec<Vec<f32>>),
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Coming(crate::gpu::Coming),
}

impl Pending {
    /// Begins to read f32 tensors, all on one device.
    ///
    /// # Errors
    /// If there is no tensor, a tensor is not f32, or the tensors are on different devices.
    pub fn read(tensors: &[&Tensor]) -> Result<Self> {
        const OP: &str = "read";
        let Some(first) = tensors.first() else {
            return Err(Error::Value { op: OP, message: "needs at least one tensor".into() });
        };
        crate::ops::check::same_device(OP, tensors)?;
        tensors.iter().try_for_each(|t| crate::ops::check::f32(OP, "tensor", t))?;
        crate::device::on_device!(
            first.device(),
            Ok(Self(State::Here(tensors.iter().map(|t| t.to_vec()).collect::<Result<_>>()?))),
            gpu => Ok(Self(State::Coming(gpu.begin_to_read(tensors)?)))
        )
    }

    /// Waits for the values, one vector for each tensor.
    ///
    /// # Errors
    /// If an earlier kernel or the device failed.
    pub fn wait(self) -> Result<Vec<Vec<f32>>> {
        match self.0 {
            State::Here(values) => Ok(values),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            State::Coming(coming) => crate::gpu::wait_for(coming),
        }
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}
