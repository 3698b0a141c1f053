//! Assigns the files of a data folder to splits.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{FORMATS, formats, table};

/// A split of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// Rows that the adapter is trained on.
    Train,
    /// Rows for evaluation during training.
    Validation,
    /// Rows for the final evaluation.
    Test,
}

impl Split {
    /// Returns the name of the split in file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

/// Names of splits, preferred names first.
const NAMES: [(&str, Split); 11] = [
    ("train", Split::Train),
    ("training", Split::Train),
    ("validation", Split::Validation),
    ("valid", Split::Validation),
    ("val", Split::Validation),
    ("dev", Split::Validation),
    ("validation_matched", Split::Validation),
    ("validation_mismatched", Split::Validation),
    ("test", Split::Test),
    ("test_matched", Split::Test),
    ("test_mismatched", Split::Test),
];

/// Files of one split, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub split: Split,
    pub files: Vec<PathBuf>,
    /// Remarks on files that are not read or missing.
    pub notes: Vec<String>,
}

/// Files to read for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The file, or the folder of the files.
    pub path: PathBuf,
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

/// A file of a folder, with the information in its name.
struct File {
    path: PathBuf,
    /// Index of its name in [`NAMES`].
    name: usize,
    split: Split,
    /// Shard number and count, from `00001-of-00002`.
    shard: Option<(usize, usize)>,
}

/// Returns the splits of a folder, train first. Returns none if the path is a file.
///
/// # Errors
/// Returns an error if the path does not exist, if the folder has no recognized file, or if two files of equal
/// preference are the same split.
pub fn splits(path: &Path) -> Result<Vec<Part>> {
    let display = path.display();
    if !path.exists() {
        bail!("{display}: no such file or folder");
    }
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let (mut files, folders) = list(path)?;
    for folder in &folders {
        // Folders such as train/0000.parquet and data/train-00000-of-00001.parquet.
        match folder_name(folder) {
            Some((name, split)) => {
                let inside = list_all(folder)?;
                files.extend(inside.into_iter().map(|path| File { path, name, split, shard: None }));
            }
            None if name(folder) == "data" => files.extend(list(folder)?.0),
            None => {}
        }
    }
    if files.is_empty() {
        let with_splits = |folder: &&PathBuf| list(folder).is_ok_and(|(files, _)| !files.is_empty());
        let inside: Vec<String> = folders.iter().filter(with_splits).map(|folder| name(folder)).collect();
        match inside.as_slice() {
            [] => {}
            [only] => return splits(&path.join(only)),
            several => bail!("{display}: several folders have splits; give the path of one: {}", several.join(", ")),
        }
        bail!("{display}: no file named train, validation or test that ends in {}", formats());
    }
    let mut parts = Vec::new();
    for split in [Split::Train, Split::Validation, Split::Test] {
        let (in_split, others): (Vec<File>, Vec<File>) = files.into_iter().partition(|file| file.split == split);
        files = others;
        if !in_split.is_empty() {
            parts.push(part(path, split, in_split)?);
        }
    }
    Ok(parts)
}

