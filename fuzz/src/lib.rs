//! One fuzz target for each kind of file that may come from anyone. The readers are `gelora_cli::untrusted`.

use std::path::PathBuf;
use std::sync::OnceLock;

pub use libfuzzer_sys;

/// Defines the fuzz target of the given name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::read($name, bytes));
    };
}

/// Reads bytes as the file of a target. The file is in memory if the system has /dev/shm.
pub fn read(target: &str, bytes: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        parent.join(format!("gelora-fuzz-{target}-{}", std::process::id()))
    });
    let _ = gelora_cli::untrusted::read(target, bytes, folder);
}
