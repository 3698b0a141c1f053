//! Converts the rotary embeddings of a config.json to keys of a GGUF file.

use gelora_kernels::Tensor;
use gelora_kernels::ops::rotary::inverse_frequencies;
use serde_json::{Map, Value};

use super::names::Architecture;
use super::write::MetadataValue;
use super::{Gguf, ROPE_FACTORS};
use crate::config::Json;
use crate::{Config, Result};

/// Options of YaRN that llama.cpp fixes, with their values.
const YARN: [(&str, f64); 2] = [("beta_fast", 32.0), ("beta_slow", 1.0)];

/// A key of the header and its value.
type Entry = (String, MetadataValue);

/// Returns the keys of the rotary embeddings, and the factors of the frequencies if llama3's scaling needs them.
///
/// # Errors
/// Returns an error if a GGUF file of this architecture cannot represent an option.
pub(super) fn keys(json: &Json, config: &Config, architecture: &Architecture) -> Result<(Vec<Entry>, Option<Tensor>)> {
    let is_gemma = architecture.name == "gemma3";
    let all = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| json.map.get(key)?.as_object());
    let parameters_of_kind = |kind: &str| all.and_then(|all| all.get(kind)).and_then(Value::as_object);
    let (global, local) = (parameters_of_kind("full_attention").or(all), parameters_of_kind("sliding_attention"));
    let theta_of = |map: Option<&Map<String, Value>>, key: &str, default: f64| {
        let in_map = map.and_then(|map| map.get("rope_theta")).and_then(Value::as_f64);
        in_map.or_else(|| json.map.get(key).and_then(Value::as_f64)).unwrap_or(default)
    };
    let theta = theta_of(global, "rope_theta", if is_gemma { 1e6 } else { 1e4 });
    let key = |name: &str, value| (format!("{}.rope.{name}", architecture.name), value);
    let float = |value: f64| MetadataValue::Float(value as f32);
    let mut keys = vec![key("freq_base", float(theta))];
    if is_gemma {
        if let Some(kind) = local.map(kind_of).filter(|kind| *kind != "default") {
            return Err(
                json.error(format!("rope_type = {kind:?} of sliding layers cannot be represented in a GGUF file"))
            );
        }
        keys.push(key("freq_base_swa", float(theta_of(local, "rope_local_base_freq", 1e4))));
    }
    let Some(map) = global else { return Ok((keys, None)) };
    let number = |name: &str| map.get(name).and_then(Value::as_f64);
    let factor = number("factor").unwrap_or(1.0);
    match kind_of(map) {
        "default" => {}
        "linear" => {
            keys.extend([
                key("scaling.type", MetadataValue::Text("linear".into())),
                key("scaling.factor", float(factor)),
            ]);
        }
        "yarn" if !is_gemma => {
            let fixed = [("attention_factor", 0.1 * factor.ln() + 1.0)].into_iter().chain(YARN);
            for (name, fixed) in fixed {
                if let Some(value) = number(name).filter(|value| (value - fixed).abs() > 1e-6) {
                    let problem = format!(
                        "the rope option {name} = {value} cannot be represented in a GGUF file; expected {fixed}"
                    );
                    return Err(json.error(problem));
                }
            }
            if map.get("truncate") == Some(&Value::Bool(false)) {
                return Err(
                    json.error("the rope option truncate = false cannot be represented in a GGUF file; expected true")
                );
            }
            let trained = number("original_max_position_embeddings").unwrap_or(config.max_positions as f64);
            keys.extend([
                key("scaling.type", MetadataValue::Text("yarn".into())),
                key("scaling.factor", float(factor)),
                key("scaling.original_context_length", MetadataValue::Unsigned(trained as u32)),
            ]);
        }
        "llama3" if architecture.name == "llama" => {
            let plain = inverse_frequencies(theta, config.head_size);
            let scaled = config.ropes.first().map_or(&[][..], |rope| &rope.frequencies);
            let factors: Vec<f32> = plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect();
            let length = factors.len();
            return Ok((keys, Some(Tensor::from_vec(factors, [length])?)));
        }
        other => {
            let name = architecture.name;
            return Err(json.error(format!("rope_type = {other:?} cannot be represented in a GGUF file of a {name}")));
        }
    }
    Ok((keys, None))
}

/// Returns the type of scaling that an object of parameters names.
fn kind_of(map: &Map<String, Value>) -> &str {
    map.get("rope_type").or(map.get("type")).and_then(Value::as_str).unwrap_or("default")
}

impl Gguf {
    /// Reads the factors of the frequencies, if the file has them.
    pub(super) fn rope_factors(&self) -> Result<Option<Tensor>> {
        self.tensors.iter().find(|t| t.name == ROPE_FACTORS).map(|info| self.tensor(info)).transpose()
    }
}
