//! The lines that benches print, ours and others'.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::median;
use crate::say;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What was measured: `kind`, or `kind/variant`.
    pub bench: String,
    /// On what.
    pub params: Map<String, Value>,
    /// The median time in milliseconds.
    pub ms: f64,
    /// The shortest time in milliseconds.
    #[serde(default)]
    pub min_ms: Option<f64>,
    /// The most memory that the process had at once.
    #[serde(default)]
    pub peak_rss_mb: Option<f64>,
    /// Whatever else is known.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Line {
    /// A line on these times.
    pub fn new(bench: &str, params: Value, times_ms: &[f64], peak_rss_mb: Option<f64>) -> Self {
        let params = match params {
            Value::Object(params) => params,
            _ => Map::new(),
        };
        let least = times_ms.iter().copied().fold(f64::INFINITY, f64::min);
        Self {
            bench: bench.into(),
            params,
            ms: rounded(median(times_ms), 3),
            min_ms: Some(rounded(least, 3)),
            peak_rss_mb: peak_rss_mb.map(f64::round),
            extra: Map::new(),
        }
    }

    /// With one more number.
    pub fn with(mut self, name: &str, value: f64, decimals: i32) -> Self {
        let value = rounded(value, decimals);
        self.extra.insert(name.into(), if decimals == 0 { (value as i64).into() } else { value.into() });
        self
    }

    /// Prints it.
    pub fn emit(&self) -> Result<()> {
        say(serde_json::to_string(self)?);
        Ok(())
    }

    /// The element type, where there is a choice.
    pub fn dtype(&self) -> Option<&str> {
        self.params.get("dtype").and_then(Value::as_str)
    }

    /// A number beside the times.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.extra.get(name).and_then(Value::as_f64)
    }
}

fn rounded(value: f64, decimals: i32) -> f64 {
    let power = 10f64.powi(decimals);
    (value * power).round() / power
}

/// The measurements among whatever else a program printed.
///
/// # Errors
/// If a line begins as a measurement does and is none: a measurement must not get lost.
pub fn parse(output: &str) -> Result<Vec<Line>> {
    let starts = |line: &&str| line.starts_with("{\"bench\"");
    output
        .lines()
        .map(str::trim)
        .filter(starts)
        .map(|l| serde_json::from_str(l).with_context(|| l.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_found_among_noise() {
        let output = "Loading weights: 100%\r\n\
            {\"bench\": \"train-step\", \"params\": {\"dtype\": \"bf16\", \"batch\": 32}, \"ms\": 35.1, \"min_ms\": \
            33, \
            \"peak_rss_mb\": 705, \"loss_first\": 0.69}\n{\"other\": 1}\n[1, 2]\nwarning: {\"bench\"\n";
        let lines = parse(output).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].ms, lines[0].min_ms, lines[0].dtype()), (35.1, Some(33.0), Some("bf16")));
        assert_eq!((lines[0].number("loss_first"), lines[0].peak_rss_mb), (Some(0.69), Some(705.0)));
        assert!(parse("{\"bench\": \"train-step\", \"params\": {}, \"ms\": NaN}").is_err());
    }

    #[test]
    fn what_is_printed_is_what_is_read() {
        let line = Line::new("two-nn/x", json!({"n": 10}), &[2.0, 1.00049, 7.0], Some(12.4)).with("per_s", 1.26, 1);
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.starts_with("{\"bench\""), "{text}");
        assert_eq!(parse(&text).unwrap(), std::slice::from_ref(&line));
        assert_eq!(
            (line.ms, line.min_ms, line.peak_rss_mb, line.number("per_s")),
            (2.0, Some(1.0), Some(12.0), Some(1.3))
        );
    }
}
