//! BERT: absolute positions, norms after each half of a block (Devlin et al., arXiv 1810.04805). RoBERTa and XLM-R are the
//! same but for the first position (Liu et al., arXiv 1907.11692; Conneau et al., arXiv 1911.02116).

use serde_json::json;

use super::{Parts, Tables, split_heads};
use crate::attention::Attention;
use crate::block::{Block, Half};
use crate::config::{Json, LayerKind};
use crate::mlp::Mlp;
use crate::weights::Weights;
use crate::{Config, Result};

pub fn bert(json: &Json) -> Result<Config> {
    json.only("position_embedding_type", &json!("absolute"))?;
    json.only("is_decoder", &json!(false))?;
    let hidden_dropout = json.number("hidden_dropout_prob", 0.1)?;
    let (heads, layers) = (json.size("num_attention_heads")?, json.size("num_hidden_layers")?);
    Ok(Config {
        family: String::new(),
        causal: false,
        vocabulary: json.size("vocab_size")?,
        hidden: json.size("hidden_size")?,
        layers,
        heads,
        kv_heads: heads,
        head_size: split_heads(json, ["hidden_size", "num_attention_heads"])?,
        intermediate: json.size("intermediate_size")?,
        max_positions: json.size("max_position_embeddings")?,
        token_types: json.size("type_vocab_size")?,
        norm_eps: json.number("layer_norm_eps", 1e-12)?,
        activation: json.activation("hidden_act")?,
        hidden_dropout,
        attention_dropout: json.number("attention_probs_dropout_prob", 0.1)?,
        head_dropout: json.number("classifier_dropout", hidden_dropout.into())?,
        labels: json.labels(),
        eos: json.eos(),
        ropes: Vec::new(),
        layer_kinds: vec![LayerKind::default(); layers],
        tied: true,
    })
}

/// The rows of the position table before the first position: those up to that of the padding token.
const PADDING: usize = 2;

pub fn roberta(json: &Json) -> Result<Config> {
    json.only("pad_token_id", &json!(PADDING - 1))?;
    let config = bert(json)?;
    let max_positions = config.max_positions.checked_sub(PADDING).filter(|n| *n > 0);
    let max_positions = max_positions.ok_or_else(|| json.error("max_position_embeddings must be at least 3"))?;
    Ok(Config { max_positions, ..config })
}

pub fn load(c: &Config, w: &mut Weights) -> Result<Parts> {
    let (prefix, first) = if c.family == "bert" { ("bert.", 0) } else { ("roberta.", PADDING) };
    w.prefix(prefix);
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
    Ok(Parts { prefix, tables, norm, blocks, last_norm: None, bias: None, pooler })
}

/// What a family with BERT's blocks calls their parts.
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
    /// BERT's block: attention over all tokens, a norm after each half.
    pub fn block(&self, c: &Config, w: &mut Weights, layer: usize, at: &str) -> Result<Block> {
        let at = |module: &str| format!("{at}.{module}");
        let attention = Attention {
            layer,
            projections: vec![
                w.linear(&at(self.query), c.hidden, c.hidden)?,
                w.linear(&at(self.key), c.hidden, c.hidden)?,
                w.linear(&at(self.value), c.hidden, c.hidden)?,
            ],
            output: w.linear(&at(self.output), c.hidden, c.hidden)?,
            heads: c.heads,
            kv_heads: c.heads,
            head_size: c.head_size,
            scale: 1.0 / (c.head_size as f32).sqrt(),
            causal: false,
            window: None,
            norms: None,
            rope: None,
            dropout: c.attention_dropout,
        };
        let attention_norm = w.layer_norm(&at(self.attention_norm), c.hidden, c.norm_eps)?;
        let mlp = Mlp {
            gate: None,
            up: w.linear(&at(self.up), c.hidden, c.intermediate)?,
            down: w.linear(&at(self.down), c.intermediate, c.hidden)?,
            activation: c.activation,
        };
        let mlp_norm = w.layer_norm(&at(self.mlp_norm), c.hidden, c.norm_eps)?;
        let dropout = c.hidden_dropout;
        Ok(Block {
            index: layer,
            attention: Half { before: None, inner: attention, after: None, last: Some(attention_norm), dropout },
            mlp: Half { before: None, inner: mlp, after: None, last: Some(mlp_norm), dropout },
        })
    }
}
