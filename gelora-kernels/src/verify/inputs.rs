//! Seeded random tensors, the inputs of cases.

use crate::random::Stream;
use crate::{DType, Tensor};

/// A seeded CPU tensor of standard normal values.
///
/// # Panics
/// If the shape has a zero.
pub fn random(shape: impl Into<Vec<usize>>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut stream = Stream::new(seed);
    let data = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(data, shape).expect("a case has at least one element")
}

/// A seeded CPU tensor of a quantized type: blocks of random codes with scales around 0.1.
///
/// # Panics
/// If the rows are not whole blocks of the type.
pub fn random_quantized(shape: [usize; 2], dtype: DType, seed: u64) -> Tensor {
    let (_, size) = dtype.block();
    let mut stream = Stream::new(seed);
    let mut bytes: Vec<u8> = (0..dtype.bytes(shape[0] * shape[1])).map(|_| stream.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(size) {
        if let DType::Nf4(_) | DType::Fp4(_) = dtype {
            let scale = (0.01 + 0.1 * stream.uniform()) as f32;
            block[..4].copy_from_slice(&scale.to_le_bytes());
            continue;
        }
        // Byte offsets of the block's f16 scales.
        let scales: &[usize] = match dtype {
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
            DType::Q2K => &[80, 82],
            DType::Q3K => &[108],
            DType::Q6K => &[208],
            _ => &[0],
        };
        for &offset in scales {
            let scale = half::f16::from_f64(0.01 + 0.1 * stream.uniform());
            block[offset..offset + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    let len = bytes.len();
    Tensor::from_bytes(std::sync::Arc::new(bytes), 0..len, dtype, shape).expect("whole blocks")
}
