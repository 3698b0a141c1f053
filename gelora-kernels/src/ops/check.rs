//! Argument checks that every operator words in the same way.

use crate::{DType, Error, Result, Tensor};

/// The numbers of rows and columns of a matrix; an error if the tensor does not have two dimensions.
pub(crate) fn matrix(op: &'static str, name: &'static str, t: &Tensor) -> Result<(usize, usize)> {
    match t.shape() {
        &[rows, cols] => Ok((rows, cols)),
        other => Err(Error::Shape { op, name, expected: "a matrix".into(), got: other.to_vec() }),
    }
}

/// Checks that the tensor has exactly this shape.
pub(crate) fn shape(op: &'static str, name: &'static str, t: &Tensor, expected: &[usize]) -> Result<()> {
    if t.shape() == expected {
        return Ok(());
    }
    Err(Error::Shape { op, name, expected: format!("{expected:?}"), got: t.shape().to_vec() })
}

/// Checks that the tensor is f32.
pub(crate) fn f32(op: &'static str, name: &'static str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 => Ok(()),
        got => Err(Error::DType { op, name, expected: "f32", got }),
    }
}

/// Checks that all tensors are on the device of the first.
pub(crate) fn same_device(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    for t in &tensors[1..] {
        if !t.device().same(tensors[0].device()) {
            let (left, right) = (tensors[0].device().kind().to_string(), t.device().kind().to_string());
            return Err(Error::MixedDevices { op, left, right });
        }
    }
    Ok(())
}

/// Checks an argument that is not a tensor. The message is made only if the check fails.
pub(crate) fn value(op: &'static str, holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Value { op, message: message() }) }
}
