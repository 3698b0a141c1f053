//! Files that gelora keeps for a dataset besides the hub's cache: the description, which a run without a connection
//! needs, and the folder of links that a run reads. Both are in the folder GELORA_CACHE, or in `gelora` in the user's
//! cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gelora_lora::files;

use super::super::cache::{link, make_folder_of};
use super::super::{Info, Repo};
use crate::cache;

/// Returns the folder of a commit.
fn folder_of(repo: &Repo, commit: &str) -> Result<PathBuf> {
    let root = cache::folder().context("there is no cache folder for the dataset; GELORA_CACHE names one")?;
    Ok(root.join("datasets").join(repo.id.repo.replace('/', "--")).join(commit))
}

/// Returns the hub's description of a commit from an earlier run.
pub fn described(repo: &Repo, commit: &str) -> Option<Info> {
    let text = fs::read_to_string(folder_of(repo, commit).ok()?.join("description.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Records the hub's description of a commit: its files and configs.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn keep_description(repo: &Repo, commit: &str, info: &Info) -> Result<()> {
    let path = folder_of(repo, commit)?.join("description.json");
    make_folder_of(&path)?;
    let configs = info.card.as_ref().and_then(|card| card.get("configs")).cloned();
    let card = configs.map(|configs| serde_json::json!({"configs": configs}));
    let kept = Info { card, ..info.clone() };
    Ok(files::write_atomic(&path, &serde_json::to_vec(&kept)?)?)
}

/// Creates a folder of links, given as pairs of name and file. Each list of files has a separate folder, so that a
/// folder never changes.
///
/// # Errors
/// Returns an error if the folder cannot be created.
pub fn folder(repo: &Repo, commit: &str, config: &str, files: &[(String, PathBuf)]) -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, file) in files {
        hasher.update(format!("{name}\0{}\0", file.display()).as_bytes());
    }
    let config = config.replace(|c: char| !c.is_alphanumeric() && c != '_', "-");
    let folder = folder_of(repo, commit)?.join(format!("{config}-{}", &hasher.finalize().to_hex()[..8]));
    for (name, file) in files {
        let path = folder.join(name);
        make_folder_of(&path)?;
        let target = target_of(file).with_context(|| file.display().to_string())?;
        link(&target, &target, &path).with_context(|| path.display().to_string())?;
    }
    Ok(folder)
}

/// Returns the absolute path of the file that a link of the cache leads to. The cache's path may be relative to the
/// working folder.
fn target_of(file: &Path) -> std::io::Result<PathBuf> {
    file.canonicalize()
}
