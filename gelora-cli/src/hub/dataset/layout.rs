//! Assigns the files of a dataset to configs and splits: as the header of its README declares them, or else by their
//! names.

use std::collections::BTreeMap;

use serde_json::Value;

use super::glob;
use super::splits::split_word;
use crate::data::FORMATS;

/// Name of the config of a dataset without configs.
pub const DEFAULT: &str = "default";
/// Formats in order of preference, for a split that exists in several formats.
const PREFERRED: [&str; FORMATS.len()] = ["parquet", "jsonl", "json", "csv", "tsv", "txt"];
/// JSON files that describe data but hold none.
const DESCRIPTIONS: [&str; 6] =
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json", "package.json"];

/// One table of a dataset with its splits.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub name: String,
    /// Each split with its files, in order.
    pub splits: Vec<(String, Vec<String>)>,
    /// Data files that belong to no split.
    pub left_out: Vec<String>,
    /// Whether the owner made this config the default.
    pub is_default: bool,
}

/// Returns the format of a data file from its ending, if the format is supported.
pub fn format_of(name: &str) -> Option<&'static str> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let (stem, ending) = file.rsplit_once('.')?;
    let ending = ending.to_lowercase();
    let format = FORMATS.into_iter().find(|format| *format == ending)?;
    (!stem.is_empty() && !stem.starts_with('.') && !DESCRIPTIONS.contains(&file)).then_some(format)
}

/// Returns the name of a file in a data folder: `train.csv`, `train-00000-of-00002.parquet`.
pub fn canonical(split: &str, index: usize, count: usize, name: &str) -> String {
    let format = format_of(name).unwrap_or_default();
    if count == 1 { format!("{split}.{format}") } else { format!("{split}-{index:05}-of-{count:05}.{format}") }
}

/// Returns the configs that the README's header declares, or `None` if it declares none.
///
/// ```yaml
/// configs:
/// - config_name: cola
///   data_files:
///   - split: train
///     path: cola/train-*
/// ```
///
/// # Errors
/// Returns an error if the declaration is not of this form, or names files that cannot be read.
pub fn declared(names: &[&str], card: Option<&Value>) -> Result<Option<Vec<Config>>, String> {
    let Some(entries) = card.and_then(|card| card.get("configs")).and_then(Value::as_array) else { return Ok(None) };
    let mut configs = Vec::new();
    for entry in entries {
        let name = entry.get("config_name").and_then(Value::as_str).unwrap_or(DEFAULT).to_owned();
        let folder = entry.get("data_dir").and_then(Value::as_str).map(|folder| folder.trim_matches('/'));
        let within = |name: &str| match folder.filter(|folder| !matches!(*folder, "" | ".")) {
            Some(folder) => name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).map(ToOwned::to_owned),
            None => Some(name.to_owned()),
        };
        let is_default = entry.get("default").and_then(Value::as_bool).unwrap_or(false) || name == DEFAULT;
        let mut config = Config { name, splits: Vec::new(), left_out: Vec::new(), is_default };
        match entry.get("data_files") {
            None | Some(Value::Null) => {
                let inside: Vec<&str> = names.iter().copied().filter(|name| within(name).is_some()).collect();
                (config.splits, config.left_out) = merged(by_names(&inside));
            }
            Some(files) => {
                for (split, patterns) in split_patterns(files).map_err(|problem| config.problem(&problem))? {
                    let mut found: Vec<String> = Vec::new();
                    for pattern in &patterns {
                        let mut fitting: Vec<String> = names
                            .iter()
                            .filter(|name| within(name).is_some_and(|name| glob::fits(pattern, &name)))
                            .map(|name| (*name).to_owned())
                            .filter(|name| !found.contains(name))
                            .collect();
                        fitting.sort_unstable();
                        found.extend(fitting);
                    }
                    let (readable, unreadable): (Vec<_>, Vec<_>) =
                        found.into_iter().partition(|name| format_of(name).is_some());
                    if let (true, Some(first)) = (readable.is_empty(), unreadable.first()) {
                        let formats = FORMATS.map(|format| format!(".{format}")).join(", ");
                        return Err(config.problem(&format!("its split {split} is {first}; expected {formats}")));
                    }
                    config.left_out.extend(unreadable);
                    config.splits.push((split, readable));
                }
                config.splits.retain(|(_, files)| !files.is_empty());
            }
        }
        configs.push(config);
    }
    Ok((!configs.is_empty()).then_some(configs))
}

impl Config {
    fn problem(&self, problem: &str) -> String {
        format!("the config {}: {problem}", self.name)
    }
}

