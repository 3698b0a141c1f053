//! PEFT's adapter_config.json.
//!
//! [`AdapterConfig`] has the keys of PEFT's `LoraConfig` that decide what a LoRA adapter computes. Other keys are kept
//! and written back unchanged. A key that changes the result in a way that this crate does not compute (DoRA, trained
//! biases, ...) is an error that names the key. A config that is read without an error is computed as PEFT computes it.
//!
//! [`AdapterConfig::matcher`] finds the rank of a module, [`AdapterConfig::for_modules`] makes a config from ranks.
//!
//! Source: PEFT 0.21.2, `peft/tuners/lora/config.py` and `peft/config.py`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::patterns::{Patterns, number, numbers};
use crate::{Error, Result, files, peft_adalora};

/// The file's name in an adapter folder.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// A PEFT LoRA config. The defaults are PEFT's. Make one with `AdapterConfig { r: 4, ..Default::default() }`,
/// [`AdapterConfig::for_modules`] or [`AdapterConfig::read`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// "LORA".
    pub peft_type: String,
    /// "SEQ_CLS", "CAUSAL_LM", "QUESTION_ANS", ...; none for a bare model.
    pub task_type: Option<String>,
    /// The base model's folder or hub id.
    pub base_model_name_or_path: Option<String>,
    /// True in a trained adapter's folder, false in a config to train from.
    #[serde(deserialize_with = "null_is_off")]
    pub inference_mode: bool,
    /// The rank of modules that no key of `rank_pattern` matches.
    pub r: usize,
    /// The alpha of modules that no key of `alpha_pattern` matches.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// The probability of dropping an input of A while training.
    #[serde(deserialize_with = "null_is_off")]
    pub lora_dropout: f32,
    /// Which biases are trained; only "none" is supported.
    #[serde(deserialize_with = "null_is_none")]
    pub bias: String,
    /// Whether the base weights are stored as (in, out), as GPT-2's are; A and B are the same either way.
    #[serde(deserialize_with = "null_is_off")]
    pub fan_in_fan_out: bool,
    /// s = alpha / sqrt(r) if true, else alpha / r.
    #[serde(deserialize_with = "null_is_off")]
    pub use_rslora: bool,
    /// Weight-decomposed LoRA (DoRA): every module has a magnitude for each output.
    #[serde(deserialize_with = "null_is_off")]
    pub use_dora: bool,
    /// How A and B are initialized. Methods that also change the base weights are not supported.
    #[serde(deserialize_with = "null_is_off")]
    pub init_lora_weights: Init,
    /// The modules that have an adapter.
    pub target_modules: Option<Names>,
    /// Modules without an adapter although `target_modules` matches them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Names>,
    /// Modules that are trained and saved in full, such as the head.
    pub modules_to_save: Option<Vec<String>>,
    /// The layers that have adapters. None means all.
    pub layers_to_transform: Option<Layers>,
    /// The name of the list of layers, for `layers_to_transform`.
    pub layers_pattern: Option<Names>,
    /// Ranks by pattern. The first pattern that matches a module counts.
    #[serde(deserialize_with = "crate::patterns::null_is_empty")]
    pub rank_pattern: Patterns<usize>,
    /// Alphas by pattern. The first pattern that matches a module counts.
    #[serde(deserialize_with = "crate::patterns::null_is_empty", serialize_with = "numbers")]
    pub alpha_pattern: Patterns<f64>,
    /// Every other key of the file, unchanged.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `init_lora_weights`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "init_lora_weights must be a boolean or a string")]
pub enum Init {
    /// True: A uniform and B zero. False: both random (for debugging).
    Default(bool),
    /// A named initialization.
    Named(String),
}

/// Module names: a list, or a regular expression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "modules must be a string (a regular expression) or a list of strings")]
pub enum Names {
    /// A Python regular expression; as `target_modules` also "all-linear".
    Pattern(String),
    /// Full names, or ends of names that begin after a dot.
    List(Vec<String>),
}

/// `layers_to_transform`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "layers_to_transform must be an integer or a list of integers")]
pub enum Layers {
    /// One layer.
    One(usize),
    /// These layers; an empty list means all.
    Many(Vec<usize>),
}

impl Default for Init {
    fn default() -> Self {
        Self::Default(true)
    }
}

/// Reads null as off. Hand-written configs, and programs that fill in all fields of PEFT, set switches to null.
fn null_is_off<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads null as "none", as [`null_is_off`] does for switches.
fn null_is_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_else(|| "none".to_owned()))
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: None,
            base_model_name_or_path: None,
            inference_mode: false,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            bias: "none".into(),
            fan_in_fan_out: false,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: Init::Default(true),
            target_modules: None,
            exclude_modules: None,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            other: Map::new(),
        }
    }
}

