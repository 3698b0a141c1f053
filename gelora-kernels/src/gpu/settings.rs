//! CubeCL's settings, set before the first client is opened. CubeCL itself would look for cubecl.toml and burn.toml in
//! the working folder and above, and panic if one did not parse.
//!
//! Compiled CUDA kernels may be kept between runs. CubeCL's key of a kernel includes neither the kernel's source nor
//! the architecture, so the folder is named after both.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};

/// The folder for compiled kernels; None keeps none.
static KEPT_IN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// See [`crate::keep_compiled_kernels`].
pub(crate) fn keep_compiled_kernels(folder: Option<PathBuf>) {
    *KEPT_IN.lock().unwrap_or_else(PoisonError::into_inner) = folder;
}

/// Sets the settings, once. `device` names everything besides the source that compiled kernels depend on; None keeps no
/// kernels.
pub(crate) fn set(device: Option<&str>) {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let mut config = CubeClRuntimeConfig::default().override_from_env();
        let root = KEPT_IN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let folder = root.zip(device).map(|(root, device)| folder(root, device)).filter(can_be_written);
        config.compilation.cache = folder.map(CacheConfig::File);
        // If the program opened a client of its own, the settings are fixed, and CubeCL's `set` would panic.
        CubeClRuntimeConfig::storage().lock().get_or_insert(Arc::new(config));
    });
}

/// The folder for the kernels of this build on a device.
fn folder(root: PathBuf, device: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let device: String = device.chars().map(plain).collect();
    root.join("kernels").join(format!("{device}-{}", env!("GELORA_KERNELS_BUILD")))
}

/// Whether files can be created in the folder. CubeCL panics if they cannot.
fn can_be_written(folder: &PathBuf) -> bool {
    let probe = folder.join(format!("probe-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, ""));
    written.and_then(|()| std::fs::remove_file(&probe)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_differ_by_device_and_build() {
        let of_device = |device| folder(PathBuf::from("cache"), device);
        assert_ne!(of_device("sm_80 nvrtc 13.0"), of_device("sm_90 nvrtc 13.0"));
        assert!(of_device("sm_90 nvrtc 13.0").ends_with(format!("sm_90_nvrtc_13.0-{}", env!("GELORA_KERNELS_BUILD"))));
        assert_eq!(env!("GELORA_KERNELS_BUILD").len(), 16);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_not_used() {
        let file = std::env::current_exe().expect("a file");
        assert!(!can_be_written(&file.join("below")));
        let writable = std::env::temp_dir().join(format!("gelora-kernels-{}", std::process::id()));
        assert!(can_be_written(&writable) && std::fs::remove_dir(&writable).is_ok());
    }
}
