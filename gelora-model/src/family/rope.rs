//! Options of rotary embeddings: `rope_parameters`, or `rope_theta` and `rope_scaling` before transformers 5.

use gelora_kernels::ops::rotary::inverse_frequencies;
use serde_json::{Map, Value};

use crate::Result;
use crate::config::{Json, RopeConfig};

/// Largest number of channels of a head. Each pair of channels has a frequency.
const MAX_CHANNELS: usize = 1 << 16;

/// Base of the frequencies if the config does not contain it.
const THETA: f64 = 10_000.0;

/// Reads the rotary embedding of a model in which all layers share one.
pub fn of_config(json: &Json, head_size: usize) -> Result<RopeConfig> {
    match parameters(json)? {
        Some(map) => scaled(json, map, map.get("rope_theta").and_then(Value::as_f64), head_size),
        None => plain(json, json.number("rope_theta", THETA)?.into(), head_size),
    }
}

/// Returns the object `rope_parameters`, or else `rope_scaling`.
pub fn parameters(json: &Json) -> Result<Option<&Map<String, Value>>> {
    json.get("rope_scaling"); // mark as known even if `rope_parameters` is used
    for key in ["rope_parameters", "rope_scaling"] {
        match json.get(key) {
            None => {}
            Some(Value::Object(map)) => return Ok(Some(map)),
            Some(value) => return Err(json.error(format!("{key} must be an object, got {value}"))),
        }
    }
    Ok(None)
}

/// Frequencies without scaling.
pub fn plain(json: &Json, theta: f64, head_size: usize) -> Result<RopeConfig> {
    if head_size > MAX_CHANNELS {
        return Err(json.error(format!("heads have {head_size} channels; expected at most {MAX_CHANNELS}")));
    }
    if !head_size.is_multiple_of(2) {
        return Err(
            json.error(format!("heads of {head_size} channels cannot be turned in pairs; expected an even number"))
        );
    }
    Ok(RopeConfig { frequencies: inverse_frequencies(theta, head_size), factor: 1.0 })
}

/// Frequencies scaled by an object of parameters.
///
/// Sources: linear, Chen et al., arXiv 2306.15595; YaRN, Peng et al., arXiv 2309.00071; llama3, Grattafiori et al.,
/// arXiv 2407.21783, with the constants of transformers' `modeling_rope_utils`.
pub fn scaled(json: &Json, map: &Map<String, Value>, theta: Option<f64>, head_size: usize) -> Result<RopeConfig> {
    let theta = match theta {
        Some(theta) => theta,
        None => json.number("rope_theta", THETA)?.into(),
    };
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let needed =
        |key: &str| number(key).ok_or_else(|| json.error(format!("the rope option {key} is missing or not a number")));
    let kind = map.get("rope_type").or(map.get("type")).and_then(Value::as_str).unwrap_or("default");
    if number("partial_rotary_factor").is_some_and(|share| share != 1.0) {
        return Err(json.error("the rope option partial_rotary_factor is not supported; expected 1"));
    }
    let mut rope = plain(json, theta, head_size)?;
    match kind {
        "default" => {}
        "linear" => {
            let factor = needed("factor")? as f32;
            rope.frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => {
            let (factor, low, high) = (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
            let trained = needed("original_max_position_embeddings")?;
            for f in &mut rope.frequencies {
                // Long wavelengths are divided by `factor`, short ones are kept, and those between are interpolated.
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(*f);
                let share = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                let kept = f64::from(*f);
                *f = ((1.0 - share) * kept / factor + share * kept) as f32;
            }
        }
        "yarn" => yarn(json, map, theta, &mut rope)?,
        other => {
            let problem = format!("rope_type = {other:?} is not supported; expected default, linear, llama3 or yarn");
            return Err(json.error(problem));
        }
    }
    Ok(rope)
}

fn yarn(json: &Json, map: &Map<String, Value>, theta: f64, rope: &mut RopeConfig) -> Result<()> {
    let number = |key: &str, default: f64| map.get(key).and_then(Value::as_f64).unwrap_or(default);
    let factor = number("factor", f64::NAN);
    if factor.is_nan() {
        return Err(json.error("the rope option factor is missing or not a number"));
    }
    if map.contains_key("mscale") || map.contains_key("mscale_all_dim") {
        return Err(json.error("the rope option mscale is not supported"));
    }
    let trained = match map.get("original_max_position_embeddings").and_then(Value::as_f64) {
        Some(trained) => trained,
        None => json.size("max_position_embeddings")? as f64,
    };
    // The scale of cosines and sines, 0.1 ln(factor) + 1 by default.
    rope.factor = number("attention_factor", 0.1 * factor.ln() + 1.0) as f32;
    let half = rope.frequencies.len() as f64;
    // Index of the channel pair whose angle makes this number of turns over the training length.
    let channel = |turns: f64| half * (trained / (turns * 2.0 * std::f64::consts::PI)).ln() / theta.ln();
    let (mut low, mut high) = (channel(number("beta_fast", 32.0)), channel(number("beta_slow", 1.0)));
    if map.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(2.0 * half - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    // Channels below `low` keep their frequency, channels above `high` are divided by `factor`.
    for (j, f) in rope.frequencies.iter_mut().enumerate() {
        let interpolated = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let kept = f64::from(*f);
        *f = (kept / factor * interpolated + kept * (1.0 - interpolated)) as f32;
    }
    Ok(())
}
