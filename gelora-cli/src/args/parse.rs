//! Parsers of option values: numbers within limits, and short notations.

use gelora_model::train::Interval;

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 1).ok_or("expected an integer of at least 1".into())
}

pub(super) fn at_least_three(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 3).ok_or("expected an integer of at least 3".into())
}

pub(super) fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err("expected one ASCII character, or tab".into()),
    }
}

pub(super) fn trimmed(text: &str) -> Result<String, String> {
    not_empty(text.trim())
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    Some(text.to_owned()).filter(|text| !text.is_empty()).ok_or("expected a text that is not empty".into())
}

fn number(text: &str, is_valid: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && is_valid(*v)).ok_or(format!("expected a number {expected}"))
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0, "above 0")
}

pub(super) fn at_least_whole(text: &str) -> Result<f64, String> {
    number(text, |v| v >= 1.0, "of at least 1")
}

pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |v| v >= 0.0, "of at least 0")
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |v| (0.0..1.0).contains(&v), "of at least 0 and below 1")
}

pub(super) fn positive_share(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0 && v <= 1.0, "above 0 and at most 1")
}

pub(super) fn inside_unit(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0 && v < 1.0, "above 0 and below 1")
}

/// A share below 1, or a whole number of steps.
pub(super) fn warmup(text: &str) -> Result<f64, String> {
    let is_valid = |v: f64| (0.0..1.0).contains(&v) || (v >= 1.0 && v.fract() == 0.0);
    number(text, is_valid, "of at least 0 and below 1 (a share of the steps), or an integer (steps)")
}

/// Steps, or with a decimal point a share of an epoch.
pub(super) fn interval(text: &str) -> Result<Interval, String> {
    let interval = match text.contains('.') {
        true => positive(text).ok().map(Interval::Epochs),
        false => at_least_one(text).ok().map(Interval::Steps),
    };
    interval
        .ok_or("expected an integer of at least 1 (steps), or a number above 0 with a decimal point (epochs)".into())
}