/// Initializations that do not change the base weights. (PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract A and B from
/// them; MiCA freezes B.)
const INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Keys of PEFT that do not change what an adapter computes, but how it was made or is run.
const HARMLESS: [&str; 11] = [
    "auto_mapping",
    "corda_config", // the settings of initializations: `init_lora_weights` says whether one was used
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size", // acts only with use_qalora
    "revision",
    "runtime_config",
];

impl AdapterConfig {
    /// Reads adapter_config.json and checks that everything in it is supported. A config of AdaLoRA becomes one of LoRA
    /// with the ranks that it kept.
    ///
    /// # Errors
    /// If the file cannot be read or is not a LoRA config, or as [`AdapterConfig::validate`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read_bytes(path)?;
        let json = |source| Error::Json { path: path.to_path_buf(), source };
        // Files of PEFT always name the method. Any JSON object would pass without this check, as every key has a
        // default.
        #[derive(Deserialize)]
        struct Method {
            peft_type: String,
        }
        let method: Method = serde_json::from_slice(&bytes).map_err(json)?;
        let config: Self = match &method.peft_type[..] {
            peft_adalora::PEFT_TYPE => {
                let theirs: Value = serde_json::from_slice(&bytes).map_err(json)?;
                serde_json::from_value(peft_adalora::plain_config(theirs)?).map_err(json)?
            }
            other => {
                check_method(other)?; // before other keys are read as LoRA's
                serde_json::from_slice(&bytes).map_err(json)?
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// Writes adapter_config.json atomically (see [`files::write_atomic`]).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        text.push(b'\n');
        files::write_atomic(path, &text)
    }

    /// Checks that this crate computes what PEFT computes with this config.
    ///
    /// A key unknown to PEFT 0.21 is an error if its value is true, or a list or object with content: it may be a
    /// switch of a later version that is on. Numbers and strings pass, since PEFT writes the defaults of switches that
    /// are off. [`AdapterConfig::unknown`] lists them.
    ///
    /// # Errors
    /// For the first option that is not supported or out of range.
    pub fn validate(&self) -> Result<()> {
        check_method(&self.peft_type)?;
        let require = |option: &str, expected: &str, holds, got: &dyn ToString| match holds {
            true => Ok(()),
            false => Err(Error::option(option, expected, got.to_string())),
        };
        require("bias", "\"none\"", self.bias == "none", &format!("{:?}", self.bias))?;
        if let Init::Named(name) = &self.init_lora_weights
            && !INITS.contains(&name.as_str())
        {
            let expected = "true, false, \"gaussian\", \"eva\" or \"orthogonal\", which leave the base weights alone";
            return Err(Error::option("init_lora_weights", expected, format!("{name:?}")));
        }
        require("lora_dropout", "in [0, 1)", (0.0..1.0).contains(&self.lora_dropout), &self.lora_dropout)?;
        require("r", "at least 1", self.r > 0, &self.r)?;
        require("lora_alpha", "a finite number", self.lora_alpha.is_finite(), &self.lora_alpha)?;
        for (pattern, rank) in self.rank_pattern.iter() {
            require(&format!("rank_pattern[{pattern:?}]"), "at least 1", *rank > 0, rank)?;
        }
        for (pattern, alpha) in self.alpha_pattern.iter() {
            require(&format!("alpha_pattern[{pattern:?}]"), "a finite number", alpha.is_finite(), alpha)?;
        }
        if self.target_modules.is_none() {
            return Err(Error::option("target_modules", "a regular expression or a list of module names", "null"));
        }
        if let (Some(Names::Pattern(_)), Some(layers)) = (&self.target_modules, &self.layers_to_transform) {
            let expected = "null where target_modules is a regular expression";
            return Err(Error::option("layers_to_transform", expected, format!("{layers:?}")));
        }
        for (key, value) in &self.other {
            let neutral = match value {
                Value::Bool(on) => !on,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                _ => true,
            };
            require(key, "null or false, which is what this version computes", neutral || harmless(key), value)?;
        }
        Ok(())
    }

    /// The unknown keys that pass [`AdapterConfig::validate`]: numbers and strings that neither this crate nor PEFT
    /// 0.21 knows. A caller may want to warn of them.
    #[must_use]
    pub fn unknown(&self) -> Vec<&str> {
        let unknown = |(key, value): &(&String, &Value)| (value.is_number() || value.is_string()) && !harmless(key);
        self.other.iter().filter(unknown).map(|(key, _)| key.as_str()).collect()
    }
}

fn check_method(peft_type: &str) -> Result<()> {
    match peft_type {
        "LORA" => Ok(()),
        other => Err(Error::option("peft_type", "\"LORA\" or \"ADALORA\"", format!("{other:?}"))),
    }
}

fn harmless(key: &str) -> bool {
    HARMLESS.contains(&key)
}

/// The settings of one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleConfig {
    /// R.
    pub rank: usize,
    /// alpha.
    pub alpha: f64,
    /// s = alpha / R, or alpha / sqrt(R) with rsLoRA.
    pub scaling: f32,
    /// The probability of dropping an input of A while training.
    pub dropout: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> AdapterConfig {
        serde_json::from_str(json).unwrap()
    }

