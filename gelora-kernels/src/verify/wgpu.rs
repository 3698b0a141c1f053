//! The wgpu device of tests.

use crate::{Device, DeviceKind};

/// Environment variable that makes a missing wgpu adapter a failure.
const REQUIRED: &str = "GELORA_REQUIRE_WGPU";

/// Opens the wgpu device. Returns None in a build without wgpu, or on a machine without an adapter; tests then check
/// the CPU alone.
///
/// # Panics
/// Panics without an adapter if `GELORA_REQUIRE_WGPU` is set, as it is in CI.
pub(crate) fn wgpu() -> Option<Device> {
    if !cfg!(feature = "wgpu") {
        return None;
    }
    match Device::open(DeviceKind::Wgpu) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, but {error}");
            None
        }
    }
}
