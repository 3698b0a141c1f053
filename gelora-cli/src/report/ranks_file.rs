//! Contents of ranks.json: a measurement, and the data that it was made on.

use std::ops::Deref;

use anyhow::{Context, Result};
use gelora_lora::ranks::{Server, max_lora_rank};
use gelora_model::measure::Ranks;
use serde::{Deserialize, Serialize};

use crate::understood::Understood;

/// File name of [`RanksFile`].
pub const RANKS_NAME: &str = "ranks.json";

/// Contents of ranks.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct RanksFile {
    /// File or folder of the data.
    pub data: String,
    /// Account of that data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dataset: Option<Understood>,
    /// The measurement.
    #[serde(flatten)]
    pub ranks: Ranks,
    /// Settings that the server named by --serve needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
}

impl Deref for RanksFile {
    type Target = Ranks;

    fn deref(&self) -> &Ranks {
        &self.ranks
    }
}

/// Settings for the start of a server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Serve {
    pub server: String,
    pub max_lora_rank: usize,
}

impl Serve {
    /// Returns the settings that `server` needs for these ranks.
    ///
    /// # Errors
    /// Returns an error if the server cannot serve a rank.
    pub fn new(server: Server, ranks: &Ranks) -> Result<Self> {
        // The rank of a layer is a mean if its modules have ranks of their own.
        let of_layers = ranks.layers.iter().map(|layer| layer.rank);
        let of_modules = ranks.modules.values().map(|module| module.rank.rank);
        let max_lora_rank = max_lora_rank(server, of_layers.chain(of_modules)).context("--serve")?;
        Ok(Self { server: server.to_string(), max_lora_rank })
    }
}
