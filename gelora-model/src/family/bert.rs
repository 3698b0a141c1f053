//! BERT: absolute positions, and a norm after each residual connection (Devlin et al., arXiv 1810.04805). RoBERTa and
//! XLM-R differ only in the first position (Liu et al., arXiv 1907.11692; Conneau et al., arXiv 1911.02116).

use serde_json::json;

use super::{Parts, Tables, split_heads};
use crate::attention::Attention;
use crate::block::{Block, Residual};
use crate::config::Json;
use crate::mlp::Mlp;
use crate::weights::Weights;
use crate::{Config, Result};

pub fn bert(json: &Json) -> Result<Config> {
    json.only("position_embedding_type", &json!("absolute"))?;
    json.only("is_decoder", &json!(false))?;
    let config = encoder(json)?;
    Ok(Config {
        token_types: json.size("type_vocab_size")?,
        head_dropout: json.number("classifier_dropout", config.hidden_dropout.into())?,
        ..config
    })
}

/// Reads the options that encoders store under BERT's keys.
pub fn encoder(json: &Json) -> Result<Config> {
    let sizes = ["hidden_size", "num_hidden_layers", "num_attention_heads"];
    let hidden_dropout = json.number("hidden_dropout_prob", 0.1)?;
    split_heads(json, [sizes[0], sizes[2]])?;
    Ok(Config {
        intermediate: json.size("intermediate_size")?,
        max_positions: json.size("max_position_embeddings")?,
        norm_eps: json.number("layer_norm_eps", 1e-12)?,
        activation: json.activation("hidden_act")?,
        hidden_dropout,
        attention_dropout: json.number("attention_probs_dropout_prob", 0.1)?,
        head_dropout: hidden_dropout,
        ..Config::of_sizes(json, sizes)?
    })
}

/// RoBERTa's padding token, if config.json does not name another.
const PADDING: u32 = 1;

pub fn roberta(json: &Json) -> Result<Config> {
    let pad = json.pad(Some(PADDING))?;
    let pad = pad.ok_or_else(|| json.error("pad_token_id must be a token's id: positions are counted from it"))?;
    // The rows up to that of the padding token come before the first position.
    let (config, before) = (bert(json)?, pad as usize + 1);
    let rows = config.max_positions;
    let max_positions = rows.checked_sub(before).filter(|n| *n > 0).ok_or_else(|| {
        json.error(format!("max_position_embeddings = {rows} must be above pad_token_id + 1 = {before}"))
    })?;
    Ok(Config { max_positions, first_position: before, pad: Some(pad), ..config })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let first = c.first_position;
    let positions = w.tensor("embeddings.position_embeddings.weight", &[c.max_positions + first, c.hidden])?;
    let tables = Tables {
        words: w.tensor("embeddings.word_embeddings.weight", &[c.vocabulary, c.hidden])?,
        positions: Some((positions, first as u32)),
        types: Some(w.tensor("embeddings.token_type_embeddings.weight", &[c.token_types, c.hidden])?),
        scale: 1.0,
    };
    let norm = Some(w.layer_norm("embeddings.LayerNorm", c.hidden, c.norm_eps)?);
    let names = Names {
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
    };
    let blocks = (0..c.layers).map(|l| names.block(c, w, l, &format!("encoder.layer.{l}"))).collect::<Result<_>>()?;
    let pooler = if w.has("pooler.dense.weight") { Some(w.linear("pooler.dense", c.hidden, c.hidden)?) } else { None };
    Ok(Parts { norm, pooler, ..Parts::new(tables, blocks) })
}

/// Names of a block's modules, for families that use BERT's block.
pub struct Names {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub mlp_norm: &'static str,
}

impl Names {
    /// Takes a block of BERT: bidirectional attention, and a norm after each residual connection.
    pub fn block(&self, c: &Config, w: &mut Weights, layer: usize, prefix: &str) -> Result<Block> {
        let name = |module: &str| format!("{prefix}.{module}");
        let projections = vec![
            w.linear(&name(self.query), c.hidden, c.hidden)?,
            w.linear(&name(self.key), c.hidden, c.hidden)?,
            w.linear(&name(self.value), c.hidden, c.hidden)?,
        ];
        let attention = Attention::new(c, layer, projections, w.linear(&name(self.output), c.hidden, c.hidden)?);
        let attention_norm = w.layer_norm(&name(self.attention_norm), c.hidden, c.norm_eps)?;
        let mlp = Mlp {
            gate: None,
            up: w.linear(&name(self.up), c.hidden, c.intermediate)?,
            down: w.linear(&name(self.down), c.intermediate, c.hidden)?,
            activation: c.activation,
        };
        let mlp_norm = w.layer_norm(&name(self.mlp_norm), c.hidden, c.norm_eps)?;
        let dropout = c.hidden_dropout;
        let attention = Residual { before: None, inner: attention, after: None, last: Some(attention_norm), dropout };
        let mlp = Residual { before: None, inner: mlp, after: None, last: Some(mlp_norm), dropout };
        Ok(Block { index: layer, attention, mlp, convolution: None })
    }
}
