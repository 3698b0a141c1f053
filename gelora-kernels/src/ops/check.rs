//! Checks of arguments, worded alike in every operator.

use crate::{DType, Error, Result, Tensor};

/// (rows, cols) of a two-dimensional tensor.
pub fn matrix(op: &'static str, name: &'static str, t: &Tensor) -> Result<(usize, usize)> {
    match t.shape() {
        &[rows, cols] => Ok((rows, cols)),
        other => Err(Error::Shape { op, name, expected: "a matrix".into(), got: other.to_vec() }),
    }
}

/// The tensor has exactly this shape.
pub fn shape(op: &'static str, name: &'static str, t: &Tensor, expected: &[usize]) -> Result<()> {
    if t.shape() == expected {
        return Ok(());
    }
    Err(Error::Shape { op, name, expected: format!("{expected:?}"), got: t.shape().to_vec() })
}

/// The tensor is f32.
pub fn f32(op: &'static str, name: &'static str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 => Ok(()),
        got => Err(Error::DType { op, name, expected: "f32", got }),
    }
}

/// All tensors are on the first one's device.
pub fn same_device(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    for t in &tensors[1..] {
        if !t.device().same(tensors[0].device()) {
            let (left, right) = (tensors[0].device().kind().to_string(), t.device().kind().to_string());
            return Err(Error::MixedDevices { op, left, right });
        }
    }
    Ok(())
}

/// An argument that is not a tensor is in range.
pub fn value(op: &'static str, holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Value { op, message: message() }) }
}
