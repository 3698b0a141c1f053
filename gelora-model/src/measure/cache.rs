//! Cache of pooled hidden states, so that a run with another policy does not run the model again.
//!
//! The cache is content-addressed. The name of an entry is a hash (BLAKE3) of everything that its points depend on, so
//! a changed weight file or text selects another entry, and no entry can be out of date. All entries together take at
//! most 4 GiB. The oldest entries are removed first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gelora_kernels::Tensor;
use gelora_lora::files;

use crate::{Error, Result, Tokens, checkpoint};

/// Largest size of all entries together, in bytes.
const LIMIT: u64 = 4 << 30;
/// Version of the points. It changes when the same inputs would give other points.
const VERSION: &str = "points 1";

/// A folder that stores pooled hidden states between runs.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The file that holds the points of one run.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    folder: PathBuf,
    path: PathBuf,
}

impl Cache {
    /// Makes a cache in this folder. The folder is created when the first entry is written.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Returns the entry for the points of these examples, computed by a model with these settings.
    ///
    /// # Errors
    /// Returns an error if a file of the model cannot be read.
    pub(super) fn entry(&self, model: &Path, examples: &[Tokens], settings: &str) -> Result<Entry> {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(VERSION.as_bytes());
        field(settings.as_bytes());
        for example in examples {
            for numbers in [&example.ids, &example.type_ids] {
                field(&numbers.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        for path in model_files(model)? {
            hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hasher.update_mmap_rayon(&path).map_err(|e| Error::io(&path, e))?;
        }
        let path = self.folder.join(format!("{}.safetensors", hasher.finalize().to_hex()));
        Ok(Entry { folder: self.folder.clone(), path })
    }
}

impl Entry {
    /// Returns the points, if an earlier run stored them.
    pub(super) fn read(&self, states: usize) -> Option<Vec<Tensor>> {
        let mut tensors = files::read_tensors(&self.path, |_| true).ok()?;
        let points: Option<Vec<Tensor>> = (0..states).map(|s| tensors.remove(&format!("layer_{s}"))).collect();
        // A used entry counts as new, so that it is removed later.
        let _ = fs::File::options().append(true).open(&self.path).map(|file| file.set_modified(SystemTime::now()));
        points
    }

    /// Stores the points. Removes old entries first if the cache would become too large.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created or the file cannot be written.
    pub(super) fn write(&self, points: &[Tensor]) -> Result<()> {
        let bytes: u64 = points.iter().map(|t| (t.dtype().bytes(t.len())) as u64).sum();
        if bytes > LIMIT {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        make_room(&self.folder, LIMIT - bytes);
        files::write_tensors(&self.path, points.iter().enumerate().map(|(s, t)| (format!("layer_{s}"), t)))?;
        Ok(())
    }
}

/// Paths of the files on which a model's hidden states depend, sorted.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let mut found = checkpoint::files(model)?;
    found.push(model.join("config.json"));
    found.sort();
    Ok(found)
}

/// Removes the oldest entries until the rest takes at most `limit` bytes. Skips entries that cannot be removed.
fn make_room(folder: &Path, limit: u64) {
    let by_age = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        let is_entry = entry.path().extension().is_some_and(|ending| ending == "safetensors");
        is_entry.then_some((metadata.modified().ok()?, metadata.len(), entry.path()))
    };
    let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(by_age).collect();
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in entries {
        if total <= limit {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_entries_are_removed_first() {
        let folder = tempfile::tempdir().unwrap();
        for (age, name) in [(30, "a.safetensors"), (20, "b.safetensors"), (10, "c.safetensors"), (99, "notes.txt")] {
            let path = folder.path().join(name);
            fs::write(&path, [0; 100]).unwrap();
            let when = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().append(true).open(&path).unwrap().set_modified(when).unwrap();
        }
        make_room(folder.path(), 150);
        let left = |name: &str| folder.path().join(name).exists();
        assert!(!left("a.safetensors") && !left("b.safetensors") && left("c.safetensors") && left("notes.txt"));
    }
}
