//! PEFT's config of AdaLoRA, read as one of plain LoRA.
//!
//! Source: PEFT 0.21.2, `peft/tuners/adalora/config.py`, and `AdaLoraModel.resize_modules_by_rank_pattern`.

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// PEFT's name of the method.
pub(crate) const PEFT_TYPE: &str = "ADALORA";
/// What PEFT adds to the rank that it divides by.
const ADDED_TO_RANK: f64 = 1e-5;
/// Keys of PEFT's config that say how the adapter was trained.
const OF_TRAINING: [&str; 9] =
    ["target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"];

/// The scaling of an adapter that begins with this rank, divided by alpha / rank: R / (R + 1e-5).
#[must_use]
pub fn scaling_factor(rank: usize) -> f64 {
    rank as f64 / (rank as f64 + ADDED_TO_RANK)
}

/// PEFT's config of AdaLoRA as one of plain LoRA.
///
/// # Errors
/// If a key is missing or is not what PEFT writes.
pub(crate) fn plain_config(config: Value) -> Result<Value> {
    let Value::Object(mut keys) = config else { return Ok(config) };
    let rank = keys.get("init_r").and_then(Value::as_u64).unwrap_or(12);
    let rank = usize::try_from(rank).unwrap_or(usize::MAX).max(1);
    // PEFT takes the rank where alpha is not above 0.
    let alpha = keys.get("lora_alpha").and_then(Value::as_f64).unwrap_or(8.0);
    let alpha = if alpha > 0.0 { alpha } else { rank as f64 };
    let scaling = alpha / rank as f64 * scaling_factor(rank);
    let pattern = keys.remove("rank_pattern").unwrap_or(Value::Null);
    OF_TRAINING.iter().for_each(|key| {
        keys.remove(*key);
    });
    keys.insert("peft_type".into(), json!("LORA"));
    keys.insert("r".into(), json!(rank));
    keys.insert("lora_alpha".into(), json!(scaling * rank as f64));
    keys.insert("use_rslora".into(), json!(false)); // AdaLoRA ignores it
    keys.remove("alpha_pattern"); // and this
    let Value::Object(pattern) = pattern else { return Ok(Value::Object(keys)) };
    let (mut ranks, mut alphas, mut without) = (Map::new(), Map::new(), Vec::new());
    for (name, kept) in pattern {
        let expected = "expected a list of true and false for the name of each lora_E";
        let wrong = || Error::option("rank_pattern", expected, format!("{name:?}: {kept}"));
        let kept = kept.as_array().ok_or_else(wrong)?;
        let kept: Vec<bool> = kept.iter().map(|on| on.as_bool().ok_or_else(wrong)).collect::<Result<_>>()?;
        let module = name.strip_suffix(".default").unwrap_or(&name).strip_suffix(".lora_E").ok_or_else(wrong)?;
        let kept = kept.iter().filter(|on| **on).count();
        if kept == 0 {
            without.push(json!(module));
            continue;
        }
        ranks.insert(module.into(), json!(kept));
        alphas.insert(module.into(), json!(scaling * kept as f64));
    }
    keys.insert("rank_pattern".into(), Value::Object(ranks));
    keys.insert("alpha_pattern".into(), Value::Object(alphas));
    if !without.is_empty() {
        let excluded = match keys.remove("exclude_modules") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(names)) => names,
            Some(other) => {
                let expected = "a list where modules of AdaLoRA keep no rank";
                return Err(Error::option("exclude_modules", expected, other.to_string()));
            }
        };
        keys.insert("exclude_modules".into(), Value::Array([excluded, without].concat()));
    }
    Ok(Value::Object(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AdapterConfig;

    #[test]
    fn peft_s_config_becomes_a_plain_one() -> Result<()> {
        let config = |pattern: &str| {
            let text = format!(
                r#"{{"peft_type": "ADALORA", "r": 8, "init_r": 4, "target_r": 2, "lora_alpha": 8, "tinit": 1,
                "total_step": 9, "target_modules": ["q", "v"], "rank_pattern": {pattern}}}"#
            );
            plain_config(serde_json::from_str(&text).unwrap())
        };
        let plain = config(r#"{"l.q.lora_E": [true, false, true, true], "l.v.lora_E": [false, false]}"#)?;
        let plain: AdapterConfig = serde_json::from_value(plain).unwrap();
        plain.validate()?;
        let module = plain.module("l.q")?.expect("a target");
        let want = 8.0 / (4.0 + 1e-5);
        assert_eq!(module.rank, 3);
        assert!((f64::from(module.scaling) - want).abs() < 1e-6, "{} {want}", module.scaling);
        assert!(plain.module("l.v")?.is_none(), "it keeps no rank");
        let whole: AdapterConfig = serde_json::from_value(config("null")?).unwrap();
        assert_eq!(whole.module("l.v")?.expect("a target").rank, 4);
        let error = config(r#"{"l.q.lora_E": 3}"#).unwrap_err().to_string();
        assert!(error.contains("rank_pattern") && error.contains("l.q.lora_E"), "{error}");
        Ok(())
    }
}
