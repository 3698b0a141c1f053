//! Models and datasets on the Hugging Face hub: resolves an id to a local folder or file, which is downloaded once.
//!
//! `cache` stores files where Python's tools store them, `client` sends requests, `headers` reads the answers' headers,
//! and `download` downloads one file. `model` and `dataset` determine the files that are needed.

mod cache;
mod client;
mod dataset;
mod download;
mod headers;
mod model;
mod settings;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use gelora_model::gguf::is_gguf;
use serde::{Deserialize, Serialize};

use cache::RepoCache;
use client::{Client, Method, Refusal, Retries, Trouble};
use settings::Settings;

use crate::ui;

pub use dataset::{Wanted, locate as locate_data};

/// Default revision.
const MAIN: &str = "main";
/// Maximum size of a repository's description in bytes. A repository of 100,000 files has about 10 MB.
const MAX_DESCRIPTION_BYTES: u64 = 256 << 20;

/// Returns the local folder or file of a model. An id on the hub (`org/name` or `org/name/FILE.gguf`) is downloaded
/// first.
///
/// # Errors
/// Returns an error if neither a folder or file nor a model on the hub has this name, if the model may not be read
/// without a token, or if the hub is unreachable and the cache is incomplete.
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
    let Some(id) = model.to_str().and_then(|typed| Id::parse(typed, &[".gguf"])) else {
        bail!("{}: no such folder or file; {}", model.display(), expected());
    };
    let repo = Repo { kind: Kind::Model, id, revision: revision.unwrap_or(MAIN).to_owned() };
    model::find(&Hub::open(repo, quiet)?)
}

fn expected() -> &'static str {
    "expected the folder of a Hugging Face model (config.json, model.safetensors, tokenizer.json, or what older \
     models have instead), a .gguf file, or the id of a model on the hub, such as org/name"
}

/// A parsed id of a repository: `org/name`, `name`, or `org/name/FILE`.
#[derive(Clone, Debug, PartialEq)]
struct Id {
    typed: String,
    /// The repository: `org/name` or `name`.
    repo: String,
    /// One file of the repository, or `None` for the whole.
    file: Option<String>,
}

impl Id {
    /// Parses an id. A path of three parts or more is a file of a repository if it has one of these endings. A shorter
    /// path with such an ending is a missing local file and no id.
    fn parse(typed: &str, endings: &[&str]) -> Option<Self> {
        let is_name = |part: &str| {
            let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            known && !part.is_empty() && !part.starts_with('.') && !part.contains("..")
        };
        let parts: Vec<&str> = typed.split('/').collect();
        if !parts.iter().all(|part| is_name(part)) {
            return None;
        }
        let lowercase = typed.to_lowercase();
        let is_file = endings.iter().any(|ending| lowercase.ends_with(ending));
        let (repo, file) = match parts.len() {
            1 | 2 if !is_file => (typed, None),
            3.. if is_file => {
                let end = parts[0].len() + 1 + parts[1].len();
                (&typed[..end], Some(typed[end + 1..].to_owned()))
            }
            _ => return None,
        };
        Some(Self { typed: typed.to_owned(), repo: repo.to_owned(), file })
    }
}

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// Returns the name of the kind for messages.
    fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        }
    }

    /// Returns the name of the kind in the hub's API paths and in the cache's folder names.
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

/// A revision of a repository.
#[derive(Clone, Debug)]
struct Repo {
    kind: Kind,
    id: Id,
    revision: String,
}

impl Repo {
    /// Returns the id with its revision for messages.
    fn name(&self) -> String {
        if self.revision == MAIN { self.id.typed.clone() } else { format!("{} ({})", self.id.typed, self.revision) }
    }

    /// Returns the path of the repository's page below the endpoint.
    fn page(&self) -> String {
        match self.kind {
            Kind::Model => self.id.repo.clone(),
            Kind::Dataset => format!("datasets/{}", self.id.repo),
        }
    }
}

/// Description of a revision by the hub.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Info {
    /// Commit of the revision.
    #[serde(default)]
    sha: Option<String>,
    /// Files of the repository.
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// Header of its README.
    #[serde(default, rename = "cardData")]
    card: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The server, the cache, and the requested repository.
struct Hub {
    repo: Repo,
    client: Client,
    cache: RepoCache,
    settings: Settings,
    quiet: bool,
}

impl Hub {
    fn open(repo: Repo, quiet: bool) -> Result<Self> {
        let settings = Settings::of_environment()?;
        let client = Client::new(&settings)?;
        let cache = RepoCache::new(&settings.cache, repo.kind, &repo.id.repo);
        Ok(Self { repo, client, cache, settings, quiet })
    }

