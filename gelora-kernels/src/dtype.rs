//! Element types of tensors.

use std::fmt;

/// The type of a tensor's elements.
///
/// Operators compute and sum in f32. `Bf16` and `F16` store frozen weights in half the space, and products can be
/// computed in `Bf16`. `F64` stores points whose distances are needed in full precision, on the CPU only. The quantized
/// types store frozen weights of GGUF files and of checkpoints that bitsandbytes quantized.
///
/// ```
/// use gelora_kernels::DType;
///
/// assert_eq!(DType::Bf16.bytes(10), 20);
/// assert_eq!(DType::Q4_0.block(), (32, 18)); // 32 values in 18 bytes
/// assert!(DType::Q4_0.is_quantized());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE single precision, the type of all activations, gradients and trained parameters.
    F32,
    /// bfloat16 storage.
    Bf16,
    /// IEEE half-precision storage.
    F16,
    /// IEEE double precision, for points.
    F64,
    /// GGUF's Q4_0.
    Q4_0,
    /// GGUF's Q4_1.
    Q4_1,
    /// GGUF's Q5_0.
    Q5_0,
    /// GGUF's Q5_1.
    Q5_1,
    /// GGUF's Q8_0.
    Q8_0,
    /// GGUF's Q2_K.
    Q2K,
    /// GGUF's Q3_K.
    Q3K,
    /// GGUF's Q4_K.
    Q4K,
    /// GGUF's Q5_K.
    Q5K,
    /// GGUF's Q6_K.
    Q6K,
    /// GGUF's IQ4_NL.
    Iq4Nl,
    /// GGUF's IQ4_XS.
    Iq4Xs,
    /// NF4 of bitsandbytes: a table of 16 values spaced as quantiles of the normal distribution, and an f32 scale for
    /// every 64 values.
    Nf4(Rounding),
    /// FP4 of bitsandbytes: as NF4, with the 16 values of a 4-bit float.
    Fp4(Rounding),
}

/// The type that dequantized values of a 4-bit type are rounded to: the type of the model before bitsandbytes quantized
/// it, in which bitsandbytes returns the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// No rounding.
    F32,
    /// The nearest bf16, ties to even.
    Bf16,
    /// The nearest f16, ties to even.
    F16,
}

impl DType {
    /// (values, bytes) of one block. A row has a whole number of blocks; unquantized types have blocks of one value.
    pub fn block(self) -> (usize, usize) {
        match self {
            DType::Bf16 | DType::F16 => (1, 2),
            DType::F32 => (1, 4),
            DType::F64 => (1, 8),
            DType::Q4_0 | DType::Iq4Nl => (32, 18),
            DType::Q4_1 => (32, 20),
            DType::Q5_0 => (32, 22),
            DType::Q5_1 => (32, 24),
            DType::Q8_0 => (32, 34),
            DType::Q2K => (256, 84),
            DType::Q3K => (256, 110),
            DType::Q4K => (256, 144),
            DType::Q5K => (256, 176),
            DType::Q6K => (256, 210),
            DType::Iq4Xs => (256, 136),
            DType::Nf4(_) | DType::Fp4(_) => (64, 36),
        }
    }

    /// Number of bytes that `values` values take.
    pub fn bytes(self, values: usize) -> usize {
        let (values_per_block, bytes_per_block) = self.block();
        values.div_ceil(values_per_block) * bytes_per_block
    }

    /// Whether the type stores values in blocks of few bits.
    pub fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// The smallest unquantized type that holds every value of this type: bf16 or f16 for 4-bit types that round to it,
    /// f32 for other quantized types, and the type itself otherwise.
    pub fn unquantized(self) -> DType {
        match self {
            DType::Nf4(Rounding::Bf16) | DType::Fp4(Rounding::Bf16) => DType::Bf16,
            DType::Nf4(Rounding::F16) | DType::Fp4(Rounding::F16) => DType::F16,
            quantized if quantized.is_quantized() => DType::F32,
            other => other,
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
            DType::Q4_0 => "q4_0",
            DType::Q4_1 => "q4_1",
            DType::Q5_0 => "q5_0",
            DType::Q5_1 => "q5_1",
            DType::Q8_0 => "q8_0",
            DType::Q2K => "q2_k",
            DType::Q3K => "q3_k",
            DType::Q4K => "q4_k",
            DType::Q5K => "q5_k",
            DType::Q6K => "q6_k",
            DType::Iq4Nl => "iq4_nl",
            DType::Iq4Xs => "iq4_xs",
            DType::Nf4(Rounding::F32) => "nf4",
            DType::Nf4(Rounding::Bf16) => "nf4 of bf16",
            DType::Nf4(Rounding::F16) => "nf4 of f16",
            DType::Fp4(Rounding::F32) => "fp4",
            DType::Fp4(Rounding::Bf16) => "fp4 of bf16",
            DType::Fp4(Rounding::F16) => "fp4 of f16",
        })
    }
}
