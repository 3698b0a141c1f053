//! One file a family: config.json and weight names in, [`Config`] and modules out.

mod bert;
mod deberta;
mod distilbert;
mod gpt2;
mod llama;
mod mpnet;
mod rope;

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
pub(crate) use deberta::Options as DebertaOptions;

/// What is known of a family.
pub(crate) struct Family {
    /// `model_type`.
    pub name: &'static str,
    /// What transformers calls the sequence classifier, and the language model of a decoder.
    pub classes: [&'static str; 2],
    config: fn(&Json) -> Result<Config>,
    load: fn(&Config, &mut Weights) -> Result<Parts>,
    pub head: HeadKind,
}

/// A dense layer and its nonlinearity before the last map, all on the first token.
const fn on_first(dense: Dense, activation: Activation, out: &'static str) -> HeadKind {
    HeadKind { first: true, dense, activation, out, biased: true }
}

/// One map of the last token.
const ON_LAST: HeadKind =
    HeadKind { first: false, dense: Dense::None, activation: Activation::Tanh, out: "score", biased: false };

const BERT: HeadKind = on_first(Dense::Pooler, Activation::Tanh, "classifier");
const ROBERTA: HeadKind =
    on_first(Dense::Trained { name: "classifier.dense", dropped: true }, Activation::Tanh, "classifier.out_proj");
const DEBERTA: HeadKind =
    on_first(Dense::Trained { name: "pooler.dense", dropped: false }, Activation::Gelu, "classifier");
const DISTILBERT: HeadKind =
    on_first(Dense::Trained { name: "pre_classifier", dropped: false }, Activation::Relu, "classifier");

/// Every family.
const FAMILIES: &[Family] = &[
    family("bert", ["BertForSequenceClassification", ""], bert::bert, bert::load, BERT),
    family("roberta", ["RobertaForSequenceClassification", ""], bert::roberta, bert::load, ROBERTA),
    family("xlm-roberta", ["XLMRobertaForSequenceClassification", ""], bert::roberta, bert::load, ROBERTA),
    family("distilbert", ["DistilBertForSequenceClassification", ""], distilbert::config, distilbert::load, DISTILBERT),
    family("mpnet", ["MPNetForSequenceClassification", ""], mpnet::config, mpnet::load, ROBERTA),
    family("deberta-v2", ["DebertaV2ForSequenceClassification", ""], deberta::config, deberta::load, DEBERTA),
    family("gpt2", ["GPT2ForSequenceClassification", "GPT2LMHeadModel"], gpt2::config, gpt2::load, ON_LAST),
    family("llama", ["LlamaForSequenceClassification", "LlamaForCausalLM"], llama::llama, llama::load, ON_LAST),
    family("mistral", ["MistralForSequenceClassification", "MistralForCausalLM"], llama::mistral, llama::load, ON_LAST),
    family("qwen2", ["Qwen2ForSequenceClassification", "Qwen2ForCausalLM"], llama::qwen2, llama::load, ON_LAST),
    family("qwen3", ["Qwen3ForSequenceClassification", "Qwen3ForCausalLM"], llama::qwen3, llama::load, ON_LAST),
    family(
        "gemma3_text",
        ["Gemma3TextForSequenceClassification", "Gemma3ForCausalLM"],
        llama::gemma3,
        llama::load,
        ON_LAST,
    ),
];

const fn family(
    name: &'static str,
    classes: [&'static str; 2],
    config: fn(&Json) -> Result<Config>,
    load: fn(&Config, &mut Weights) -> Result<Parts>,
    head: HeadKind,
) -> Family {
    Family { name, classes, config, load, head }
}

/// What a family makes of a checkpoint's weights.
pub(crate) struct Parts {
    /// Prefix of the model's modules inside a task model, such as `bert.`.
    pub prefix: &'static str,
    pub tables: Tables,
    /// The norm of the embeddings.
    pub norm: Option<Norm>,
    pub blocks: Vec<Block>,
    /// The norm after the last block.
    pub last_norm: Option<Norm>,
    pub bias: Option<RelativeBias>,
    pub distances: Option<RelativeEmbedding>,
    /// The dense layer on the first token before a task head, if the checkpoint has one.
    pub pooler: Option<Linear>,
}

impl Parts {
    /// With nothing that a model may lack.
    fn new(prefix: &'static str, tables: Tables, blocks: Vec<Block>) -> Self {
        Self { prefix, tables, norm: None, blocks, last_norm: None, bias: None, distances: None, pooler: None }
    }
}

/// Embedding tables.
pub(crate) struct Tables {
    pub words: Tensor,
    /// The table of positions, and the row of the first.
    pub positions: Option<(Tensor, u32)>,
    pub types: Option<Tensor>,
    /// What the sum is multiplied by.
    pub scale: f32,
}

/// The family of this name.
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
    json.all_known()?;
    if !config.heads.is_multiple_of(config.kv_heads) {
        let (heads, kv_heads) = (config.heads, config.kv_heads);
        return Err(json.error(format!("{kv_heads} key-value heads do not divide {heads} attention heads")));
    }
    Ok(config)
}

pub(crate) fn load(config: &Config, weights: &mut Weights) -> Result<Parts> {
    match find(&config.family) {
        Some(family) => (family.load)(config, weights),
        None => Err(crate::Error::Value(format!("model family {:?} has no loader", config.family))),
    }
}

/// The size of a head where heads split the channels.
fn split_heads(json: &Json, [hidden, heads]: [&str; 2]) -> Result<usize> {
    let (c, h) = (json.size(hidden)?, json.size(heads)?);
    if !c.is_multiple_of(h) {
        return Err(json.error(format!("{heads} = {h} must divide {hidden} = {c}")));
    }
    Ok(c / h)
}
