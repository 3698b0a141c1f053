//! GPT-2: a norm before attention and before the MLP, and one projection for queries, keys and values (Radford et al.
//! 2019). Its weights are stored as (C_in, C_out).

use serde_json::json;

use super::{Parts, Tables, split_heads};
use crate::attention::Attention;
use crate::block::{Block, Residual};
use crate::config::Json;
use crate::mlp::Mlp;
use crate::weights::Weights;
use crate::{Config, Result};

pub fn config(json: &Json) -> Result<Config> {
    json.only("scale_attn_weights", &json!(true))?;
    json.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
    // Options of mixed precision, and of a head that is not supported here.
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
    let sizes = ["n_embd", "n_layer", "n_head"];
    split_heads(json, [sizes[0], sizes[2]])?;
    let (config, hidden_dropout) = (Config::of_sizes(json, sizes)?, json.number("resid_pdrop", 0.1)?);
    let embeddings = json.number("embd_pdrop", 0.1)?;
    if embeddings != hidden_dropout {
        return Err(
            json.error(format!("embd_pdrop = {embeddings} is not supported; expected resid_pdrop = {hidden_dropout}"))
        );
    }
    Ok(Config {
        causal: true,
        intermediate: json.size_or("n_inner", config.intermediate)?,
        max_positions: json.size("n_positions")?,
        norm_eps: json.number("layer_norm_epsilon", 1e-5)?,
        activation: json.activation("activation_function")?,
        hidden_dropout,
        attention_dropout: json.number("attn_pdrop", 0.1)?,
        tied: json.flag("tie_word_embeddings", true)?,
        ..config
    })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let positions = w.tensor("wpe.weight", &[c.max_positions, c.hidden])?;
    let words = w.tensor("wte.weight", &[c.vocabulary, c.hidden])?;
    let tables = Tables { words, positions: Some((positions, 0)), types: None, scale: 1.0 };
    let mut blocks = Vec::with_capacity(c.layers);
    for l in 0..c.layers {
        let name = |module: &str| format!("h.{l}.{module}");
        let projections = vec![w.transposed_linear(&name("attn.c_attn"), c.hidden, 3 * c.hidden)?];
        let output = w.transposed_linear(&name("attn.c_proj"), c.hidden, c.hidden)?;
        let attention = Attention::new(c, l, projections, output);
        let mlp = Mlp {
            gate: None,
            up: w.transposed_linear(&name("mlp.c_fc"), c.hidden, c.intermediate)?,
            down: w.transposed_linear(&name("mlp.c_proj"), c.intermediate, c.hidden)?,
            activation: c.activation,
        };
        let norm = |w: &mut Weights, module: &str| w.layer_norm(&name(module), c.hidden, c.norm_eps).map(Some);
        let (attention_norm, mlp_norm, dropout) = (norm(w, "ln_1")?, norm(w, "ln_2")?, c.hidden_dropout);
        let attention = Residual { before: attention_norm, inner: attention, after: None, last: None, dropout };
        let mlp = Residual { before: mlp_norm, inner: mlp, after: None, last: None, dropout };
        blocks.push(Block { index: l, attention, mlp, convolution: None });
    }
    let last_norm = Some(w.layer_norm("ln_f", c.hidden, c.norm_eps)?);
    Ok(Parts { last_norm, ..Parts::new(tables, blocks) })
}
