pub(crate) mod deberta;
mod json;

use gelora_kernels::ops::activation::Activation;

use crate::Result;

pub(crate) use json::{Json, check_no_adapter};

use deberta::DebertaOptions;

/// The sizes and options of a model, whatever its family calls them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The family, as `model_type` in config.json.
    pub family: String,
    /// Whether a token sees itself and those before it alone.
    pub causal: bool,
    /// Rows of the word embedding, V.
    pub vocabulary: usize,
    /// Channels, C.
    pub hidden: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Heads of attention, H.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head, D.
    pub head_size: usize,
    /// Channels inside the MLP.
    pub intermediate: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Rows of the token type embedding, 0 without one.
    pub token_types: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Dropout of embeddings and of each half of a block.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout before the task head.
    pub head_dropout: f32,
    /// Names of the classes, if the checkpoint has a task head.
    pub labels: Vec<String>,
    /// Whether config.json says that the checkpoint is a language model (`architectures`).
    pub is_language_model: bool,
    /// Whether a text may be of several of these classes at once (`problem_type`).
    pub multi_label: bool,
    /// The tokens that end a text, if config.json says so; the first is the one that training puts there.
    pub eos: Vec<u32>,
    /// The token that batches are padded with in transformers, if config.json or the family says so: a decoder's
    /// classifier looks at the last token that is another, and RoBERTa counts positions without it.
    pub pad: Option<u32>,
    /// The tokens that end generation: those of generation_config.json, or else `eos`.
    pub stop: Vec<u32>,
    /// How rotations turn queries and keys, the kinds that the layers have; none in a model without them.
    pub(crate) ropes: Vec<RopeConfig>,
    /// Which of them each layer has, and how many tokens a token of it sees.
    pub(crate) layer_kinds: Vec<LayerKind>,
    /// Whether the language-model head is the word embedding.
    pub(crate) tied: bool,
    /// What DeBERTa's attention knows of distances.
    pub(crate) deberta: Option<DebertaOptions>,
}

/// A rotation's inverse frequencies, scaled as the model scales them, and what its cosines and sines are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub frequencies: Vec<f32>,
    pub factor: f32,
}

/// What tells a layer from others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LayerKind {
    pub rope: usize,
    pub window: Option<usize>,
}

impl Config {
    /// The sizes under these keys ([C, L, H]) and the options that most families leave alone: heads split the channels,
    /// attention sees every token, there is no dropout.
    pub(crate) fn of_sizes(json: &Json, [hidden, layers, heads]: [&str; 3]) -> Result<Self> {
        let (c, l, h) = (json.size(hidden)?, json.size(layers)?, json.size(heads)?);
        if l > MOST_LAYERS {
            return Err(json.error(format!("{layers} is {l}; expected at most {MOST_LAYERS}")));
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
            deberta: None,
        })
    }
}

/// The most layers of a model: memory for them is asked for before their weights are looked for.
const MOST_LAYERS: usize = 10_000;
