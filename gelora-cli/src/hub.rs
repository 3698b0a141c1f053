//! Where a model is: a folder, a file, or an id on the Hugging Face hub, from which what is needed is downloaded once.
//!
//! Files lie where every program of that world keeps them: HF_HUB_CACHE, or `hub` in HF_HOME, or ~/.cache/huggingface/hub.
//! HF_ENDPOINT names another server, HF_TOKEN (or the file `token` in HF_HOME) opens private and gated models, and
//! HF_HUB_OFFLINE=1 asks for the cache alone. A download that broke goes on where it stopped.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use gelora_model::checkpoint::{self, is_index};
use gelora_model::gguf::is_gguf;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};

use crate::{tokenize, ui};

/// The revision that is taken unless another is asked for.
const MAIN: &str = "main";
/// How often a broken download is taken up again before it is an error.
const RETRIES: usize = 3;
/// How long to wait before the first of them; then twice as long each time.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a server may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(15);

const CONFIG: &str = "config.json";

/// The folder or file of a model, downloaded first if it is the id of one on the hub: `org/name`, or `org/name/FILE.gguf`.
///
/// # Errors
/// If there is no such folder or file and no such model on the hub, it may not be read without a token, or the hub cannot be
/// reached and not everything is in the cache.
pub fn locate(model: &Path, revision: Option<&str>, quiet: bool) -> Result<PathBuf> {
    if model.exists() {
        if let Some(revision) = revision {
            bail!("--revision {revision} is for models on the hub; {} is on this machine", model.display());
        }
        if model.is_dir() || is_gguf(model) {
            return Ok(model.to_owned());
        }
        bail!("{}: is neither a folder nor a .gguf file; {}", model.display(), expected());
    }
    let Some(id) = model.to_str().and_then(|typed| Id::parse(typed, revision.unwrap_or(MAIN))) else {
        bail!("{}: no such folder or file; {}", model.display(), expected());
    };
    Hub::open(quiet)?.find(&id)
}

fn expected() -> &'static str {
    "expected the folder of a Hugging Face model (config.json, model.safetensors, tokenizer.json, or what older models have \
     instead), a .gguf file, or the id of a model on the hub, such as org/name"
}

/// A model on the hub.
struct Id<'a> {
    typed: &'a str,
    repo: &'a str,
    /// A file of GGUF, or None for a model in a folder.
    file: Option<&'a str>,
    revision: &'a str,
}

impl<'a> Id<'a> {
    fn parse(typed: &'a str, revision: &'a str) -> Option<Self> {
        let is_name = |part: &str| {
            let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            known && !part.is_empty() && !part.starts_with('.') && !part.contains("..")
        };
        let parts: Vec<&str> = typed.split('/').collect();
        if !parts.iter().all(|part| is_name(part)) {
            return None;
        }
        let of_gguf = typed.to_lowercase().ends_with(".gguf");
        let (repo, file) = match parts.len() {
            1 | 2 if !of_gguf => (typed, None),
            3.. if of_gguf => {
                let end = parts[0].len() + 1 + parts[1].len();
                (&typed[..end], Some(&typed[end + 1..]))
            }
            _ => return None,
        };
        Some(Self { typed, repo, file, revision })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.repo.to_owned(), RepoType::Model, self.revision.to_owned())
    }

    /// The model with its revision, for messages.
    fn name(&self) -> String {
        if self.revision == MAIN { self.typed.to_owned() } else { format!("{} ({})", self.typed, self.revision) }
    }
}