    /// Requests the description of the revision. The inner error says why the hub cannot answer now.
    fn info(&self) -> Result<Result<Info, String>> {
        let (kind, repo) = (self.repo.kind.plural(), &self.repo.id.repo);
        let path = format!("api/{kind}/{repo}/revision/{}", client::encoded(&self.repo.revision, false));
        let mut retries = Retries::new(self.quiet);
        let text = loop {
            let answer = self.client.ask(Method::GET, &path, None, true);
            match answer.and_then(|answer| answer.text(MAX_DESCRIPTION_BYTES)) {
                Ok(text) => break text,
                Err(Trouble::Refused(refusal)) => return Err(self.refused(&refusal, None)),
                Err(Trouble::Bad(problem)) => bail!("{}: {} {problem}", self.repo.name(), self.client.endpoint()),
                Err(trouble @ Trouble::Unreachable(_)) => return Ok(Err(trouble.to_string())),
                Err(trouble) => {
                    if let Err(trouble) = retries.wait(trouble) {
                        return Ok(Err(trouble.to_string()));
                    }
                }
            }
        };
        match serde_json::from_str(&text) {
            Ok(info) => Ok(Ok(info)),
            Err(error) => {
                let (name, endpoint, noun) = (self.repo.name(), self.client.endpoint(), self.repo.kind.noun());
                bail!("{name}: {endpoint} did not describe the {noun}: {error}")
            }
        }
    }

    /// Returns the commit to take files from.
    fn commit(&self, info: &Info, file: &str) -> Result<String> {
        if let Some(sha) = &info.sha {
            return Ok(sha.clone());
        }
        // A server that does not send the commit of a revision may send it with a file.
        let described = self.describe(&self.repo.revision, file)?;
        described.commit.ok_or_else(|| {
            let endpoint = self.client.endpoint();
            anyhow!("{}: {endpoint} does not say which commit it has (X-Repo-Commit is missing)", self.repo.name())
        })
    }

    /// Records the commit of the revision, so that its files are found without the hub.
    fn keep_commit(&self, commit: &str) {
        // A read-only cache still works for reading.
        if let Err(problem) = self.cache.keep_commit(&self.repo.revision, commit) {
            ui::note(self.quiet, format!("{}: the revision could not be kept: {problem:#}", self.repo.name()));
        }
    }

    /// Returns the error for an answer that refuses the repository or one of its files.
    fn refused(&self, refusal: &Refusal, file: Option<&str>) -> anyhow::Error {
        let (name, endpoint, noun) = (self.repo.name(), self.client.endpoint(), self.repo.kind.noun());
        let typed = &self.repo.id.typed;
        let reason = if refusal.message.is_empty() { String::new() } else { format!(": {}", refusal.message) };
        match (refusal.status, refusal.code.as_str(), file) {
            (_, "RevisionNotFound", _) => anyhow!("{typed}: the {noun} has no revision {}", self.repo.revision),
            (_, "GatedRepo", _) => self.gated(),
            (_, "EntryNotFound", Some(file)) | (404, "", Some(file)) => anyhow!("{name}: the {noun} has no {file}"),
            (401, ..) if refusal.message.starts_with("Invalid credentials") => {
                anyhow!("{name}: {endpoint} does not know the token (HF_TOKEN, or the file token in HF_HOME){reason}")
            }
            (403, ..) if !refusal.message.is_empty() => anyhow!("{name}: {endpoint} does not give it{reason}"),
            (401 | 403, _, Some(_)) => self.gated(),
            (401 | 403 | 404, ..) => anyhow!(
                "{name}: no such folder or file, and {endpoint} has no such {noun}, or does not show it {}",
                match self.client.has_token() {
                    true => "to the owner of this token",
                    false => "without a token; HF_TOKEN takes one",
                }
            ),
            (status, _, Some(file)) => anyhow!("{name}: {endpoint} answers {file} with status {status}{reason}"),
            (status, _, None) => anyhow!("{name}: {endpoint} answers with status {status}{reason}"),
        }
    }

    fn gated(&self) -> anyhow::Error {
        let page = format!("{}/{}", self.client.endpoint(), self.repo.page());
        let problem = match self.client.has_token() {
            true => "this token may not read it",
            false => "it needs a token; HF_TOKEN takes one",
        };
        anyhow!("{}: {problem}. Its terms have to be accepted first, on {page}", self.repo.name())
    }

    /// Returns the error for a repository that is not in the cache while the hub is unreachable.
    fn not_cached(&self, why: &str) -> anyhow::Error {
        let (name, noun, folder) = (self.repo.name(), self.repo.kind.noun(), self.settings.cache.display());
        anyhow!(
            "{name}: no such folder or file, and the {noun} is not in {folder} either, or not all of it; {why}. Run \
             this once with a connection, or give the folder of a copy"
        )
    }
}

/// Returns names for a message, no more than fit on a line.
fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MAX_NAMES: usize = 8;
    let all: Vec<&str> = names.into_iter().collect();
    match all.len() {
        0 => "nothing like it".into(),
        n if n > MAX_NAMES => format!("{} and {} more", all[..MAX_NAMES].join(", "), n - MAX_NAMES),
        _ => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_recognized() {
        let parse = |typed: &str| Id::parse(typed, &[".gguf"]).map(|id| (id.repo, id.file));
        let id = |repo: &str, file: Option<&str>| Some((repo.to_owned(), file.map(ToOwned::to_owned)));
        assert_eq!(parse("org/name"), id("org/name", None));
        assert_eq!(parse("gpt2"), id("gpt2", None));
        assert_eq!(parse("org/name/model-Q4_0.gguf"), id("org/name", Some("model-Q4_0.gguf")));
        assert_eq!(parse("org/name/sub/model.gguf"), id("org/name", Some("sub/model.gguf")));
        for no in
            ["", "/tmp/model", "./model", "../model", "a/b/c", "model.gguf", "org/name.gguf", "a b/c", "org/", "a/..b"]
        {
            assert_eq!(parse(no), None, "{no}");
        }
    }
}
