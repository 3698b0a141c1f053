//! Datasets by their id: determines the files that are needed, and links them in a folder that reads like any data
//! folder.

mod glob;
mod layout;
mod splits;
mod view;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use super::{Hub, Id, Info, Kind, MAIN, Repo, Sibling, list};
use crate::data::FORMATS;
use crate::ui;
use layout::Config;

pub use splits::Wanted;

/// Returns the folder or file that `--data` names. An id on the hub (`org/name`, or `org/name/FILE` for one file) is
/// downloaded first.
///
/// The folder has one link for each file of the splits in `wanted`. Links are called `train.parquet` or
/// `train-00000-of-00002.parquet`, whatever the names in the repository are.
///
/// # Errors
/// Returns an error if the dataset has several configs and `config` is `None`, if it has no such config or split, if it
/// may not be read without a token, or if the hub is unreachable and the cache is incomplete.
pub fn locate(
    data: &Path,
    config: Option<&str>,
    revision: Option<&str>,
    wanted: Wanted,
    quiet: bool,
) -> Result<PathBuf> {
    let id = data.to_str().filter(|_| !data.exists()).and_then(parsed);
    let Some(id) = id else {
        for (option, value) in [("--data-config", config), ("--data-revision", revision)] {
            if let Some(value) = value {
                let place = if data.exists() { "is on this machine" } else { "is no such id as org/name" };
                bail!("{option} {value} is for datasets on the hub; {} {place}", data.display());
            }
        }
        // The reader of the path reports its errors.
        return Ok(data.to_owned());
    };
    if let (Some(file), Some(config)) = (&id.file, config) {
        bail!(
            "{}: --data-config {config} chooses among the files of a dataset, but {file} is one file",
            data.display()
        );
    }
    let repo = Repo { kind: Kind::Dataset, id, revision: revision.unwrap_or(MAIN).to_owned() };
    let hub = Hub::open(repo, quiet)?;
    let found = Found::of(&hub)?;
    let result = match hub.repo.id.file.clone() {
        Some(file) => found.file(&hub, &file),
        None => found.folder(&hub, config, wanted),
    };
    result.inspect(|_| found.keep(&hub))
}

/// Parses an id of two parts. `name` without a slash is a missing folder, and `folder/train.csv` is a file.
fn parsed(typed: &str) -> Option<Id> {
    let endings: Vec<String> = FORMATS.iter().map(|format| format!(".{format}")).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    Id::parse(typed, &endings).filter(|id| id.repo.contains('/'))
}

/// A revision of a dataset.
struct Found {
    commit: String,
    info: Info,
    /// Reason why the hub was not requested, if it was not.
    offline: Option<String>,
}

impl Found {
    /// Requests the description from the hub, or reads it from the cache.
    fn of(hub: &Hub) -> Result<Self> {
        let why = if hub.settings.offline {
            "HF_HUB_OFFLINE is set".to_owned()
        } else {
            match hub.info()? {
                Ok(info) => {
                    let any = info.siblings.first().map(|file| file.rfilename.clone());
                    let any = any.ok_or_else(|| anyhow!("{}: the dataset has no files", hub.repo.name()))?;
                    return Ok(Self { commit: hub.commit(&info, &any)?, info, offline: None });
                }
                Err(problem) => format!("{} cannot be reached ({problem})", hub.client.endpoint()),
            }
        };
        let Some(commit) = hub.cache.commit(&hub.repo.revision) else { return Err(hub.not_cached(&why)) };
        if !hub.settings.offline {
            ui::note(hub.quiet, format!("{why}; taking {} as it was downloaded before", hub.repo.name()));
        }
        let info = view::described(&hub.repo, &commit).unwrap_or_else(|| {
            // Another program filled the cache, so only the files in it are known.
            let siblings = hub.cache.files(&commit).into_iter().map(|rfilename| Sibling { rfilename }).collect();
            let note = format!("{}: what the cache has of it is assumed to be complete", hub.repo.name());
            ui::note(hub.quiet, note);
            Info { sha: Some(commit.clone()), siblings, card: None }
        });
        Ok(Self { commit, info, offline: Some(why) })
    }

    /// Records the hub's description, so that the dataset is found without the hub.
    fn keep(&self, hub: &Hub) {
        if self.offline.is_none() {
            hub.keep_commit(&self.commit);
            if let Err(problem) = view::keep_description(&hub.repo, &self.commit, &self.info) {
                let name = hub.repo.name();
                ui::note(hub.quiet, format!("{name}: its description could not be kept: {problem:#}"));
            }
        }
    }

