//! The folder of everything that gelora keeps for another run.

use std::path::PathBuf;

/// The folder GELORA_CACHE, or `gelora` in the user's cache folder; None if the machine has no place for it.
pub fn folder() -> Option<PathBuf> {
    let own = std::env::var_os("GELORA_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
    own.or_else(|| dirs::cache_dir().map(|cache| cache.join("gelora")))
}

/// Where compiled GPU kernels are kept: in the same folder, unless GELORA_KERNEL_CACHE is `off`.
pub fn of_kernels() -> Option<PathBuf> {
    let off = std::env::var_os("GELORA_KERNEL_CACHE").is_some_and(|value| value == "off");
    folder().filter(|_| !off)
}
