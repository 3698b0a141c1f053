//! Llama 2 and 3, SmolLM2 (Touvron et al., arXiv 2307.09288), and families that differ from them in an option or a
//! norm: Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671), Qwen3 (arXiv 2505.09388), Gemma 3 (arXiv 2503.19786).

use gelora_kernels::ops::activation::Activation;
use serde_json::{Value, json};

use super::{Parts, Tables, rope};
use crate::attention::Attention;
use crate::block::{Block, Residual};
use crate::config::{Json, LayerKind, LlamaOptions};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::weights::Weights;
use crate::{Config, Result};

/// Reads the options that all families of this file share.
fn common(json: &Json) -> Result<Config> {
    let config = Config::of_sizes(json, ["hidden_size", "num_hidden_layers", "num_attention_heads"])?;
    json.number("rope_theta", 0.0)?; // mark as known; the rotary embedding reads it
    Ok(Config {
        causal: true,
        kv_heads: json.size_or("num_key_value_heads", config.heads)?,
        head_size: json.size_or("head_dim", config.head_size)?,
        intermediate: json.size("intermediate_size")?,
        max_positions: json.size("max_position_embeddings")?,
        norm_eps: json.number("rms_norm_eps", 1e-6)?,
        activation: if json.text("hidden_act").is_some() { json.activation("hidden_act")? } else { Activation::Silu },
        attention_dropout: json.number("attention_dropout", 0.0)?,
        tied: json.flag("tie_word_embeddings", false)?,
        ..config
    })
}

/// Reads the options of a model whose layers share one rotary embedding.
fn shared_rope(json: &Json) -> Result<Config> {
    let config = common(json)?;
    let mut rope = rope::of_config(json, config.head_size)?;
    // A GGUF file stores one factor for each frequency instead of the parameters of llama3's scaling.
    if let Some(factors) = json.get("rope_factors").and_then(Value::as_array) {
        let factor = |(f, by): (&f32, &Value)| by.as_f64().map(|by| f / by as f32);
        let scaled: Option<Vec<f32>> = rope.frequencies.iter().zip(factors).map(factor).collect();
        let expected = rope.frequencies.len();
        rope.frequencies = scaled
            .filter(|all| all.len() == expected)
            .ok_or_else(|| json.error(format!("rope_freqs.weight must have {expected} values")))?;
    }
    let ropes = vec![rope];
    Ok(Config { ropes, ..config })
}

pub fn llama(json: &Json) -> Result<Config> {
    json.only("attention_bias", &json!(false))?;
    json.only("mlp_bias", &json!(false))?;
    json.only("rope_interleaved", &json!(false))?;
    shared_rope(json)
}

pub fn mistral(json: &Json) -> Result<Config> {
    let mut config = shared_rope(json)?;
    let window = json.get("sliding_window").is_some().then(|| json.size("sliding_window")).transpose()?;
    config.layer_kinds.iter_mut().for_each(|kind| kind.window = window);
    Ok(config)
}

/// Reads the attention window of Qwen2 and Qwen3. The layers with a window are those in `layer_types`, or those from
/// `max_window_layers` on.
fn qwen(json: &Json) -> Result<Config> {
    json.only("use_mrope", &json!(false))?;
    let mut config = shared_rope(json)?;
    let used = json.flag("use_sliding_window", false)?;
    let first = json.size_or("max_window_layers", config.layers).unwrap_or(0);
    let window = json.get("sliding_window").filter(|_| used).map(|_| json.size("sliding_window")).transpose()?;
    let sliding = sliding_layers(json, config.layers)?;
    for (l, kind) in config.layer_kinds.iter_mut().enumerate() {
        let slides = sliding.as_ref().map_or(l >= first, |layers| layers[l]);
        if slides {
            kind.window = window;
        }
    }
    Ok(config)
}

pub fn qwen2(json: &Json) -> Result<Config> {
    Ok(Config { llama: LlamaOptions { biased: true, ..LlamaOptions::default() }, ..qwen(json)? })
}

pub fn qwen3(json: &Json) -> Result<Config> {
    json.only("attention_bias", &json!(false))?;
    Ok(Config { llama: LlamaOptions { normed_heads: true, ..LlamaOptions::default() }, ..qwen(json)? })
}

/// Reads from `layer_types` which layers have a sliding window.
fn sliding_layers(json: &Json, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = json.get("layer_types") else { return Ok(None) };
    let kinds: Vec<Option<bool>> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|kind| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        })
        .collect();
    let known: Option<Vec<bool>> = kinds.into_iter().collect();
    match known.filter(|known| known.len() == layers) {
        Some(known) => Ok(Some(known)),
        None => {
            Err(json.error(format!("layer_types must be {layers} of full_attention or sliding_attention, got {value}")))
        }
    }
}

