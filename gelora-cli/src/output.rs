//! Output folders, which only hold the files of their command, and atomic writes of JSON files.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gelora_lora::files::{is_temporary, write_atomic};
use serde::Serialize;

/// Name of the lock file in a folder that a command writes to.
const LOCK: &str = ".gelora.lock";

/// A folder that a command writes its results to.
#[derive(Clone, Debug)]
pub struct OutDir {
    path: PathBuf,
}

impl OutDir {
    /// Returns a folder that does not exist yet, or holds only files that the command itself writes. The folder is
    /// created when the first file is written, so that a command that fails early leaves nothing.
    ///
    /// `owned` are the names of the files and folders that the command writes, as patterns of [`matches`]; a run may
    /// replace those of an earlier run. `option` is the command-line option to name in a message, `--out`.
    ///
    /// # Errors
    /// Returns an error if the path is a file, holds any other file, or cannot be created.
    pub fn prepare(path: &Path, owned: &[&str], option: &str) -> Result<Self> {
        let display = path.display();
        if path.exists() && !path.is_dir() {
            bail!("{display}: is a file; {option} names a folder");
        }
        if !path.exists() {
            // The nearest existing ancestor must be a folder.
            if let Some(above) = path.ancestors().find(|above| above.exists())
                && !above.is_dir()
            {
                bail!("{display}: cannot be made ({option}): {} is a file", above.display());
            }
            return Ok(Self { path: path.to_owned() });
        }
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(path).with_context(|| format!("{display}: cannot be listed"))? {
            let entry = entry.with_context(|| format!("{display}: cannot be listed"))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let is_owned = |name: &str| owned.iter().any(|own| matches(own, name)) || is_temporary(name) || name == LOCK;
        if let Some(other) = names.iter().find(|name| !is_owned(name)) {
            bail!(
                "{display}: holds {other}, which this command does not write; choose an empty or new folder \
                 with {option}"
            );
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Creates the folder if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created.
    pub fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.path).with_context(|| format!("{}: cannot be made", self.path.display()))
    }

    /// Creates the folder, and locks it until the lock is dropped. The lock of a process that died does not hold.
    ///
    /// # Errors
    /// Returns an error if another process has the lock, or the folder cannot be written to.
    pub fn lock(&self) -> Result<Lock> {
        let is_new = !self.path.exists();
        self.create()?;
        let path = self.file(LOCK);
        let file = File::create(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
        let locked = file.try_lock();
        // A process that ends removes its file, perhaps between the two lines above: then look again.
        if locked.is_ok() && !is_at(&file, &path) {
            return self.lock();
        }
        match locked {
            // A file system without locks has no way to refuse the second process.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock { _file: file, path, is_new }),
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another gelora is writing to this folder; choose another with --out", self.path.display())
            }
        }
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file in the folder with [`write_atomic`]. Returns its path.
    ///
    /// # Errors
    /// Returns the errors of [`write_atomic`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        self.create()?;
        let path = self.file(name);
        write_atomic(&path, bytes)?;
        Ok(path)
    }

    /// Writes a file in the folder with [`write_json`]. Returns its path.
    ///
    /// # Errors
    /// Returns the errors of [`write_json`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<PathBuf> {
        self.create()?;
        let path = self.file(name);
        write_json(&path, value)?;
        Ok(path)
    }
}

/// Returns whether a name fits a pattern, in which `*` stands for any text.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (mut rest, mut parts) = (name, pattern.split('*').peekable());
    let Some(start) = parts.next().and_then(|start| rest.strip_prefix(start)) else { return false };
    rest = start;
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    true
}

/// Whether a path still names an open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!((file.metadata(), path.metadata()), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true // an open file is not removed there
}

/// Lock on an output folder.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
    /// Whether the folder was made for the lock.
    is_new: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock file that stays does no harm: nobody holds its lock.
        let _ = std::fs::remove_file(&self.path);
        if self.is_new
            && let Some(folder) = self.path.parent()
        {
            // Fails where a result was written, as it should.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Writes a value as indented JSON with a newline at the end, with [`write_atomic`].
///
/// # Errors
/// Returns the errors of [`write_atomic`], and an error if the value has no JSON form.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).with_context(|| format!("{}: cannot be JSON", path.display()))?;
    json.push(b'\n');
    Ok(write_atomic(path, &json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNED: [&str; 2] = ["ranks.json", "checkpoints"];

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn fails(path: &Path) -> String {
        OutDir::prepare(path, &OWNED, "--out").unwrap_err().to_string()
    }

    #[test]
    fn new_empty_and_own_folders_are_accepted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let out = OutDir::prepare(&path, &OWNED, "--out").unwrap();
        out.write_json("ranks.json", &[1, 2]).unwrap();
        std::fs::create_dir(out.file("checkpoints")).unwrap();
        std::fs::write(out.file(".gelora-x1.partial"), "left behind").unwrap();
        let out = OutDir::prepare(&path, &OWNED, "--out").unwrap();
        out.write("ranks.json", b"{}").unwrap();
        assert_eq!(std::fs::read(out.file("ranks.json")).unwrap(), b"{}");
    }

    #[test]
    fn other_folders_are_refused_and_unchanged() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("thesis.tex");
        std::fs::write(&file, "x").unwrap();
        std::fs::write(root.path().join("ranks.json"), "{}").unwrap();
        let message = fails(root.path());
        assert!(message.ends_with(
            "holds thesis.tex, which this command does not write; choose an empty or new folder with --out"
        ));
        assert!(fails(&file).ends_with("thesis.tex: is a file; --out names a folder"));
        assert!(fails(&file.join("below")).contains("(--out)"));
        assert_eq!(names(root.path()), ["ranks.json", "thesis.tex"]);
    }

    #[test]
    fn a_folder_has_one_lock_and_a_failed_run_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new");
        let out = OutDir::prepare(&path, &OWNED, "--out").unwrap();
        let lock = out.lock().unwrap();
        let second = OutDir::prepare(&path, &OWNED, "--out").unwrap();
        assert!(second.lock().unwrap_err().to_string().contains("another gelora is writing"));
        drop(lock);
        assert!(!path.exists());
        let lock = second.lock().unwrap();
        second.write("ranks.json", b"{}").unwrap();
        drop(lock);
        assert_eq!(names(&path), ["ranks.json"]);
        // A file that a killed process left is no lock.
        std::fs::write(path.join(LOCK), "").unwrap();
        OutDir::prepare(&path, &OWNED, "--out").unwrap().lock().unwrap();
    }

    #[test]
    fn stars_stand_for_any_text() {
        let fits = |name: &str| matches("events.*.gelora.*", name);
        assert!(fits("events.1700000000.gelora.0") && fits("events.a.b.gelora."));
        assert!(!fits("events.1700000000.host.0") && !fits("other.events.1.gelora.0") && !fits("events.gelora"));
        assert!(matches("a.json", "a.json") && !matches("a.json", "a.json2") && !matches("a.json", "ba.json"));
        assert!(matches("a*c", "abc") && !matches("a*c", "abcd"));
    }

    #[test]
    fn json_is_indented_and_ends_with_a_newline() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.json");
        write_json(&path, &serde_json::json!({"rank": 3})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\n  \"rank\": 3\n}\n");
    }
}
