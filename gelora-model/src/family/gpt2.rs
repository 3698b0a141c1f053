//! GPT-2: norms before each half, queries, keys and values by one map (Radford et al. 2019). Its weights are stored as
//! (C_in, C_out).

use serde_json::json;

use super::{Parts, Tables, split_heads};
use crate::attention::Attention;
use crate::block::{Block, Half};
use crate::config::{Json, LayerKind};
use crate::mlp::Mlp;
use crate::weights::Weights;
use crate::{Config, Result};

pub fn config(json: &Json) -> Result<Config> {
    json.only("scale_attn_weights", &json!(true))?;
    json.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
    // Of upcasting, and of a head that is not one of ours.
    for key in [
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ] {
        json.get(key);
    }
    let (hidden, heads, layers) = (json.size("n_embd")?, json.size("n_head")?, json.size("n_layer")?);
    Ok(Config {
        family: String::new(),
        causal: true,
        vocabulary: json.size("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_size: split_heads(json, ["n_embd", "n_head"])?,
        intermediate: json.size_or("n_inner", 4 * hidden)?,
        max_positions: json.size("n_positions")?,
        token_types: 0,
        norm_eps: json.number("layer_norm_epsilon", 1e-5)?,
        activation: json.activation("activation_function")?,
        hidden_dropout: json.number("resid_pdrop", 0.1)?,
        attention_dropout: json.number("attn_pdrop", 0.1)?,
        head_dropout: 0.0,
        labels: json.labels(),
        eos: json.eos(),
        ropes: Vec::new(),
        layer_kinds: vec![LayerKind::default(); layers],
        tied: json.flag("tie_word_embeddings", true)?,
    })
    .and_then(|config| {
        let embeddings = json.number("embd_pdrop", 0.1)?;
        if embeddings == config.hidden_dropout {
            return Ok(config);
        }
        Err(json.error(format!(
            "embd_pdrop = {embeddings} is not supported; expected resid_pdrop = {}",
            config.hidden_dropout
        )))
    })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    w.prefix("transformer.");
    let positions = w.tensor("wpe.weight", &[c.max_positions, c.hidden])?;
    let words = w.tensor("wte.weight", &[c.vocabulary, c.hidden])?;
    let tables = Tables { words, positions: Some((positions, 0)), types: None, scale: 1.0 };
    let mut blocks = Vec::with_capacity(c.layers);
    for l in 0..c.layers {
        let at = |module: &str| format!("h.{l}.{module}");
        let attention = Attention {
            layer: l,
            projections: vec![w.transposed_linear(&at("attn.c_attn"), c.hidden, 3 * c.hidden)?],
            output: w.transposed_linear(&at("attn.c_proj"), c.hidden, c.hidden)?,
            heads: c.heads,
            kv_heads: c.heads,
            head_size: c.head_size,
            scale: 1.0 / (c.head_size as f32).sqrt(),
            causal: true,
            window: None,
            norms: None,
            rope: None,
            dropout: c.attention_dropout,
        };
        let mlp = Mlp {
            gate: None,
            up: w.transposed_linear(&at("mlp.c_fc"), c.hidden, c.intermediate)?,
            down: w.transposed_linear(&at("mlp.c_proj"), c.intermediate, c.hidden)?,
            activation: c.activation,
        };
        let norm = |w: &mut Weights, name: &str| w.layer_norm(&at(name), c.hidden, c.norm_eps).map(Some);
        let (of_attention, of_mlp, dropout) = (norm(w, "ln_1")?, norm(w, "ln_2")?, c.hidden_dropout);
        blocks.push(Block {
            index: l,
            attention: Half { before: of_attention, inner: attention, after: None, last: None, dropout },
            mlp: Half { before: of_mlp, inner: mlp, after: None, last: None, dropout },
        });
    }
    let last_norm = Some(w.layer_norm("ln_f", c.hidden, c.norm_eps)?);
    Ok(Parts { prefix: "transformer.", tables, norm: None, blocks, last_norm, bias: None, pooler: None })
}
