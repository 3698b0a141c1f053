use crate::{DType, DeviceKind};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Each variant names the operation, what was expected and what came.
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
        /// The shape it must have, as text.
        expected: String,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A tensor has an element type that the operation does not take.
    #[error("{op}: {name} must be {expected}, got {got}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// The types that it may have.
        expected: &'static str,
        /// The type it has.
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
    /// The operation has no kernel for this device or this element type there.
    #[error("{op}: not available on {device} ({what})")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The device.
        device: DeviceKind,
        /// What exactly is missing.
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
    /// The device's memory does not suffice.
    #[error("{device}: out of memory: could not allocate {}{}", asked(*needed), beside(*in_use))]
    OutOfMemory {
        /// The device.
        device: DeviceKind,
        /// The bytes of the allocation that failed, where the driver tells.
        needed: Option<u64>,
        /// The bytes of the process's tensors on the device then.
        in_use: Option<u64>,
    },
    /// A kernel failed on the device.
    #[error("{device}: {message}")]
    Runtime {
        /// The device.
        device: DeviceKind,
        /// What the runtime said.
        message: String,
    },
}

fn asked(needed: Option<u64>) -> String {
    needed.map_or("more".into(), in_units)
}

fn beside(in_use: Option<u64>) -> String {
    in_use.map_or(String::new(), |bytes| format!(" beside {} in use", in_units(bytes)))
}

/// Bytes as a person reads them.
fn in_units(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}
