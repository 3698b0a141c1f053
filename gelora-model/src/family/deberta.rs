//! DeBERTa-v2 and v3: BERT's blocks with disentangled attention (He et al., arXiv 2006.03654 and 2111.09543). The
//! largest models have a convolution parallel to the first block.

use gelora_kernels::ops::activation::Activation;
use gelora_kernels::ops::linear::Weight;
use gelora_kernels::{DType, Tensor};

use super::bert::{self, Names};
use super::{Parts, Tables};

use crate::config::Json;
use crate::config::deberta::{DebertaOptions, Distances, Term};
use crate::convolution::Convolution;
use crate::disentangled::{Disentangled, Projection};
use crate::position::{Buckets, RelativeEmbedding};
use crate::weights::Weights;
use crate::{Config, Result};

pub fn config(json: &Json) -> Result<Config> {
    let config = bert::encoder(json)?;
    json.get("legacy"); // an option of the language-model head
    json.only("embedding_size", &config.hidden.into())?;
    json.only("attention_head_size", &config.head_size.into())?;
    json.only("pooler_hidden_size", &config.hidden.into())?;
    json.only("pooler_hidden_act", &"gelu".into())?;
    json.only("conv_groups", &1.into())?;
    if json.number("pooler_dropout", 0.0)? != 0.0 {
        return Err(json.error("a pooler_dropout other than 0 is not supported; cls_dropout is"));
    }
    let terms = terms(json)?;
    let relative = json.flag("relative_attention", false)?;
    let options = DebertaOptions {
        positions: json.flag("position_biased_input", true)?,
        distances: if relative { Some(distances(json, config.max_positions)?) } else { None },
        terms,
        convolution: convolution(json)?,
    };
    let types = json.get("type_vocab_size").is_some_and(|types| types.as_u64() != Some(0));
    Ok(Config {
        token_types: if types { json.size("type_vocab_size")? } else { 0 },
        norm_eps: json.number("layer_norm_eps", 1e-7)?,
        head_dropout: json.number("cls_dropout", config.hidden_dropout.into())?,
        deberta: Some(options),
        ..config
    })
}

/// Reads `pos_att_type`, given as a list or as "p2c|c2p".
fn terms(json: &Json) -> Result<Vec<Term>> {
    let wrong = || {
        json.error(format!("pos_att_type = {} is not supported; expected c2p, p2c or both", json.map["pos_att_type"]))
    };
    let names: Vec<&str> = match json.get("pos_att_type") {
        None => Vec::new(),
        Some(serde_json::Value::String(joined)) => joined.split('|').map(str::trim).filter(|n| !n.is_empty()).collect(),
        Some(list) => list.as_array().ok_or_else(wrong)?.iter().filter_map(|name| name.as_str()).collect(),
    };
    let term = |name: &str| match name {
        "c2p" => Ok(Term::ContentToPosition),
        "p2c" => Ok(Term::PositionToContent),
        _ => Err(wrong()),
    };
    names.into_iter().map(term).collect()
}

fn distances(json: &Json, max_positions: usize) -> Result<Distances> {
    // Absent, null, 0 and -1 all mean that the option is not set.
    let positive = |key: &str| json.get(key).and_then(|value| value.as_u64()).filter(|n| *n > 0).map(|n| n as usize);
    let furthest = positive("max_relative_positions").unwrap_or(max_positions);
    let buckets = positive("position_buckets");
    if let Some(count) = buckets.filter(|count| *count < 4 || *count / 2 + 1 >= furthest) {
        return Err(json.error(format!("position_buckets = {count} does not fit distances up to {furthest}")));
    }
    let norm = json.text("norm_rel_ebd").unwrap_or("none").to_lowercase();
    let normed = match norm.as_str() {
        "layer_norm" => true,
        "none" => false,
        _ => return Err(json.error(format!("norm_rel_ebd = {norm:?} is not supported; expected layer_norm or none"))),
    };
    Ok(Distances {
        span: buckets.unwrap_or(furthest),
        buckets: buckets.map(|count| Buckets { count, furthest }),
        normed,
        shared: json.flag("share_att_key", false)?,
    })
}

