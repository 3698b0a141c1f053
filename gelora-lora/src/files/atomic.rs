use std::fs::{self, File};
use std::io::{BufWriter, Result as IoResult, Write};
use std::path::Path;

use crate::{Error, Result};

/// Prefix and suffix of the names of temporary files, by which files that a killed run left behind can be recognized.
const TEMPORARY: (&str, &str) = (".gelora-", ".partial");

/// Whether a file of this name is a temporary file of [`write_with`]: a write that is under way or was cut off.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Writes a file atomically (see [`super`]).
///
/// # Errors
/// As [`write_with`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Writes a file atomically (see [`super`]) with the content that `fill` writes. If the path is a link, its target is
/// replaced and the link stays. A device or pipe (`/dev/stdout`) is written to directly.
///
/// # Errors
/// If `fill` fails or the file cannot be written; a previous file is then untouched.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> IoResult<()>) -> Result<()> {
    write(path, fill).map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> IoResult<()>) -> IoResult<()> {
    let resolved = if path.is_symlink() { path.canonicalize().ok() } else { None };
    let path = resolved.as_deref().unwrap_or(path);
    if path.exists() && !path.is_file() && !path.is_dir() {
        let mut device = BufWriter::new(File::options().write(true).open(path)?);
        fill(&mut device)?;
        return device.flush();
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // Temporary files are private by default, but this file stays. Give it the usual mode, less the umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut buffered = BufWriter::with_capacity(1 << 20, builder.tempfile_in(folder)?);
    fill(&mut buffered)?;
    let file = buffered.into_inner().map_err(|error| error.into_error())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // The new name is on the disk when the folder is. Where a folder cannot be opened (Windows), the system decides
    // when.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Reads all bytes of a file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("weights");
        write_atomic(&path, b"old").unwrap();
        let full = write_with(&path, |file| {
            file.write_all(&vec![1; 3 << 20])?;
            assert_eq!(names(root.path()).iter().filter(|name| is_temporary(name)).count(), 1);
            Err(ErrorKind::StorageFull.into())
        });
        assert!(full.unwrap_err().to_string().contains("weights: cannot be written; nothing was changed"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(root.path()), ["weights"]);
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        fs::create_dir(root.path().join("folder")).unwrap();
        assert!(write_atomic(&root.path().join("folder"), b"x").is_err());
        assert!(write_atomic(&root.path().join("missing/x"), b"x").is_err());
        assert_eq!(names(root.path()), ["folder", "weights"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_devices_are_written_to() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("folder/file"), root.path().join("link"));
        fs::create_dir(root.path().join("folder")).unwrap();
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        write_atomic("/dev/null".as_ref(), b"x").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let (ours, plain) = (root.path().join("ours"), root.path().join("plain"));
        write_atomic(&ours, b"x").unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
