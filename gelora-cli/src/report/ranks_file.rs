//! ranks.json: a measurement with the data that it was made on.

use std::ops::Deref;

use anyhow::{Context, Result};
use gelora_lora::ranks::{Server, max_lora_rank};
use gelora_model::measure::Ranks;
use serde::{Deserialize, Serialize};

use crate::understood::Understood;

/// The name of the file.
pub const RANKS_NAME: &str = "ranks.json";

/// The file.
#[derive(Debug, Serialize, Deserialize)]
pub struct RanksFile {
    /// The data that was measured on.
    pub data: String,
    /// What was understood of that data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dataset: Option<Understood>,
    /// The measurement.
    #[serde(flatten)]
    pub ranks: Ranks,
    /// What a server needs to be told, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
}

impl Deref for RanksFile {
    type Target = Ranks;

    fn deref(&self) -> &Ranks {
        &self.ranks
    }
}

/// What to start a server with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Serve {
    pub server: String,
    pub max_lora_rank: usize,
}

impl Serve {
    /// What this server needs to be told for these ranks.
    ///
    /// # Errors
    /// If it cannot serve a rank.
    pub fn new(server: Server, ranks: &Ranks) -> Result<Self> {
        let max_lora_rank = max_lora_rank(server, ranks.layers.iter().map(|layer| layer.rank)).context("--serve")?;
        Ok(Self { server: server.to_string(), max_lora_rank })
    }
}
