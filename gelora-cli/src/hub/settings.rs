//! Settings of the hub from environment variables, with the names of Python's huggingface_hub.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Settings of the hub and its cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server, without a trailing slash (HF_ENDPOINT).
    pub endpoint: String,
    /// Token for private and gated repositories: HF_TOKEN, or the file named by HF_TOKEN_PATH, or `token` in HF_HOME.
    pub token: Option<String>,
    /// Folder of all repositories: HF_HUB_CACHE, or `hub` in HF_HOME.
    pub cache: PathBuf,
    /// HF_HUB_OFFLINE: no requests are sent.
    pub offline: bool,
    /// HF_HUB_DOWNLOAD_TIMEOUT: time without data after which a download counts as broken.
    pub read_timeout: Duration,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// Returns an error if there is no home folder and no variable names the cache, or if a number is invalid.
    pub fn of_environment() -> Result<Self> {
        let home = match variable("HF_HOME").map(PathBuf::from) {
            Some(home) => home,
            None => {
                let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
                let caches = caches.or_else(|| dirs::home_dir().map(|home| home.join(".cache")));
                caches
                    .context("there is no home folder; HF_HOME names a folder for the hub's files")?
                    .join("huggingface")
            }
        };
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            bail!("the token for the hub (HF_TOKEN, or the file token in HF_HOME) has characters that no token has");
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: offline.is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())),
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 30)?,
        })
    }
}

/// Returns an environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn seconds(name: &str, default: u64) -> Result<Duration> {
    let Some(text) = variable(name) else { return Ok(Duration::from_secs(default)) };
    match text.parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => bail!("{name}={text}: expected a whole number of seconds above 0"),
    }
}
