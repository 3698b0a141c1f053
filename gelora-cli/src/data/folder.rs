//! Which file of a data folder is which split.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{FORMATS, Split, formats, table};

/// The splits in a folder with their files, train first; none if the path is a file.
///
/// # Errors
/// If the path does not exist, the folder has no recognised file, or two files for one split.
pub fn splits(path: &Path) -> Result<Vec<(Split, PathBuf)>> {
    let shown = path.display();
    if !path.exists() {
        bail!("{shown}: no such file or folder");
    }
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut found: Vec<(Split, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("{shown}: cannot be listed"))? {
        let file = entry.with_context(|| format!("{shown}: cannot be listed"))?.path();
        if !file.is_file() || !FORMATS.contains(&table::extension(&file).as_str()) {
            continue;
        }
        if let Some(split) = split_of(&file) {
            found.push((split, file));
        }
    }
    found.sort();
    if let Some(two) = found.windows(2).find(|two| two[0].0 == two[1].0) {
        bail!(
            "{shown}: {} and {} are both a {} split; keep one, or give the path of the file",
            name(&two[0].1),
            name(&two[1].1),
            two[0].0.name()
        );
    }
    if found.is_empty() {
        bail!("{shown}: no file named train, validation or test that ends in {}", formats());
    }
    Ok(found)
}

/// The file to read for a path.
pub fn locate(path: &Path, wanted: Option<Split>) -> Result<PathBuf> {
    let found = splits(path)?;
    let picked = match wanted {
        _ if found.is_empty() => return Ok(path.to_owned()),
        Some(wanted) => found.iter().find(|(split, _)| *split == wanted),
        None if found.len() == 1 => found.first(),
        None => found.iter().find(|(split, _)| *split == Split::Train),
    };
    match picked {
        Some((_, file)) => Ok(file.clone()),
        None => {
            let there: Vec<String> = found.iter().map(|(_, file)| name(file)).collect();
            let missing = wanted.unwrap_or(Split::Train).name();
            bail!("{}: no {missing} file; there is {}", path.display(), there.join(" and "))
        }
    }
}

/// `train.csv`, `dev.tsv`, and `train-00000-of-00001.parquet` as data hubs name the parts of a split.
fn split_of(file: &Path) -> Option<Split> {
    let stem = file.file_stem()?.to_string_lossy().to_lowercase();
    let stem = match stem.split_once('-') {
        Some((split, part)) if part.contains("-of-") => split,
        _ => stem.as_str(),
    };
    match stem {
        "train" => Some(Split::Train),
        "validation" | "valid" | "val" | "dev" => Some(Split::Validation),
        "test" => Some(Split::Test),
        _ => None,
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}