struct Hub {
    api: Api,
    cache: Cache,
    endpoint: String,
    has_token: bool,
    offline: bool,
    quiet: bool,
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl Hub {
    fn open(quiet: bool) -> Result<Self> {
        let home = Cache::from_env();
        let token = variable("HF_TOKEN").or_else(|| home.token());
        let cache = variable("HF_HUB_CACHE").map_or(home, |path| Cache::new(path.into()));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let has_token = token.is_some();
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token)
            .with_user_agent("gelora", env!("CARGO_PKG_VERSION"))
            .build()?;
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()));
        Ok(Self { api, cache, endpoint, has_token, offline, quiet })
    }

    /// The model's folder or file in the cache, complete.
    fn find(&self, id: &Id<'_>) -> Result<PathBuf> {
        if self.offline {
            return self.cached(id).ok_or_else(|| self.not_cached(id, "HF_HUB_OFFLINE is set"));
        }
        let info = match self.info(id)? {
            Ok(info) => info,
            Err(problem) => {
                let why = format!("{} cannot be reached ({problem})", self.endpoint);
                let Some(found) = self.cached(id) else { return Err(self.not_cached(id, &why)) };
                ui::note(self.quiet, format!("{why}; taking {} as it was downloaded before", id.name()));
                return Ok(found);
            }
        };
        let folder = self.cache.repo(id.repo()).pointer_path(&info.sha);
        let names: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        for name in needed(id, &names)? {
            self.download(id, &folder, name)?;
        }
        if let Some(index) = weights(|name| names.contains(name)).filter(|name| id.file.is_none() && is_index(name)) {
            for shard in checkpoint::shards(&folder.join(index))? {
                self.download(id, &folder, &shard)?;
            }
        }
        Ok(match id.file {
            Some(file) => folder.join(file),
            None => folder,
        })
    }

    /// What the hub says of a model; inside, why it could not be asked.
    fn info(&self, id: &Id<'_>) -> Result<Result<RepoInfo, String>> {
        let request = self.api.repo(id.repo()).info_request().config();
        let request = request
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .build();
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (status, name) = (response.status().as_u16(), id.name());
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or("").to_owned();
        match (status, code.as_str()) {
            (200, _) => match response.body_mut().read_json() {
                Ok(info) => Ok(Ok(info)),
                Err(error) => bail!("{name}: {} did not describe the model: {error}", self.endpoint),
            },
            (_, "RevisionNotFound") => bail!("{}: the model has no revision {}", id.typed, id.revision),
            (_, "GatedRepo") => Err(self.gated(id)),
            (401 | 403 | 404, _) => bail!(
                "{name}: no such folder or file, and {} has no such model, or does not show it {}",
                self.endpoint,
                if self.has_token { "to the owner of this token" } else { "without a token; HF_TOKEN takes one" }
            ),
            // The hub is there but cannot answer now.
            (500.., _) => Ok(Err(format!("it answers with status {status}"))),
            _ => bail!("{name}: {} answers with status {status}", self.endpoint),
        }
    }

    fn gated(&self, id: &Id<'_>) -> anyhow::Error {
        let page = format!("{}/{}", self.endpoint, id.repo);
        let what = if self.has_token { "this token may not read it" } else { "it needs a token; HF_TOKEN takes one" };
        anyhow!("{}: {what}. Its terms have to be accepted first, on {page}", id.name())
    }

    /// Downloads a file unless it is there.
    fn download(&self, id: &Id<'_>, folder: &Path, name: &str) -> Result<()> {
        if folder.join(name).exists() {
            return Ok(());
        }
        let mut broken = 0;
        loop {
            let shown = Shown { quiet: self.quiet, label: format!("{} {name}", id.repo), bar: None };
            let Err(error) = self.api.repo(id.repo()).download_with_progress(name, shown) else { return Ok(()) };
            let said = root(&error);
            match status(&said) {
                Some(401 | 403) => return Err(self.gated(id)),
                // Nothing is left to ask for: a file that was whole already when a run was stopped.
                Some(416) => self.forget_parts(id),
                Some(400..500) => broken = RETRIES,
                _ => {}
            }
            if broken == RETRIES {
                let name_of_model = id.name();
                bail!("{name_of_model}: downloading {name} broke: {said}; the same command goes on where it stopped");
            }
            std::thread::sleep(PAUSE * (1 << broken));
            broken += 1;
        }
    }

    /// Removes what is left of downloads of a model that broke.
    fn forget_parts(&self, id: &Id<'_>) {
        let blobs = self.cache.repo(id.repo()).blob_path("");
        for entry in std::fs::read_dir(blobs).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "part") {
                let _ = std::fs::remove_file(entry.path()); // else the next try fails as this one did
            }
        }
    }

    /// The model in the cache, if all of it is there.
    fn cached(&self, id: &Id<'_>) -> Option<PathBuf> {
        let repo = self.cache.repo(id.repo());
        let any = id.file.unwrap_or(CONFIG);
        let by_name = repo.get(any).and_then(|path| {
            let depth = Path::new(any).components().count();
            path.ancestors().nth(depth).map(Path::to_owned)
        });
        // A revision may be the commit itself.
        let folder = by_name.unwrap_or_else(|| repo.pointer_path(id.revision));
        if let Some(file) = id.file {
            return Some(folder.join(file)).filter(|path| path.exists());
        }
        let there = |name: &str| folder.join(name).exists();
        let whole = |name: &str| match checkpoint::shards(&folder.join(name)) {
            _ if !is_index(name) => true,
            shards => shards.is_ok_and(|shards| shards.iter().all(|shard| there(shard))),
        };
        let weights = weights(there).is_some_and(whole);
        (there(CONFIG) && !tokenizer(there).is_empty() && weights).then_some(folder)
    }

    fn not_cached(&self, id: &Id<'_>, why: &str) -> anyhow::Error {
        anyhow!(
            "{}: no such folder or file, and the model is not in {} either, or not all of it; {why}. Run this once with a \
             connection, or give the folder of a copy",
            id.name(),
            self.cache.path().display()
        )
    }
}

