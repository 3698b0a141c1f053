//! The seeds of the fuzz targets, and the files that broke a reader once (`find-*`): see fuzz/README.md.

use std::fs;
use std::path::Path;

use gelora_cli::untrusted;

#[test]
fn seeds_are_read_and_finds_are_errors() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let folder = tempfile::tempdir().unwrap();
    for target in untrusted::targets() {
        let (mut read, mut refused) = (0, 0);
        for entry in fs::read_dir(seeds.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let (name, bytes) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
            match untrusted::read(target, &bytes, &folder.path().join(target)) {
                Ok(()) => read += 1,
                // Neither a panic nor several lines, which `untrusted::read` looks at.
                Err(_) if name.starts_with("find-") => refused += 1,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        assert!(read > 0, "{target}: no seed, and {refused} finds");
    }
}

/// What no cut of a seed may do is what the fuzz targets look for in more of them.
#[test]
fn no_cut_or_changed_byte_is_a_panic() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let folder = tempfile::tempdir().unwrap();
    for target in untrusted::targets() {
        for entry in fs::read_dir(seeds.join(target)).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            let step = bytes.len().div_ceil(48);
            for at in (0..bytes.len()).step_by(step) {
                let _ = untrusted::read(target, &bytes[..at], &folder.path().join(target));
                let mut changed = bytes.clone();
                changed[at] = changed[at].wrapping_add(0x7f);
                let _ = untrusted::read(target, &changed, &folder.path().join(target));
            }
        }
    }
}