    fn problem(json: &str) -> String {
        config(json).validate().unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_peft_s() {
        let c = config(r#"{"target_modules": ["q"]}"#);
        assert_eq!(c, AdapterConfig { target_modules: Some(Names::List(vec!["q".into()])), ..Default::default() });
        assert_eq!((c.r, c.lora_alpha), (8, 8.0));
        c.validate().unwrap();
    }

    #[test]
    fn switches_that_are_null_are_off() {
        let null = config(
            r#"{"target_modules": ["q"], "use_dora": null, "use_rslora": null, "fan_in_fan_out": null, "bias": null,
            "inference_mode": null, "lora_dropout": null, "init_lora_weights": null, "rank_pattern": null,
            "alpha_pattern": null, "modules_to_save": null, "layers_to_transform": null, "exclude_modules": null}"#,
        );
        null.validate().unwrap();
        assert_eq!(null, config(r#"{"target_modules": ["q"]}"#));
    }

    #[test]
    fn unsupported_options_are_named() {
        let cases = [
            (r#""bias": "lora_only""#, "bias is \"lora_only\"; expected \"none\""),
            (r#""lora_bias": true"#, "lora_bias is true"),
            (r#""use_qalora": true"#, "use_qalora is true"),
            (r#""layer_replication": [[0, 4], [2, 5]]"#, "layer_replication is [[0,4],[2,5]]"),
            (r#""trainable_token_indices": [1]"#, "trainable_token_indices is [1]"),
            (r#""target_parameters": ["experts.w"]"#, "target_parameters"),
            (r#""alora_invocation_tokens": [5]"#, "alora_invocation_tokens"),
            (r#""megatron_config": {"tp": 2}"#, "megatron_config"),
            (r#""kasa_config": {"a": 1}"#, "kasa_config"),
            (r#""use_bdlora": {"nblocks": 1}"#, "use_bdlora"),
            (r#""arrow_config": {"top_k": 3}"#, "arrow_config"),
            (r#""monteclora_config": {"a": 3}"#, "monteclora_config"),
            (r#""velora_config": {"a": 3}"#, "velora_config"),
            (r#""use_something_new": true"#, "use_something_new is true"),
            (r#""init_lora_weights": "pissa_niter_16""#, "init_lora_weights is \"pissa_niter_16\""),
            (r#""peft_type": "IA3""#, "peft_type is \"IA3\"; expected \"LORA\" or \"ADALORA\""),
            (r#""r": 0"#, "r is 0"),
            (r#""rank_pattern": {"q": 0}"#, "rank_pattern[\"q\"] is 0"),
            (r#""lora_dropout": 1.0"#, "lora_dropout is 1"),
        ];
        for (option, expected) in cases {
            let message = problem(&format!(r#"{{"target_modules": ["q"], {option}}}"#));
            assert!(message.contains(expected), "{message}");
        }
        assert!(problem("{}").contains("target_modules is null"));
        assert!(problem(r#"{"target_modules": "q", "layers_to_transform": 1}"#).contains("layers_to_transform"));
    }

    #[test]
    fn harmless_options_pass_and_are_written_back() {
        let json = r#"{"target_modules": ["q"], "lora_bias": false, "layer_replication": null, "loftq_config": {},
            "auto_mapping": {"base_model_class": "X"}, "peft_version": "0.21.2", "megatron_core": "megatron.core",
            "qalora_group_size": 16, "ensure_weight_tying": true, "new_size": 3, "new_kind": "x",
            "init_lora_weights": "eva"}"#;
        let c = config(json);
        c.validate().unwrap();
        assert_eq!(c.unknown(), ["new_kind", "new_size"]);
        let written: Value = serde_json::to_value(&c).unwrap();
        let read: Value = serde_json::from_str(json).unwrap();
        for (key, value) in read.as_object().unwrap() {
            assert_eq!(&written[key], value, "{key}");
        }
        assert_eq!(config(&written.to_string()), c);
    }

    #[test]
    fn files_that_are_no_lora_config() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG_NAME);
        let check = |text: &str, expected: &str| {
            files::write_atomic(&path, text.as_bytes()).unwrap();
            let message = AdapterConfig::read(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("", "adapter_config.json: not a PEFT LoRA config: EOF");
        check("{\"r\": 8", "EOF");
        check("{}", "missing field `peft_type`");
        check(r#"{"peft_type": "PREFIX_TUNING", "r": "x"}"#, "peft_type is \"PREFIX_TUNING\"");
        check(r#"{"peft_type": "LORA", "r": -1}"#, "invalid value: integer `-1`");
        check(r#"{"peft_type": "LORA", "target_modules": 3}"#, "modules must be a string");
        check(r#"{"peft_type": "LORA", "rank_pattern": [1]}"#, "expected a map");
        check(r#"{"peft_type": "LORA", "target_modules": ["q"], "use_qalora": true}"#, "use_qalora");
    }
}