/// The files to download before the shards of an index are known.
fn needed<'a>(id: &Id<'a>, names: &BTreeSet<&'a str>) -> Result<Vec<&'a str>> {
    if let Some(file) = id.file {
        if names.contains(file) {
            return Ok(vec![file]);
        }
        bail!("{}: {} has no {file}; it has {}", id.name(), id.repo, list(names, is_weights));
    }
    let has = |name: &str| names.contains(name);
    let missing = |what: &str, like: fn(&str) -> bool| {
        let other = match names.iter().any(|name| is_gguf(Path::new(name))) {
            true => format!("; a .gguf file is asked for by name, {}/FILE.gguf", id.repo),
            false => {
                "; transformers writes what is missing with from_pretrained(..).save_pretrained(FOLDER)".to_owned()
            }
        };
        anyhow!("{}: the model has {what}; it has {}{other}", id.name(), list(names, like))
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
    // Weights last: where they are, what changes the meaning of a tokenizer's files is there too.
    Ok([CONFIG].iter().chain(&tokenizer).chain(aside).chain([&weights]).copied().collect())
}

/// The file of weights, or their index, that is taken of those that are there.
fn weights(there: impl Fn(&str) -> bool) -> Option<&'static str> {
    checkpoint::FILES.into_iter().find(|name| there(name))
}

/// The files of the tokenizer that are taken of those that are there: tokenizer.json, or else all, of which the model's class
/// chooses.
fn tokenizer(there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let [newer, older @ ..] = tokenize::FILES;
    let whole = |files: &&[&str]| files.iter().all(|name| there(name));
    if whole(&newer) { newer.to_vec() } else { older.into_iter().filter(whole).flatten().copied().collect() }
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin", ".h5", ".msgpack", ".onnx", ".pt"].iter().any(|end| name.ends_with(end))
}

/// Names for a message: not more than a line of them.
fn list(names: &BTreeSet<&str>, wanted: fn(&str) -> bool) -> String {
    const MOST: usize = 8;
    let all: Vec<&str> = names.iter().copied().filter(|name| wanted(name)).collect();
    match all.len() {
        0 => "nothing like it".into(),
        n if n > MOST => format!("{} and {} more", all[..MOST].join(", "), n - MOST),
        _ => all.join(", "),
    }
}

/// The status in an error's words, if the server answered.
fn status(said: &str) -> Option<u16> {
    said.split_once("status: ")?.1.get(..3)?.parse().ok()
}

/// The words of the first cause.
fn root(error: &ApiError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A download as the user sees it.
struct Shown {
    quiet: bool,
    label: String,
    bar: Option<ui::Progress>,
}

impl Progress for Shown {
    fn init(&mut self, size: usize, _: &str) {
        self.bar = Some(ui::Progress::of_bytes(self.quiet, self.label.clone(), size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

impl Drop for Shown {
    /// A download that broke shows no bar any more.
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_id() {
        let parse = |typed| Id::parse(typed, MAIN).map(|id| (id.repo, id.file));
        assert_eq!(parse("org/name"), Some(("org/name", None)));
        assert_eq!(parse("gpt2"), Some(("gpt2", None)));
        assert_eq!(parse("org/name/model-Q4_0.gguf"), Some(("org/name", Some("model-Q4_0.gguf"))));
        assert_eq!(parse("org/name/sub/model.gguf"), Some(("org/name", Some("sub/model.gguf"))));
        for no in
            ["", "/tmp/model", "./model", "../model", "a/b/c", "model.gguf", "org/name.gguf", "a b/c", "org/", "a/..b"]
        {
            assert_eq!(parse(no), None, "{no}");
        }
    }
}
