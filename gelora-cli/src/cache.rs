//! Pooled points of earlier measurements, so that another policy does not run the model again.
//!
//! Content-addressed: an entry's name is a hash (BLAKE3) of everything that its points depend on, so a changed weight file or text
//! is another entry, and nothing is ever out of date. Entries lie in the folder GELORA_CACHE, or in `gelora` in the user's
//! cache folder; together they take [`MOST`] bytes at most, and the oldest go first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use gelora_kernels::Tensor;
use gelora_lora::files;
use gelora_model::checkpoint;

use crate::tokenize::Encoded;

/// Bytes of all entries together.
const MOST: u64 = 4 << 30;
/// Raised when the same inputs would give other points.
const VERSION: &str = "points 1";

/// The folder of everything that gelora keeps for another run, if the machine has a place for it.
pub fn folder() -> Option<PathBuf> {
    let own = std::env::var_os("GELORA_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
    own.or_else(|| dirs::cache_dir().map(|cache| cache.join("gelora")))
}

/// The place of one measurement's points.
#[derive(Clone, Debug)]
pub struct Entry {
    folder: PathBuf,
    path: PathBuf,
}

impl Entry {
    /// The place for the points of these examples under a model with these settings; None where there is no cache folder.
    ///
    /// # Errors
    /// If a file of the model cannot be read.
    pub fn of(model: &Path, examples: &[Encoded], settings: &str) -> Result<Option<Self>> {
        let Some(folder) = folder() else { return Ok(None) };
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
            hasher.update_mmap_rayon(&path).with_context(|| path.display().to_string())?;
        }
        let path = folder.join(format!("{}.safetensors", hasher.finalize().to_hex()));
        Ok(Some(Self { folder, path }))
    }

    /// The points, if they were measured before.
    pub fn read(&self, states: usize) -> Option<Vec<Tensor>> {
        let mut tensors = files::read_tensors(&self.path, |_| true).ok()?;
        let points: Option<Vec<Tensor>> = (0..states).map(|s| tensors.remove(&format!("layer_{s}"))).collect();
        // What was of use becomes young again.
        let _ = fs::File::options().append(true).open(&self.path).map(|file| file.set_modified(SystemTime::now()));
        points
    }

    /// Keeps the points, and makes room for them.
    ///
    /// # Errors
    /// If the folder cannot be made or the file written.
    pub fn write(&self, points: &[Tensor]) -> Result<()> {
        let bytes: u64 = points.iter().map(|t| (t.dtype().bytes(t.len())) as u64).sum();
        if bytes > MOST {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        make_room(&self.folder, MOST - bytes);
        files::write_tensors(&self.path, points.iter().enumerate().map(|(s, t)| (format!("layer_{s}"), t)))?;
        Ok(())
    }
}

/// Where compiled GPU kernels are kept: in the same folder, unless GELORA_KERNEL_CACHE is `off`.
pub fn of_kernels() -> Option<PathBuf> {
    let off = std::env::var_os("GELORA_KERNEL_CACHE").is_some_and(|value| value == "off");
    folder().filter(|_| !off)
}

/// The files that a model's states depend on, in the order of their names.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let mut found = checkpoint::files(model)?;
    found.push(model.join("config.json"));
    found.sort();
    Ok(found)
}

/// Removes the oldest entries until the others take `most` bytes. What cannot be removed stays.
fn make_room(folder: &Path, most: u64) {
    let of = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        let is_entry = entry.path().extension().is_some_and(|ending| ending == "safetensors");
        is_entry.then_some((metadata.modified().ok()?, metadata.len(), entry.path()))
    };
    let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(of).collect();
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in entries {
        if total <= most {
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
    fn the_oldest_make_room() {
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