fn convolution(json: &Json) -> Result<Option<(usize, Activation)>> {
    let taps = json.get("conv_kernel_size").and_then(|value| value.as_u64()).unwrap_or(0) as usize;
    let activation = if json.text("conv_act").is_some() { json.activation("conv_act")? } else { Activation::Tanh };
    if taps > 0 && taps.is_multiple_of(2) {
        return Err(json.error(format!("conv_kernel_size = {taps} is not supported; expected an odd number, or 0")));
    }
    Ok((taps > 0).then_some((taps, activation)))
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let options = c.deberta.as_ref().expect("the config is of this family");
    let table =
        |w: &mut Weights, name: &str, rows: usize| w.tensor(&format!("embeddings.{name}.weight"), &[rows, c.hidden]);
    let tables = Tables {
        words: table(w, "word_embeddings", c.vocabulary)?,
        positions: match options.positions {
            true => Some((table(w, "position_embeddings", c.max_positions)?, 0)),
            false => None,
        },
        types: if c.token_types > 0 { Some(table(w, "token_type_embeddings", c.token_types)?) } else { None },
        scale: 1.0,
    };
    let norm = Some(w.layer_norm("embeddings.LayerNorm", c.hidden, c.norm_eps)?);
    let names = Names {
        query: "attention.self.query_proj",
        key: "attention.self.key_proj",
        value: "attention.self.value_proj",
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
    };
    let mut blocks = Vec::with_capacity(c.layers);
    for l in 0..c.layers {
        let prefix = format!("encoder.layer.{l}");
        let mut block = names.block(c, w, l, &prefix)?;
        let attention = &mut block.attention.inner;
        // The scores are a sum of 1 + terms products; scale by the square root of their number.
        attention.scale /= (1.0 + options.terms.len() as f32).sqrt();
        if let Some(distances) = &options.distances {
            let mut term = |term: Term, name: &str| -> Result<Option<Projection>> {
                Ok(match (options.terms.contains(&term), distances.shared) {
                    (false, _) => None,
                    (true, true) => Some(Projection::Shared),
                    (true, false) => Some(Projection::Own(Box::new(w.linear(
                        &format!("{prefix}.attention.self.{name}"),
                        c.hidden,
                        c.hidden,
                    )?))),
                })
            };
            attention.disentangled = Some(Disentangled {
                keys: term(Term::ContentToPosition, "pos_key_proj")?,
                queries: term(Term::PositionToContent, "pos_query_proj")?,
                dropout: c.hidden_dropout,
            });
        }
        blocks.push(block);
    }
    let distances = match &options.distances {
        Some(distances) => Some(relative_embedding(distances, c, w)?),
        None => None,
    };
    // Only the first block has a convolution.
    if let (Some((taps, activation)), Some(first)) = (options.convolution, blocks.first_mut()) {
        let weight = w.tensor("encoder.conv.conv.weight", &[c.hidden, c.hidden, taps])?;
        first.convolution = Some(Convolution {
            taps,
            weight: Weight::new(tap_by_tap(&weight, taps)?, DType::F32)?,
            bias: w.tensor("encoder.conv.conv.bias", &[c.hidden])?.to_dtype(DType::F32)?,
            activation,
            norm: w.layer_norm("encoder.conv.LayerNorm", c.hidden, c.norm_eps)?,
            dropout: c.hidden_dropout,
        });
    }
    Ok(Parts { norm, distances, ..Parts::new(tables, blocks) })
}

/// Takes the table of distances and applies its norm. Both are frozen.
fn relative_embedding(distances: &Distances, c: &Config, w: &mut Weights) -> Result<RelativeEmbedding> {
    let rows = 2 * distances.span;
    let mut table = w.tensor("encoder.rel_embeddings.weight", &[rows, c.hidden])?.to_dtype(DType::F32)?;
    if distances.normed {
        table = w.layer_norm("encoder.LayerNorm", c.hidden, c.norm_eps)?.forward(&table, None)?.0;
    }
    Ok(RelativeEmbedding { table, buckets: distances.buckets })
}

/// Rearranges (C_out, C_in, taps) to (C_out, taps C_in).
fn tap_by_tap(weight: &Tensor, taps: usize) -> Result<Tensor> {
    let (values, c) = (weight.to_f32()?, weight.shape()[1]);
    let value = |i: usize| values[(i / (taps * c) * c + i % c) * taps + i / c % taps];
    Ok(Tensor::from_vec((0..values.len()).map(value).collect(), [weight.shape()[0], taps * c])?)
}
