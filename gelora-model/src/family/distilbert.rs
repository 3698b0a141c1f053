//! DistilBERT: BERT's blocks under different names, without token types (Sanh et al., arXiv 1910.01108).

use serde_json::json;

use super::bert::Names;
use super::{Parts, Tables, split_heads};
use crate::config::Json;
use crate::weights::Weights;
use crate::{Config, Result};

/// Epsilon of the family's layer norms. Its config has no such key.
const EPS: f32 = 1e-12;

pub fn config(json: &Json) -> Result<Config> {
    json.only("sinusoidal_pos_embds", &json!(false))?;
    json.get("qa_dropout");
    let sizes = ["dim", "n_layers", "n_heads"];
    split_heads(json, [sizes[0], sizes[2]])?;
    Ok(Config {
        intermediate: json.size("hidden_dim")?,
        max_positions: json.size("max_position_embeddings")?,
        norm_eps: EPS,
        activation: json.activation("activation")?,
        hidden_dropout: json.number("dropout", 0.1)?,
        attention_dropout: json.number("attention_dropout", 0.1)?,
        head_dropout: json.number("seq_classif_dropout", 0.2)?,
        ..Config::of_sizes(json, sizes)?
    })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let positions = w.tensor("embeddings.position_embeddings.weight", &[c.max_positions, c.hidden])?;
    let tables = Tables {
        words: w.tensor("embeddings.word_embeddings.weight", &[c.vocabulary, c.hidden])?,
        positions: Some((positions, 0)),
        types: None,
        scale: 1.0,
    };
    let norm = Some(w.layer_norm("embeddings.LayerNorm", c.hidden, c.norm_eps)?);
    let names = Names {
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        mlp_norm: "output_layer_norm",
    };
    let mut blocks = Vec::with_capacity(c.layers);
    for l in 0..c.layers {
        let mut block = names.block(c, w, l, &format!("transformer.layer.{l}"))?;
        block.attention.dropout = 0.0; // DistilBERT has no dropout after attention
        blocks.push(block);
    }
    Ok(Parts { norm, ..Parts::new(tables, blocks) })
}
