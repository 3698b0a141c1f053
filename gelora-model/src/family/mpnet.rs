//! MPNet: BERT's blocks with a bias by distance, shared by all layers (Song et al., arXiv 2004.09297).

use super::bert::{self, Names};
use super::{Parts, Tables};
use crate::config::Json;
use crate::position::RelativeBias;
use crate::weights::Weights;
use crate::{Config, Result};

/// Number of rows of the position table before the first position. It does not depend on pad_token_id.
const PADDING: usize = 2;
/// Number of buckets of distances, and the distance from which on all distances share a bucket. transformers fixes
/// both.
const BUCKETS: usize = 32;
const FURTHEST: usize = 128;

pub fn config(json: &Json) -> Result<Config> {
    json.only("relative_attention_num_buckets", &BUCKETS.into())?;
    let config = bert::encoder(json)?;
    let max_positions = config.max_positions.checked_sub(PADDING).filter(|n| *n > 0);
    let max_positions = max_positions.ok_or_else(|| json.error("max_position_embeddings must be at least 3"))?;
    Ok(Config { max_positions, ..config })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let positions = w.tensor("embeddings.position_embeddings.weight", &[c.max_positions + PADDING, c.hidden])?;
    let tables = Tables {
        words: w.tensor("embeddings.word_embeddings.weight", &[c.vocabulary, c.hidden])?,
        positions: Some((positions, PADDING as u32)),
        types: None,
        scale: 1.0,
    };
    let norm = Some(w.layer_norm("embeddings.LayerNorm", c.hidden, c.norm_eps)?);
    let names = Names {
        query: "attention.attn.q",
        key: "attention.attn.k",
        value: "attention.attn.v",
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
    };
    let blocks = (0..c.layers).map(|l| names.block(c, w, l, &format!("encoder.layer.{l}"))).collect::<Result<_>>()?;
    let bias = RelativeBias::new(w.tensor("encoder.relative_attention_bias.weight", &[BUCKETS, c.heads])?, FURTHEST);
    Ok(Parts { norm, bias: Some(bias), ..Parts::new(tables, blocks) })
}
