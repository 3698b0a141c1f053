//! Names the build after the hash of the kernels' sources, for the folder that keeps compiled kernels.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut files = vec![root.join("Cargo.toml"), root.join("../Cargo.lock"), root.join("../../Cargo.lock")];
    collect(&root.join("src"), &mut files);
    files.sort();
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    for file in &files {
        let Ok(bytes) = fs::read(file) else { continue };
        hash.add(file.strip_prefix(&root).unwrap_or(file).to_string_lossy().as_bytes());
        hash.add(&bytes);
    }
    println!("cargo::rustc-env=GELORA_KERNELS_BUILD={:016x}", hash.0);
    println!("cargo::rerun-if-changed=src");
    for file in files.iter().filter(|file| !file.starts_with(root.join("src")) && file.exists()) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}

/// FNV-1a, 64 bits (RFC 9923), with lengths between the fields.
struct Hash(u64);

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
