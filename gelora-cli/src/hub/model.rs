//! Determines the files of a model that are needed, and finds or downloads them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use gelora_model::checkpoint::{self, is_index};
use gelora_model::gguf::is_gguf;

use super::{Hub, list};
use crate::{tokenize, ui};

const CONFIG: &str = "config.json";

/// Returns the model's folder or file in the cache, with all files that are needed.
///
/// # Errors
/// Returns an error if the hub refuses the model, or if it is unreachable and the cache is incomplete.
pub fn find(hub: &Hub) -> Result<PathBuf> {
    if hub.settings.offline {
        return cached(hub).ok_or_else(|| hub.not_cached("HF_HUB_OFFLINE is set"));
    }
    let info = match hub.info()? {
        Ok(info) => info,
        Err(problem) => {
            let why = format!("{} cannot be reached ({problem})", hub.client.endpoint());
            let Some(found) = cached(hub) else { return Err(hub.not_cached(&why)) };
            ui::note(hub.quiet, format!("{why}; taking {} as it was downloaded before", hub.repo.name()));
            return Ok(found);
        }
    };
    // Download all files but the shards, then the shards that the index names.
    let names: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let needed = needed(hub, &names)?;
    let commit = hub.commit(&info, needed[0])?;
    for name in needed {
        hub.download(&commit, name)?;
    }
    let folder = hub.cache.snapshot(&commit);
    let file = hub.repo.id.file.as_deref();
    if let Some(index) = weights(|name| names.contains(name)).filter(|name| file.is_none() && is_index(name)) {
        for shard in checkpoint::shards(&folder.join(index))? {
            hub.download(&commit, &shard)?;
        }
    }
    hub.keep_commit(&commit);
    Ok(match file {
        Some(file) => folder.join(file),
        None => folder,
    })
}

/// Returns the model in the cache, if it is complete.
fn cached(hub: &Hub) -> Option<PathBuf> {
    let folder = hub.cache.snapshot(&hub.cache.commit(&hub.repo.revision)?);
    if let Some(file) = &hub.repo.id.file {
        return Some(folder.join(file)).filter(|path| path.exists());
    }
    let exists = |name: &str| folder.join(name).exists();
    let is_whole = |name: &str| match checkpoint::shards(&folder.join(name)) {
        _ if !is_index(name) => true,
        shards => shards.is_ok_and(|shards| shards.iter().all(|shard| exists(shard))),
    };
    let has_weights = weights(exists).is_some_and(is_whole);
    (exists(CONFIG) && !tokenizer(exists).is_empty() && has_weights).then_some(folder)
}

/// Returns the files to download before the shards of an index are known.
fn needed<'a>(hub: &'a Hub, names: &BTreeSet<&'a str>) -> Result<Vec<&'a str>> {
    let (id, model) = (&hub.repo.id, hub.repo.name());
    let like = |wanted: fn(&str) -> bool| list(names.iter().copied().filter(|name| wanted(name)));
    if let Some(file) = id.file.as_deref() {
        if names.contains(file) {
            return Ok(vec![file]);
        }
        bail!("{model}: {} has no {file}; it has {}", id.repo, like(is_weights));
    }
    let has = |name: &str| names.contains(name);
    let missing = |what: &str, wanted: fn(&str) -> bool| {
        let other = match names.iter().any(|name| is_gguf(Path::new(name))) {
            true => format!("; name a .gguf file as {}/FILE.gguf", id.repo),
            false => {
                "; transformers writes what is missing with from_pretrained(..).save_pretrained(FOLDER)".to_owned()
            }
        };
        anyhow!("{model}: the model has {what}; it has {}{other}", like(wanted))
    };
    if !has(CONFIG) {
        return Err(missing("no config.json", |_| true));
    }
    let older = tokenize::FILES.map(|files| files.join(" with ")).join(", ");
    let tokenizer = tokenizer(has);
    if tokenizer.is_empty() {
        return Err(missing(&format!("none of {older}"), |_| true));
    }
    let weights =
        weights(has).ok_or_else(|| missing(&format!("none of {}", checkpoint::FILES.join(", ")), is_weights))?;
    let aside = tokenize::ASIDE.iter().filter(|name| has(name));
    // Weights are last, so that a folder with weights also has the files that change the meaning of its tokenizer.
    Ok([CONFIG].iter().chain(&tokenizer).chain(aside).chain([&weights]).copied().collect())
}

/// Returns the weights file, or its index, to use among the existing ones.
fn weights(exists: impl Fn(&str) -> bool) -> Option<&'static str> {
    checkpoint::FILES.into_iter().find(|name| exists(name))
}

/// Returns the tokenizer files to use among the existing ones: tokenizer.json, or else all older files, from which the
/// model's class chooses.
fn tokenizer(exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let [newer, older @ ..] = tokenize::FILES;
    let is_whole = |files: &&[&str]| files.iter().all(|name| exists(name));
    if is_whole(&newer) { newer.to_vec() } else { older.into_iter().filter(is_whole).flatten().copied().collect() }
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin", ".h5", ".msgpack", ".onnx", ".pt"].iter().any(|end| name.ends_with(end))
}
