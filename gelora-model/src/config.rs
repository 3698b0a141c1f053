pub(crate) mod deberta;
mod json;

use gelora_kernels::ops::activation::Activation;

use crate::Result;

pub(crate) use json::{Json, check_no_adapter};

use deberta::DebertaOptions;

/// Sizes and options of a model, under the same names for all families.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Name of the family: `model_type` in config.json.
    pub family: String,
    /// Whether attention is causal: a token attends to itself and to earlier tokens only.
    pub causal: bool,
    /// Number of rows of the word embedding, V.
    pub vocabulary: usize,
    /// Number of channels, C.
    pub hidden: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Number of attention heads, H.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Number of channels per head, D.
    pub head_size: usize,
    /// Number of channels inside the MLP.
    pub intermediate: usize,
    /// Length of the longest possible sequence.
    pub max_positions: usize,
    /// Number of rows of the token type embedding, or 0 without one.
    pub token_types: usize,
    /// Epsilon of the norms, added to the variance.
    pub norm_eps: f32,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Dropout probability of the embeddings and of the outputs of attention and MLP.
    pub hidden_dropout: f32,
    /// Dropout probability of the attention probabilities.
    pub attention_dropout: f32,
    /// Dropout probability before the task head.
    pub head_dropout: f32,
    /// Names of the classes, if the checkpoint has a task head.
    pub labels: Vec<String>,
    /// Whether config.json says that the checkpoint is a language model (`architectures`).
    pub is_language_model: bool,
    /// Whether a text may belong to several classes at once (`problem_type`).
    pub multi_label: bool,
    /// Tokens that end a text, if config.json names them. Training appends the first of them to each text.
    pub eos: Vec<u32>,
    /// Padding token of batches in transformers, if config.json or the family defines it. A decoder's classifier reads
    /// the last token that is not this one, and RoBERTa does not count it in positions.
    pub pad: Option<u32>,
    /// Tokens that end generation: those of generation_config.json, or else `eos`.
    pub stop: Vec<u32>,
    /// Rotary embeddings of queries and keys, one for each kind of layer. Empty in a model without them.
    pub(crate) ropes: Vec<RopeConfig>,
    /// Rotary embedding and attention window of each layer.
    pub(crate) layer_kinds: Vec<LayerKind>,
    /// Whether the language-model head shares the weight of the word embedding.
    pub(crate) tied: bool,
    /// Number of rows of the position table before the first position.
    pub(crate) first_position: usize,
    /// What distinguishes the families of Llama's block.
    pub(crate) llama: LlamaOptions,
    /// Options of DeBERTa's disentangled attention.
    pub(crate) deberta: Option<DebertaOptions>,
}

/// What distinguishes the families of Llama's block from Llama.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LlamaOptions {
    /// Whether the projections of queries, keys and values have biases.
    pub biased: bool,
    /// Whether each head of queries and keys is normalized.
    pub normed_heads: bool,
    /// Whether there are norms after attention and MLP too, norms scale by 1 + weight, and embeddings are scaled by
    /// sqrt(C).
    pub gemma: bool,
}

/// Inverse frequencies of a rotary embedding, with the model's scaling applied, and the factor of its cosines and
/// sines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub frequencies: Vec<f32>,
    pub factor: f32,
}

/// Options in which the layers of a model differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LayerKind {
    pub rope: usize,
    pub window: Option<usize>,
}

impl Config {
    /// Reads the sizes [C, L, H] under these keys, and sets all other options to the values of most families: heads
    /// split the channels, attention is bidirectional, and there is no dropout.
    pub(crate) fn of_sizes(json: &Json, [hidden, layers, heads]: [&str; 3]) -> Result<Self> {
        let (c, l, h) = (json.size(hidden)?, json.size(layers)?, json.size(heads)?);
        if l > MAX_LAYERS {
            return Err(json.error(format!("{layers} is {l}; expected at most {MAX_LAYERS}")));
        }
        Ok(Self {
            family: String::new(),
            causal: false,
            vocabulary: json.size("vocab_size")?,
            hidden: c,
            layers: l,
            heads: h,
            kv_heads: h,
            head_size: c / h,
            intermediate: 4 * c,
            max_positions: usize::MAX,
            token_types: 0,
            norm_eps: 1e-12,
            activation: Activation::Gelu,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            head_dropout: 0.0,
            labels: json.labels(),
            is_language_model: json
                .class()
                .is_some_and(|class| ["ForCausalLM", "LMHeadModel"].iter().any(|end| class.ends_with(end))),
            multi_label: json.map.get("problem_type").is_some_and(|kind| kind == "multi_label_classification"),
            eos: json.eos()?,
            stop: json.eos()?,
            pad: json.pad(None)?,
            ropes: Vec::new(),
            layer_kinds: vec![LayerKind::default(); l],
            tied: true,
            first_position: 0,
            llama: LlamaOptions::default(),
            deberta: None,
        })
    }
}

/// Largest number of layers. It bounds the memory that is allocated before the weights are looked up.
const MAX_LAYERS: usize = 10_000;
