//! Errors that a driver reports outside of any call, kept until the next read.

use std::sync::{Mutex, PoisonError};

use crate::DeviceKind;

static FIRST: Mutex<Vec<(DeviceKind, String)>> = Mutex::new(Vec::new());

/// Keeps the first failure of each kind of device: those after it are its consequences.
#[cfg(feature = "wgpu")]
pub fn record(kind: DeviceKind, message: String) {
    let mut all = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    if !all.iter().any(|(failed, _)| *failed == kind) {
        all.push((kind, message));
    }
}

/// What was reported of a device, if anything was. A device that failed stays so.
pub fn of(kind: DeviceKind) -> Option<String> {
    let all = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().find(|(failed, _)| *failed == kind).map(|(_, message)| message.clone())
}
