//! One file a family: config.json and weight names in, [`Config`] and modules out.

mod bert;

use crate::block::Block;
use crate::config::Json;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::weights::Weights;
use crate::{Config, Result};

/// The supported values of `model_type`.
const FAMILIES: [&str; 1] = ["bert"];

/// What a family makes of a folder's weights.
pub struct Parts {
    /// Prefix of the encoder's modules inside a task model, such as `bert.`.
    pub prefix: &'static str,
    pub tables: Tables,
    pub norm: LayerNorm,
    pub blocks: Vec<Block>,
    /// The dense layer on the first token before a task head, if the checkpoint has one.
    pub pooler: Option<Linear>,
}

/// Embedding tables.
pub struct Tables {
    pub words: gelora_kernels::Tensor,
    pub positions: gelora_kernels::Tensor,
    pub types: gelora_kernels::Tensor,
}

pub fn config(json: &Json) -> Result<Config> {
    match json.text("model_type") {
        Some("bert") => bert::config(json),
        Some(other) => {
            Err(json.error(format!("model_type {other:?} is not supported; expected one of {}", FAMILIES.join(", "))))
        }
        None => Err(json.error(format!("the key model_type is missing; expected one of {}", FAMILIES.join(", ")))),
    }
}

pub fn load(config: &Config, weights: &mut Weights) -> Result<Parts> {
    match config.family.as_str() {
        "bert" => bert::load(config, weights),
        other => Err(crate::Error::Value(format!("model family {other:?} has no loader"))),
    }
}
