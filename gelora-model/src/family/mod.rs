//! One file for each model family. It reads config.json into a [`Config`] and takes weights by their names.

mod bert;
mod deberta;
mod distilbert;
mod gpt2;
mod llama;
mod mpnet;
mod rope;

use std::path::Path;

use gelora_kernels::Tensor;
use gelora_kernels::ops::activation::Activation;

use crate::block::Block;
use crate::config::Json;
use crate::head::{Dense, HeadKind};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::position::{RelativeBias, RelativeEmbedding};
use crate::weights::Weights;
use crate::{Config, Result};

/// A model family.
pub(crate) struct Family {
    /// Value of `model_type` in config.json.
    pub name: &'static str,
    /// Prefix of the model's names inside a task model.
    pub prefix: &'static str,
    /// Classes in transformers: the sequence classifier, the language model ("" for an encoder), and the model without
    /// a head.
    pub classes: [&'static str; 3],
    config: fn(&Json) -> Result<Config>,
    load: fn(&Config, &mut Weights) -> Result<Parts>,
    pub head: HeadKind,
}

/// A head on the first token: a dense layer with its activation, and the output layer.
const fn on_first(dense: Dense, activation: Activation, out: &'static str) -> HeadKind {
    HeadKind { first: true, dense, activation, out, biased: true }
}

/// A head on the last token: the output layer alone.
const ON_LAST: HeadKind =
    HeadKind { first: false, dense: Dense::None, activation: Activation::Tanh, out: "score", biased: false };

const BERT: HeadKind = on_first(Dense::Pooler, Activation::Tanh, "classifier");
const ROBERTA: HeadKind =
    on_first(Dense::Trained { name: "classifier.dense", dropped: true }, Activation::Tanh, "classifier.out_proj");
const DEBERTA: HeadKind =
    on_first(Dense::Trained { name: "pooler.dense", dropped: false }, Activation::Gelu, "classifier");
const DISTILBERT: HeadKind =
    on_first(Dense::Trained { name: "pre_classifier", dropped: false }, Activation::Relu, "classifier");

/// All supported families.
const FAMILIES: &[Family] = &[
    family(["bert", "bert."], ["BertForSequenceClassification", "", "BertModel"], bert::bert, bert::load, BERT),
    family(
        ["roberta", "roberta."],
        ["RobertaForSequenceClassification", "", "RobertaModel"],
        bert::roberta,
        bert::load,
        ROBERTA,
    ),
    family(
        ["xlm-roberta", "roberta."],
        ["XLMRobertaForSequenceClassification", "", "XLMRobertaModel"],
        bert::roberta,
        bert::load,
        ROBERTA,
    ),
    family(
        ["distilbert", "distilbert."],
        ["DistilBertForSequenceClassification", "", "DistilBertModel"],
        distilbert::config,
        distilbert::load,
        DISTILBERT,
    ),
    family(
        ["mpnet", "mpnet."],
        ["MPNetForSequenceClassification", "", "MPNetModel"],
        mpnet::config,
        mpnet::load,
        ROBERTA,
    ),
    family(
        ["deberta-v2", "deberta."],
        ["DebertaV2ForSequenceClassification", "", "DebertaV2Model"],
        deberta::config,
        deberta::load,
        DEBERTA,
    ),
    family(
        ["gpt2", "transformer."],
        ["GPT2ForSequenceClassification", "GPT2LMHeadModel", "GPT2Model"],
        gpt2::config,
        gpt2::load,
        ON_LAST,
    ),
    family(
        ["llama", "model."],
        ["LlamaForSequenceClassification", "LlamaForCausalLM", "LlamaModel"],
        llama::llama,
        llama::load,
        ON_LAST,
    ),
    family(
        ["mistral", "model."],
        ["MistralForSequenceClassification", "MistralForCausalLM", "MistralModel"],
        llama::mistral,
        llama::load,
        ON_LAST,
    ),
    family(
        ["qwen2", "model."],
        ["Qwen2ForSequenceClassification", "Qwen2ForCausalLM", "Qwen2Model"],
        llama::qwen2,
        llama::load,
        ON_LAST,
    ),
    family(
        ["qwen3", "model."],
        ["Qwen3ForSequenceClassification", "Qwen3ForCausalLM", "Qwen3Model"],
        llama::qwen3,
        llama::load,
        ON_LAST,
    ),
    family(
        ["gemma3_text", "model."],
        ["Gemma3TextForSequenceClassification", "Gemma3ForCausalLM", "Gemma3TextModel"],
        llama::gemma3,
        llama::load,
        ON_LAST,
    ),
];

const fn family(
    [name, prefix]: [&'static str; 2],
    classes: [&'static str; 3],
    config: fn(&Json) -> Result<Config>,
    load: fn(&Config, &mut Weights) -> Result<Parts>,
    head: HeadKind,
) -> Family {
    Family { name, prefix, classes, config, load, head }
}

/// The parts of a model, made from the weights of a checkpoint.
pub(crate) struct Parts {
    pub tables: Tables,
    /// Norm of the embeddings.
    pub norm: Option<Norm>,
    pub blocks: Vec<Block>,
    /// Norm after the last block.
    pub last_norm: Option<Norm>,
    pub bias: Option<RelativeBias>,
    pub distances: Option<RelativeEmbedding>,
    /// Dense layer on the first token before a task head, if the checkpoint has one.
    pub pooler: Option<Linear>,
}

impl Parts {
    /// Parts of a model without any optional part.
    fn new(tables: Tables, blocks: Vec<Block>) -> Self {
        Self { tables, norm: None, blocks, last_norm: None, bias: None, distances: None, pooler: None }
    }
}

/// Embedding tables.
pub(crate) struct Tables {
    pub words: Tensor,
    /// The position table, and the row of the first position. If this row is r > 0, the padding token has the id r - 1
    /// and takes row r - 1.
    pub positions: Option<(Tensor, u32)>,
    pub types: Option<Tensor>,
    /// Factor of the sum of the embeddings.
    pub scale: f32,
}

/// File with a model's settings for generation.
const GENERATION: &str = "generation_config.json";

impl Config {
    /// Reads MODEL/config.json, or the metadata of a .gguf file. Also reads MODEL/generation_config.json, in which chat
    /// models name the token that ends a turn.
    ///
    /// # Errors
    /// Returns an error if config.json is missing, a file is not a JSON object, the family is not supported, a key is
    /// missing or of the wrong type, or an option is unknown or has an unsupported value.
    pub fn load(model: &Path) -> Result<Self> {
        let mut config = config(&Json::load(model)?)?;
        let path = model.join(GENERATION);
        if path.exists() {
            let stop = Json::read(path)?.eos()?;
            config.stop = if stop.is_empty() { config.stop } else { stop };
        }
        Ok(config)
    }
}

/// Returns the family of this name.
pub(crate) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

pub(crate) fn config(json: &Json) -> Result<Config> {
    let all = || FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
    let Some(name) = json.text("model_type") else {
        return Err(json.error(format!("the key model_type is missing; expected one of {}", all())));
    };
    let Some(family) = find(name) else {
        return Err(json.error(format!("model_type {name:?} is not supported; expected one of {}", all())));
    };
    let config = Config { family: name.into(), ..(family.config)(json)? };
    json.only("is_encoder_decoder", &false.into())?;
    json.only("add_cross_attention", &false.into())?;
    json.only("cross_attention_hidden_size", &serde_json::Value::Null)?;
    json.only("pruned_heads", &serde_json::json!({}))?;
    crate::bitsandbytes::check_config(json)?;
    json.all_known()?;
    if !config.heads.is_multiple_of(config.kv_heads) {
        let (heads, kv_heads) = (config.heads, config.kv_heads);
        return Err(json.error(format!("{kv_heads} key-value heads do not divide {heads} attention heads")));
    }
    Ok(config)
}

pub(crate) fn load(config: &Config, weights: &mut Weights) -> Result<Parts> {
    match find(&config.family) {
        Some(family) => {
            weights.prefix(family.prefix);
            (family.load)(config, weights)
        }
        None => Err(crate::Error::Value(format!("model family {:?} has no loader", config.family))),
    }
}

/// Returns the size of a head in a model whose heads split the channels.
fn split_heads(json: &Json, [hidden, heads]: [&str; 2]) -> Result<usize> {
    let (c, h) = (json.size(hidden)?, json.size(heads)?);
    if !c.is_multiple_of(h) {
        return Err(json.error(format!("{heads} = {h} must divide {hidden} = {c}")));
    }
    Ok(c / h)
}
