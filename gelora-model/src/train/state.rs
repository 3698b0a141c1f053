//! The state file of a checkpoint, with hashes of every file of the checkpoint and of itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use gelora_lora::files::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::best::WatchState;
use crate::{Error, Result};

/// Name of the state file.
pub(super) const STATE: &str = "state.json";

/// The step of a checkpoint, and the settings that a resumed training must share.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Number of finished steps.
    pub step: usize,
    /// All settings that the result depends on.
    pub settings: BTreeMap<String, Value>,
    /// The best evaluation so far, if evaluations are compared.
    pub best: Option<WatchState>,
    /// BLAKE3 of every other file of the checkpoint, by its path inside the folder.
    pub files: BTreeMap<String, String>,
}

impl State {
    /// Hashes the files of a checkpoint and writes its state file.
    pub fn write(mut self, folder: &Path) -> Result<()> {
        hash_files(folder, "", &mut self.files)?;
        let path = folder.join(STATE);
        let json = serde_json::to_string_pretty(&self).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_atomic(&path, sealed(&json).as_bytes())?)
    }

    /// Reads the state file of a checkpoint.
    ///
    /// # Errors
    /// Returns an error that names the state file or another file of the checkpoint if a byte of it has changed.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let text = unsealed(&bytes).ok_or_else(|| damaged(&path))?;
        let state: Self = serde_json::from_str(text).map_err(|e| Error::file(&path, e.to_string()))?;
        for (name, hash) in &state.files {
            let path = folder.join(name);
            if hash_of(&path)? != *hash {
                return Err(damaged(&path));
            }
        }
        Ok(state)
    }
}

fn damaged(path: &Path) -> Error {
    Error::file(path, "is damaged: it is not what was written (its BLAKE3 hash differs)")
}

/// Adds the hashes of all files in a folder and the folders in it.
fn hash_files(folder: &Path, prefix: &str, hashes: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match path.is_dir() {
            true => hash_files(&path, &format!("{prefix}{name}/"), hashes)?,
            false => {
                hashes.insert(format!("{prefix}{name}"), hash_of(&path)?);
            }
        }
    }
    Ok(())
}

fn hash_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ())).map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Adds a last key to a JSON object: the hash of all text before it.
fn sealed(json: &str) -> String {
    let body = json.strip_suffix("\n}").unwrap_or(json);
    format!("{body},\n  \"hash\": \"{}\"\n}}\n", blake3::hash(body.as_bytes()).to_hex())
}

/// Returns the text of a file that [`sealed`] made, if every byte is as it was.
fn unsealed(bytes: &[u8]) -> Option<&str> {
    let text = str::from_utf8(bytes).ok()?;
    let end = text.len().checked_sub(sealed("").len())?;
    (sealed(text.get(..end)?) == text).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_byte_of_every_file_is_found() -> Result<()> {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path();
        fs::create_dir(folder.join("best")).expect("a folder");
        for name in ["adapter_model.safetensors", "best/adapter_model.safetensors"] {
            fs::write(folder.join(name), [7; 20]).expect("a file");
        }
        let settings = [("lr".to_owned(), serde_json::json!(1e-3))].into();
        State { step: 4, settings, best: None, files: BTreeMap::new() }.write(folder)?;
        assert_eq!(State::read(folder)?.files.len(), 2);
        for name in ["adapter_model.safetensors", "best/adapter_model.safetensors", STATE] {
            let path = folder.join(name);
            let whole = fs::read(&path).expect("a file");
            for i in 0..whole.len() {
                for flip in [1, 0x20, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[i] ^= flip;
                    fs::write(&path, bytes).expect("a file");
                    let error = State::read(folder).expect_err("a flipped byte").to_string();
                    assert!(error.contains(&format!("{}: is damaged", path.display())), "byte {i}: {error}");
                }
            }
            for bytes in [&whole[..whole.len() - 1], &[]] {
                fs::write(&path, bytes).expect("a file");
                assert!(State::read(folder).is_err(), "{name} cut to {}", bytes.len());
            }
            fs::remove_file(&path).expect("a file");
            assert!(State::read(folder).expect_err("a missing file").to_string().contains(name));
            fs::write(&path, whole).expect("a file");
            State::read(folder)?;
        }
        Ok(())
    }
}
