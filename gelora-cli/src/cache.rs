//! Folders of the files that gelora keeps between runs.

use std::path::PathBuf;

/// Returns the folder GELORA_CACHE, or `gelora` in the user's cache folder. Returns None if the machine has no such
/// folder.
pub fn folder() -> Option<PathBuf> {
    let own = std::env::var_os("GELORA_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
    own.or_else(|| dirs::cache_dir().map(|cache| cache.join("gelora")))
}

/// Returns the folder of compiled GPU kernels: the cache folder, or None if GELORA_KERNEL_CACHE is `off`.
pub fn of_kernels() -> Option<PathBuf> {
    let off = std::env::var_os("GELORA_KERNEL_CACHE").is_some_and(|value| value == "off");
    folder().filter(|_| !off)
}