/// Reads data_files: one pattern, several patterns, or several patterns for each split.
fn split_patterns(files: &Value) -> Result<Vec<(String, Vec<String>)>, String> {
    let patterns = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(pattern) => Some(vec![pattern.clone()]),
            Value::Array(all) => all.iter().map(|one| one.as_str().map(ToOwned::to_owned)).collect(),
            _ => None,
        }
    };
    if let Some(all) = patterns(files) {
        return Ok(vec![("train".to_owned(), all)]);
    }
    let split_of_entry = |entry: &Value| {
        let split = entry.get("split").and_then(Value::as_str).filter(|split| is_split_name(split))?;
        Some((split.to_owned(), patterns(entry.get("path")?)?))
    };
    let entries = files.as_array().and_then(|entries| entries.iter().map(split_of_entry).collect());
    entries.ok_or_else(|| "its data_files are of no form that is known".to_owned())
}

/// Returns true if a split's name can be part of a file name.
fn is_split_name(split: &str) -> bool {
    let is_known = |c: char| c.is_alphanumeric() || "_.-".contains(c);
    !split.is_empty() && !split.starts_with('.') && split.chars().all(is_known)
}

/// Format and name of every file, by split.
type Splits<'a> = BTreeMap<String, Vec<(&'a str, &'a str)>>;

/// Finds configs and splits from the names only: `data/train-00000-of-00002-*.parquet`, `train.csv`,
/// `cola/train-*.parquet`, `cola/train/0000.parquet`. Files of no split are left out. If no file has a split, all are
/// for training.
pub fn by_names(names: &[&str]) -> Vec<Config> {
    let mut files: Vec<(Place, &str)> = names.iter().filter_map(|name| Some((Place::of(name)?, *name))).collect();
    files.sort_by(|a, b| a.1.cmp(b.1));
    let has_splits = files.iter().any(|(place, _)| place.split.is_some());
    let mut configs: BTreeMap<String, Splits<'_>> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (place, name) in files {
        let split = match place.split {
            Some(split) => split,
            // LICENSE.txt is not a dataset.
            None if has_splits || place.format == "txt" => {
                left_out.push(name.to_owned());
                continue;
            }
            None => "train".to_owned(),
        };
        configs.entry(place.config).or_default().entry(split).or_default().push((place.format, name));
    }
    let config = |(name, splits): (String, Splits<'_>)| {
        let mut config = Config { name, splits: Vec::new(), left_out: left_out.clone(), is_default: false };
        for (split, files) in splits {
            let best = PREFERRED.into_iter().find(|format| files.iter().any(|file| file.0 == *format));
            let (taken, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| Some(file.0) == best);
            config.splits.push((split, taken.into_iter().map(|file| file.1.to_owned()).collect()));
            config.left_out.extend(others.into_iter().map(|file| file.1.to_owned()));
        }
        config
    };
    configs.into_iter().map(config).collect()
}

/// Merges the splits of several configs.
fn merged(configs: Vec<Config>) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let (mut splits, mut left_out): (BTreeMap<String, Vec<String>>, Vec<String>) = Default::default();
    for config in configs {
        for (split, files) in config.splits {
            splits.entry(split).or_default().extend(files);
        }
        left_out.extend(config.left_out);
    }
    left_out.sort_unstable();
    left_out.dedup();
    (splits.into_iter().collect(), left_out)
}

/// Config, split and format of a file, from its path.
#[derive(Debug)]
struct Place {
    config: String,
    split: Option<String>,
    format: &'static str,
}

impl Place {
    fn of(name: &str) -> Option<Self> {
        let format = format_of(name)?;
        let mut folders: Vec<&str> = name.split('/').collect();
        let file = folders.pop()?;
        if folders.iter().any(|folder| folder.starts_with('.')) {
            return None;
        }
        let split_folder = folders.iter().rposition(|folder| split_word(folder).is_some());
        let split = match split_folder {
            Some(index) => split_word(folders.remove(index)),
            None => split_of(&file[..file.len() - format.len() - 1]),
        };
        folders.retain(|folder| *folder != "data");
        let config = if folders.is_empty() { DEFAULT.to_owned() } else { folders.join("/") };
        Some(Self { config, split, format })
    }
}

/// Returns the split in a file's name without its ending.
fn split_of(stem: &str) -> Option<String> {
    // `NAME-00000-of-00002` and `NAME-00000-of-00002-0123456789abcdef` are shards of a split of any name.
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = stem.split('-').collect();
    let of = (2..parts.len())
        .find(|&i| parts[i] == "of" && digits(parts[i - 1]) && parts.get(i + 1).is_some_and(|p| digits(p)));
    if let Some(of) = of {
        let split = parts[..of - 1].join("-");
        return is_split_name(&split).then_some(split);
    }
    // The two halves of MultiNLI's validation and test splits are separate splits.
    let is_half = ["_matched", "-matched", "_mismatched", "-mismatched"].iter().any(|half| stem.ends_with(half));
    if is_half && is_split_name(stem) {
        return Some(stem.replace('-', "_"));
    }
    split_word(stem)
}
