//! What gelora keeps of a data set beside the hub's cache: the description that a run without a connection needs, and the
//! folder of links that a run reads. Both lie in the folder GELORA_CACHE, or in `gelora` in the user's cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gelora_lora::files;

use super::super::cache::{link, make_folder_of};
use super::super::{Info, Repo};
use crate::cache;

/// The folder of what is kept of a commit.
fn folder_of(repo: &Repo, commit: &str) -> Result<PathBuf> {
    let root = cache::folder().context("there is no cache folder for the data set; GELORA_CACHE names one")?;
    Ok(root.join("datasets").join(repo.id.repo.replace('/', "--")).join(commit))
}

/// What the hub said of a commit in an earlier run.
pub fn described(repo: &Repo, commit: &str) -> Option<Info> {
    let text = fs::read_to_string(folder_of(repo, commit).ok()?.join("description.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Keeps what the hub says of a commit: its files and configs.
///
/// # Errors
/// If it cannot be written.
pub fn keep_description(repo: &Repo, commit: &str, info: &Info) -> Result<()> {
    let path = folder_of(repo, commit)?.join("description.json");
    make_folder_of(&path)?;
    let configs = info.card.as_ref().and_then(|card| card.get("configs")).cloned();
    let card = configs.map(|configs| serde_json::json!({"configs": configs}));
    let kept = Info { card, ..info.clone() };
    Ok(files::write_atomic(&path, &serde_json::to_vec(&kept)?)?)
}

/// Makes a folder of links, each a name with the file that it leads to. The folder has a name of its own for every list of
/// files, so that it never changes.
///
/// # Errors
/// If it cannot be made.
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

/// The file that a link of the cache leads to. The cache may be named by a path that is relative to where a run was started.
fn target_of(file: &Path) -> std::io::Result<PathBuf> {
    file.canonicalize()
}
