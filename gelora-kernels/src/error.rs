//! The error type.

use crate::{DType, DeviceKind};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Each variant names the operation, what was expected and what came.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("{op}: {name} must be {expected}, got {got:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// The expected shape, as text.
        expected: String,
        /// The actual shape.
        got: Vec<usize>,
    },
    /// A tensor has an element type that the operation does not support.
    #[error("{op}: {name} must be {expected}, got {got}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// The expected types.
        expected: &'static str,
        /// The actual type.
        got: DType,
    },
    /// An argument other than a tensor is out of range.
    #[error("{op}: {message}")]
    Value {
        /// The operation.
        op: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// Two tensors of one call are on different devices.
    #[error("{op}: tensors are on different devices ({left} and {right}); move one with Tensor::to_device")]
    MixedDevices {
        /// The operation.
        op: &'static str,
        /// The first tensor's device.
        left: String,
        /// The other tensor's device.
        right: String,
    },
    /// The operation has no kernel for this device, or none for this element type on it.
    #[error("{op}: not available on {device} ({what})")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The device.
        device: DeviceKind,
        /// What is missing.
        what: &'static str,
    },
    /// A device could not be opened.
    #[error("device {kind}: {reason}")]
    Device {
        /// The kind of device asked for.
        kind: DeviceKind,
        /// What is missing, and how to get it.
        reason: String,
    },
    /// The device has too little memory.
    #[error("{device}: out of memory: could not allocate {}{}", asked(*needed), beside(*in_use))]
    OutOfMemory {
        /// The device.
        device: DeviceKind,
        /// Bytes of the allocation that failed, if the driver tells.
        needed: Option<u64>,
        /// Bytes of the process's tensors on the device at that time.
        in_use: Option<u64>,
    },
    /// A buffer is larger than the device can bind, however much memory is free.
    #[error("{device}: a buffer of {} is larger than the device binds, {}", in_units(*needed), in_units(*most))]
    TooLarge {
        /// The device.
        device: DeviceKind,
        /// Bytes of the buffer.
        needed: u64,
        /// The most bytes of a buffer.
        most: u64,
    },
    /// A kernel failed on the device.
    #[error("{device}: {message}")]
    Runtime {
        /// The device.
        device: DeviceKind,
        /// The runtime's message.
        message: String,
    },
}

/// The size of a failed allocation, as text.
fn asked(needed: Option<u64>) -> String {
    needed.map_or("more".into(), in_units)
}

/// The memory in use beside a failed allocation, as text.
fn beside(in_use: Option<u64>) -> String {
    in_use.map_or(String::new(), |bytes| format!(" beside {} in use", in_units(bytes)))
}

/// A number of bytes with a unit.
fn in_units(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}
