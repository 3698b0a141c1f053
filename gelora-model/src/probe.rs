//! The trait of observers of linear modules.

use std::fmt;

use gelora_kernels::Tensor;

/// Sees the inputs of linear modules as they run.
pub(crate) trait Probe: fmt::Debug + Send + Sync {
    /// Whether the inputs of this module are wanted.
    fn wants(&self, module: &str) -> bool;

    /// Takes the inputs x (N, C_in) of a module.
    fn see(&self, module: &str, x: &Tensor);
}
