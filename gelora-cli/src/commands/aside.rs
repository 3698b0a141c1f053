//! Files of an earlier training in the same folder. They stay as long as its checkpoint does: until the new training
//! has a checkpoint of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gelora_model::train::Checkpoints;

use super::log::LOG;
use crate::card::CARD_NAME;
use crate::output::{self, OutDir};

/// Folder of the files inside the folder of checkpoints. The first checkpoint of the new training removes it.
const EARLIER: &str = "earlier";

/// Checks that gelora wrote the adapter and the card in the folder, if there are any.
///
/// # Errors
/// Returns an error that names the folder, as the user wrote it, and what another program put there.
pub fn check_ours(out: &OutDir, written: &Path) -> Result<()> {
    let foreign = |name: &str| out.file(name).is_file() && !out.file(LOG).is_file();
    let folder = written.display();
    if foreign("adapter_model.safetensors") {
        bail!("{folder}: holds an adapter that gelora did not train; choose another folder with --out");
    }
    if foreign(CARD_NAME) {
        bail!("{folder}: holds a {CARD_NAME} that gelora did not write; choose another folder with --out");
    }
    Ok(())
}

/// Removes a file of an earlier training, if this one replaces that and writes no such file itself.
///
/// # Errors
/// Returns an error if the file cannot be removed.
pub fn forget(out: &OutDir, name: &str, replaces: bool) -> Result<()> {
    let path = out.file(name);
    if replaces && path.is_file() {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Moves the files with these names, or patterns of names, out of the way of a training that begins anew, if there is
/// a checkpoint that they belong to.
///
/// # Errors
/// Returns an error if a file cannot be moved.
pub fn set_aside(out: &OutDir, checkpoint: &Path, names: &[&str]) -> Result<()> {
    if !Checkpoints::can_resume(checkpoint) {
        return Ok(());
    }
    let earlier = checkpoint.join(EARLIER);
    fs::create_dir_all(&earlier).with_context(|| earlier.display().to_string())?;
    for path in found(out.path(), names)? {
        // What is there already belongs to the checkpoint; the file in its place is of a training that has none.
        let to = earlier.join(path.file_name().unwrap_or_default());
        if !to.exists() {
            fs::rename(&path, &to).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

/// Moves the files back, for a training that resumes. Those of a training that began since and has no checkpoint are
/// replaced.
///
/// # Errors
/// Returns an error if a file cannot be moved.
pub fn bring_back(out: &OutDir, checkpoint: &Path, names: &[&str]) -> Result<()> {
    let earlier = checkpoint.join(EARLIER);
    if !earlier.is_dir() {
        return Ok(());
    }
    for path in found(out.path(), names)? {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    for path in found(&earlier, names)? {
        let to = out.file(&path.file_name().unwrap_or_default().to_string_lossy());
        fs::rename(&path, &to).with_context(|| to.display().to_string())?;
    }
    fs::remove_dir_all(&earlier).with_context(|| earlier.display().to_string())
}

/// Returns the files of a folder whose names fit.
fn found(folder: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && names.iter().any(|pattern| output::matches(pattern, &name)) {
            all.push(path);
        }
    }
    Ok(all)
}
