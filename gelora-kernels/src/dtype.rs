use std::fmt;

/// The type of a tensor's elements.
///
/// Sums are in f32. `Bf16` and `F16` store frozen weights in half the space, `Bf16` is also a type to compute products in; `F64` holds points whose distances are
/// wanted to full precision (CPU only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision, the type of all activations, gradients and trained parameters.
    F32,
    /// bfloat16 storage.
    Bf16,
    /// IEEE half-precision storage.
    F16,
    /// IEEE double precision, for points.
    F64,
}

impl DType {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F64 => "f64",
        })
    }
}
