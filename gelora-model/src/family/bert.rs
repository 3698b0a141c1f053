//! BERT: absolute positions, norms after each half of a block (Devlin et al., arXiv 1810.04805).

use serde_json::json;

use super::{Parts, Tables};
use crate::block::{Attention, Block, Mlp};
use crate::config::Json;
use crate::weights::Weights;
use crate::{Config, Result};

pub fn config(json: &Json) -> Result<Config> {
    json.only("position_embedding_type", &json!("absolute"))?;
    json.only("is_decoder", &json!(false))?;
    json.only("add_cross_attention", &json!(false))?;
    let hidden_dropout = json.number("hidden_dropout_prob", 0.1)?;
    let config = Config {
        family: "bert".into(),
        vocabulary: json.size("vocab_size")?,
        hidden: json.size("hidden_size")?,
        layers: json.size("num_hidden_layers")?,
        heads: json.size("num_attention_heads")?,
        intermediate: json.size("intermediate_size")?,
        max_positions: json.size("max_position_embeddings")?,
        token_types: json.size("type_vocab_size")?,
        norm_eps: json.number("layer_norm_eps", 1e-12)?,
        activation: json.activation("hidden_act")?,
        hidden_dropout,
        attention_dropout: json.number("attention_probs_dropout_prob", 0.1)?,
        head_dropout: json.number("classifier_dropout", hidden_dropout.into())?,
        labels: json.labels(),
    };
    if !config.hidden.is_multiple_of(config.heads) {
        let (heads, hidden) = (config.heads, config.hidden);
        return Err(json.error(format!("num_attention_heads = {heads} must divide hidden_size = {hidden}")));
    }
    Ok(config)
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    w.prefix("bert.");
    let tables = Tables {
        words: w.tensor("embeddings.word_embeddings.weight", &[c.vocabulary, c.hidden])?,
        positions: w.tensor("embeddings.position_embeddings.weight", &[c.max_positions, c.hidden])?,
        types: w.tensor("embeddings.token_type_embeddings.weight", &[c.token_types, c.hidden])?,
    };
    let norm = w.layer_norm("embeddings.LayerNorm", c.hidden, c.norm_eps)?;
    let mut blocks = Vec::with_capacity(c.layers);
    for l in 0..c.layers {
        let at = |module: &str| format!("encoder.layer.{l}.{module}");
        blocks.push(Block {
            index: l,
            attention: Attention {
                query: w.linear(&at("attention.self.query"), c.hidden, c.hidden)?,
                key: w.linear(&at("attention.self.key"), c.hidden, c.hidden)?,
                value: w.linear(&at("attention.self.value"), c.hidden, c.hidden)?,
                output: w.linear(&at("attention.output.dense"), c.hidden, c.hidden)?,
                heads: c.heads,
                dropout: c.attention_dropout,
            },
            attention_norm: w.layer_norm(&at("attention.output.LayerNorm"), c.hidden, c.norm_eps)?,
            mlp: Mlp {
                up: w.linear(&at("intermediate.dense"), c.hidden, c.intermediate)?,
                down: w.linear(&at("output.dense"), c.intermediate, c.hidden)?,
                activation: c.activation,
            },
            mlp_norm: w.layer_norm(&at("output.LayerNorm"), c.hidden, c.norm_eps)?,
            dropout: c.hidden_dropout,
        });
    }
    let pooler = if w.has("pooler.dense.weight") { Some(w.linear("pooler.dense", c.hidden, c.hidden)?) } else { None };
    Ok(Parts { prefix: "bert.", tables, norm, blocks, pooler })
}