/// Returns the files of a split under its preferred name.
fn part(folder: &Path, split: Split, mut files: Vec<File>) -> Result<Part> {
    let display = folder.display();
    files.sort_by_cached_key(|file| (file.name, file.shard.is_none(), file.shard, file.path.clone()));
    let preferred = files[0].name;
    let mut notes = Vec::new();
    let (chosen, others): (Vec<File>, Vec<File>) = files.into_iter().partition(|file| file.name == preferred);
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|file| name(&file.path)).collect();
        let (used, others) = (name(&chosen[0].path), names.join(", "));
        notes.push(format!(
            "{display}: the {} split is {used}; {others} is not read (give its path to read it)",
            split.name()
        ));
    }
    let in_own_folder = chosen[0].path.parent().is_some_and(|parent| folder_name(parent).is_some());
    let ending = table::extension(&chosen[0].path);
    let is_odd = |file: &&File| {
        let same_kind = table::extension(&file.path) == ending && file.path.parent() == chosen[0].path.parent();
        let same_count = file.shard.map(|shard| shard.1) == chosen[0].shard.map(|shard| shard.1);
        let same_shard = chosen.iter().filter(|other| other.shard == file.shard).count() > 1 && !in_own_folder;
        !same_kind || !same_count || same_shard
    };
    if let Some(other) = chosen.iter().skip(1).find(is_odd) {
        bail!(
            "{display}: {} and {} are both a {} split; keep one, or give the path of the file",
            name(&chosen[0].path),
            name(&other.path),
            split.name()
        );
    }
    if let Some((_, count)) = chosen[0].shard
        && chosen.len() < count
    {
        notes.push(format!("{display}: {} of {count} files of the {} split are there", chosen.len(), split.name()));
    }
    Ok(Part { split, files: chosen.into_iter().map(|file| file.path).collect(), notes })
}

/// Returns the files to read for a path.
pub fn locate(path: &Path, wanted: Option<Split>) -> Result<Located> {
    let mut found = splits(path)?;
    let position = match wanted {
        _ if found.is_empty() => {
            return Ok(Located { path: path.to_owned(), files: vec![path.to_owned()], notes: Vec::new() });
        }
        Some(wanted) => found.iter().position(|part| part.split == wanted),
        None if found.len() == 1 => Some(0),
        None => found.iter().position(|part| part.split == Split::Train),
    };
    let Some(position) = position else {
        let present: Vec<String> = found.iter().map(|part| name(&part.files[0])).collect();
        let missing = wanted.unwrap_or(Split::Train).name();
        bail!("{}: no {missing} file; there is {}", path.display(), present.join(" and "))
    };
    let Part { files, notes, .. } = found.swap_remove(position);
    let path = if files.len() == 1 { files[0].clone() } else { path.to_owned() };
    Ok(Located { path, files, notes })
}

/// Returns the data files of a folder that belong to a split, and its subfolders, sorted.
fn list(folder: &Path) -> Result<(Vec<File>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for path in entries(folder)? {
        if path.is_dir() {
            folders.push(path);
        } else if let Some(file) = split_file(&path) {
            files.push(file);
        }
    }
    Ok((files, folders))
}

/// Returns all data files of a folder.
fn list_all(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| is_data(path)).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unlisted = || format!("{}: cannot be listed", folder.display());
    let entries = std::fs::read_dir(folder).with_context(unlisted)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(unlisted)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_data(path: &Path) -> bool {
    path.is_file() && FORMATS.contains(&table::extension(path).as_str())
}

/// Parses names such as `train.csv`, `dev.tsv.gz`, and `train-00000-of-00001.parquet`, the form of data hubs.
fn split_file(path: &Path) -> Option<File> {
    if !is_data(path) {
        return None;
    }
    let file_name = name(path).to_lowercase();
    let stem = file_name.split('.').next()?;
    let (stem, shard) = match stem.split_once('-') {
        Some((split, part)) => (split, Some(shard(part)?)),
        None => (stem, None),
    };
    let (name, split) = known(stem)?;
    Some(File { path: path.to_owned(), name, split, shard })
}

/// Parses `00001-of-00002`, with or without a hash after it.
fn shard(part: &str) -> Option<(usize, usize)> {
    let mut numbers = part.splitn(3, '-');
    let (index, of, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let count = count.split('-').next()?;
    (of == "of").then_some((index.parse().ok()?, count.parse().ok()?))
}

fn known(stem: &str) -> Option<(usize, Split)> {
    NAMES.iter().enumerate().find(|(_, (name, _))| *name == stem).map(|(i, (_, split))| (i, *split))
}

fn folder_name(folder: &Path) -> Option<(usize, Split)> {
    known(&name(folder).to_lowercase())
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}
