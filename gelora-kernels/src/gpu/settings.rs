//! CubeCL's settings: ours, set before the first client is opened. CubeCL would look for cubecl.toml and burn.toml in the
//! working folder and above, and panic on one that does not parse.
//!
//! Compiled CUDA kernels may be kept between runs. CubeCL's key of a kernel has neither the kernel's source nor the
//! architecture, so the folder that they are kept in is named after both.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};

/// Where compiled kernels are kept; nowhere unless a program says so.
static KEPT_IN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// See [`crate::keep_compiled_kernels`].
pub fn keep_compiled_kernels(folder: Option<PathBuf>) {
    *KEPT_IN.lock().unwrap_or_else(PoisonError::into_inner) = folder;
}

/// Sets them, once. `device` is what compiled kernels depend on beside their source; None if they are not kept.
pub fn set(device: Option<&str>) {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let mut config = CubeClRuntimeConfig::default().override_from_env();
        let root = KEPT_IN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let folder = root.zip(device).map(|(root, device)| folder(root, device)).filter(can_be_written);
        config.compilation.cache = folder.map(CacheConfig::File);
        // Whoever opened a client of its own before has set them, and CubeCL's `set` would panic.
        CubeClRuntimeConfig::storage().lock().get_or_insert(Arc::new(config));
    });
}

/// The folder of this build's kernels for a device.
fn folder(root: PathBuf, device: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let device: String = device.chars().map(plain).collect();
    root.join("kernels").join(format!("{device}-{}", env!("GELORA_KERNELS_BUILD")))
}

/// CubeCL panics if it cannot write there.
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
        let of = |device| folder(PathBuf::from("cache"), device);
        assert_ne!(of("sm_80 nvrtc 13.0"), of("sm_90 nvrtc 13.0"));
        assert!(of("sm_90 nvrtc 13.0").ends_with(format!("sm_90_nvrtc_13.0-{}", env!("GELORA_KERNELS_BUILD"))));
        assert_eq!(env!("GELORA_KERNELS_BUILD").len(), 16);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_not_used() {
        let file = std::env::current_exe().expect("a file");
        assert!(!can_be_written(&file.join("below")));
        let there = std::env::temp_dir().join(format!("gelora-kernels-{}", std::process::id()));
        assert!(can_be_written(&there) && std::fs::remove_dir(&there).is_ok());
    }
}