    /// Returns the requested file.
    fn file(&self, hub: &Hub, file: &str) -> Result<PathBuf> {
        let names: Vec<&str> = self.names();
        if !names.contains(&file) && self.offline.is_none() {
            let readable = names.into_iter().filter(|name| layout::format_of(name).is_some());
            bail!("{}: {} has no {file}; it has {}", hub.repo.name(), hub.repo.id.repo, list(readable));
        }
        self.download_or_find(hub, file)
    }

    /// Returns a folder with the wanted splits of one config.
    fn folder(&self, hub: &Hub, config: Option<&str>, wanted: Wanted) -> Result<PathBuf> {
        let data = hub.repo.name();
        let names = self.names();
        let declared =
            layout::declared(&names, self.info.card.as_ref()).map_err(|problem| anyhow!("{data}: {problem}"))?;
        let mut configs = declared.unwrap_or_else(|| layout::by_names(&names));
        configs.retain(|config| !config.splits.is_empty());
        if configs.is_empty() {
            return Err(nothing_readable(hub, &names));
        }
        let config = chosen(hub, configs, config)?;
        let splits = splits::needed(&config.splits, wanted).map_err(|problem| anyhow!("{data}: {problem}"))?;
        let mut files = Vec::new();
        for (split, names) in &splits {
            for (index, name) in names.iter().enumerate() {
                let link = layout::canonical(split, index, names.len(), name);
                files.push((link, self.download_or_find(hub, name)?));
            }
        }
        let counted = |(split, names): &(String, Vec<String>)| match names.len() {
            1 => format!("{split} ({})", names[0]),
            n => format!("{split} ({n} files)"),
        };
        let taken: Vec<String> = splits.iter().map(counted).collect();
        let config_name = if config.name == layout::DEFAULT { String::new() } else { format!(" {}", config.name) };
        ui::note(hub.quiet, format!("{data}{config_name}: {} at {}", taken.join(", "), short(&self.commit)));
        if !config.left_out.is_empty() {
            ui::note(hub.quiet, format!("{data}: left out {}", list(config.left_out.iter().map(String::as_str))));
        }
        view::folder(&hub.repo, &self.commit, &config.name, &files)
    }

    fn names(&self) -> Vec<&str> {
        self.info.siblings.iter().map(|file| file.rfilename.as_str()).collect()
    }

    /// Downloads a file, or finds it in the cache if the hub is unreachable.
    fn download_or_find(&self, hub: &Hub, name: &str) -> Result<PathBuf> {
        let path = hub.cache.pointer(&self.commit, name)?;
        match &self.offline {
            Some(_) if path.exists() => {}
            Some(why) => return Err(hub.not_cached(&format!("{name} is missing and {why}"))),
            None => hub.download(&self.commit, name)?,
        }
        Ok(path)
    }
}

/// Returns the requested config, or the only one, or the default of the owner.
fn chosen(hub: &Hub, mut configs: Vec<Config>, requested: Option<&str>) -> Result<Config> {
    let data = hub.repo.name();
    let names: Vec<String> = configs.iter().map(|config| config.name.clone()).collect();
    let all = || list(names.iter().map(String::as_str));
    let index = match requested {
        Some(requested) => names.iter().position(|name| name == requested).ok_or_else(|| match names.as_slice() {
            [only] if only == layout::DEFAULT => {
                anyhow!("{data}: the dataset has no configs, so no {requested}; leave --data-config out")
            }
            _ => anyhow!("{data}: the dataset has no config {requested}; it has {}", all()),
        })?,
        None if configs.len() == 1 => 0,
        None => match configs.iter().position(|config| config.is_default) {
            Some(index) => {
                ui::note(hub.quiet, format!("{data}: its default config, {}, of {}", names[index], all()));
                index
            }
            None => bail!("{data}: the dataset has {} configs; choose one with --data-config: {}", names.len(), all()),
        },
    };
    Ok(configs.swap_remove(index))
}

/// Returns the error for a dataset without a readable file.
fn nothing_readable(hub: &Hub, names: &[&str]) -> anyhow::Error {
    let (data, repo) = (hub.repo.name(), &hub.repo.id.repo);
    let script = format!("{}.py", repo.rsplit('/').next().unwrap_or(repo));
    let formats = FORMATS.map(|format| format!(".{format}")).join(", ");
    if names.contains(&script.as_str()) {
        return anyhow!(
            "{data}: the dataset is made by a program, {script}, which gelora does not run; the hub often has the \
             rows as parquet: try --data-revision refs/convert/parquet"
        );
    }
    let visible: BTreeSet<&str> = names.iter().copied().filter(|name| !name.starts_with('.')).collect();
    anyhow!("{data}: the dataset has no file that ends in one of {formats}; it has {}", list(visible))
}

/// Returns the first digits of a commit.
fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}

#[cfg(test)]
mod tests;