pub fn gemma3(json: &Json) -> Result<Config> {
    json.only("attention_bias", &json!(false))?;
    json.only("attn_logit_softcapping", &Value::Null)?;
    json.only("final_logit_softcapping", &Value::Null)?;
    json.only("use_bidirectional_attention", &json!(false))?;
    let (tied, pad) = (json.flag("tie_word_embeddings", true)?, json.pad(Some(0))?);
    let llama = LlamaOptions { normed_heads: true, gemma: true, ..LlamaOptions::default() };
    let mut config = Config { tied, pad, llama, ..common(json)? };
    config.activation =
        json.activation(if json.text("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" })?;
    json.get("hidden_act");
    // Layers with full attention have a different rotary embedding.
    let parameters_of_kind =
        |kind: &str| rope::parameters(json).map(|all| all.and_then(|all| all.get(kind)).and_then(Value::as_object));
    let head = config.head_size;
    let local = match parameters_of_kind("sliding_attention")? {
        Some(map) => rope::scaled(json, map, map.get("rope_theta").and_then(Value::as_f64), head)?,
        None => rope::plain(json, json.number("rope_local_base_freq", 10_000.0)?.into(), head)?,
    };
    let global = match parameters_of_kind("full_attention")? {
        Some(map) => rope::scaled(json, map, map.get("rope_theta").and_then(Value::as_f64), head)?,
        None => match rope::parameters(json)? {
            Some(map) => rope::scaled(json, map, Some(json.number("rope_theta", 1e6)?.into()), head)?,
            None => rope::plain(json, json.number("rope_theta", 1e6)?.into(), head)?,
        },
    };
    let (window, pattern) = (json.size("sliding_window")?, json.size_or("sliding_window_pattern", 6)?);
    json.size_or("_sliding_window_pattern", pattern)?;
    // Without `layer_types`, every `pattern`-th layer has full attention.
    let sliding = match sliding_layers(json, config.layers)? {
        Some(layers) => layers,
        None => (0..config.layers).map(|l| !(l + 1).is_multiple_of(pattern)).collect(),
    };
    config.ropes = vec![local, global];
    for (kind, slides) in config.layer_kinds.iter_mut().zip(sliding) {
        *kind = if slides { LayerKind { rope: 0, window: Some(window) } } else { LayerKind { rope: 1, window: None } };
    }
    let per_channel = json.number("query_pre_attn_scalar", config.head_size as f64)?;
    // Scores are scaled by 1 / sqrt(query_pre_attn_scalar). The difference to 1 / sqrt(head_size) goes into the factor
    // of the rotary embeddings.
    for rope in &mut config.ropes {
        rope.factor *= (config.head_size as f32 / per_channel).powf(0.25);
    }
    Ok(config)
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let LlamaOptions { biased, normed_heads, gemma } = c.llama;
    let offset = if gemma { 1.0 } else { 0.0 };
    let scale = if gemma { (c.hidden as f32).sqrt() } else { 1.0 };
    let words = w.tensor("embed_tokens.weight", &[c.vocabulary, c.hidden])?;
    let tables = Tables { words, positions: None, types: None, scale };
    let (wide, narrow) = (c.heads * c.head_size, c.kv_heads * c.head_size);
    let mut blocks = Vec::with_capacity(c.layers);
    for (l, kind) in c.layer_kinds.iter().enumerate() {
        let name = |module: &str| format!("layers.{l}.{module}");
        let head_norm = |w: &mut Weights, module: &str| w.rms_norm(&name(module), c.head_size, c.norm_eps, offset);
        let norms = match normed_heads {
            true => Some([head_norm(w, "self_attn.q_norm")?, head_norm(w, "self_attn.k_norm")?]),
            false => None,
        };
        let factor = c.ropes[kind.rope].factor;
        let projections = vec![
            w.linear_with(&name("self_attn.q_proj"), c.hidden, wide, biased)?,
            w.linear_with(&name("self_attn.k_proj"), c.hidden, narrow, biased)?,
            w.linear_with(&name("self_attn.v_proj"), c.hidden, narrow, biased)?,
        ];
        let output = w.linear_with(&name("self_attn.o_proj"), wide, c.hidden, false)?;
        let plain = Attention::new(c, l, projections, output);
        let scale = factor * factor * plain.scale;
        let attention = Attention { scale, window: kind.window, norms, rope: Some(kind.rope), ..plain };
        let mlp = Mlp {
            gate: Some(w.linear_with(&name("mlp.gate_proj"), c.hidden, c.intermediate, false)?),
            up: w.linear_with(&name("mlp.up_proj"), c.hidden, c.intermediate, false)?,
            down: w.linear_with(&name("mlp.down_proj"), c.intermediate, c.hidden, false)?,
            activation: c.activation,
        };
        let norm = |w: &mut Weights, module: &str| -> Result<Option<Norm>> {
            w.rms_norm(&name(module), c.hidden, c.norm_eps, offset).map(Some)
        };
        let before_attention = norm(w, "input_layernorm")?;
        let between = norm(w, "post_attention_layernorm")?;
        // Gemma has norms before and after each sublayer; the other families only before it.
        let (after_attention, before_mlp, after_mlp) = match gemma {
            true => (between, norm(w, "pre_feedforward_layernorm")?, norm(w, "post_feedforward_layernorm")?),
            false => (None, between, None),
        };
        let dropout = 0.0;
        let attention =
            Residual { before: before_attention, inner: attention, after: after_attention, last: None, dropout };
        let mlp = Residual { before: before_mlp, inner: mlp, after: after_mlp, last: None, dropout };
        blocks.push(Block { index: l, attention, mlp, convolution: None });
    }
    let last_norm = Some(w.rms_norm("norm", c.hidden, c.norm_eps, offset)?);
    Ok(Parts { last_norm, ..Parts::new(tables, blocks) })
}
