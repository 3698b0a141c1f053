//! Functions that transformers adds to the environment of templates, and replacements where minijinja differs from
//! Python: JSON, the date, `dict`, numbers, and methods of strings.
//!
//! Source: `_cached_compile_jinja_template` in `utils/chat_template_utils.py` of transformers 5.23, and CPython's
//! `json`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Maximum nesting of a value that is written. Templates of practical length cannot build a deeper value, and each
/// level takes stack.
const MAX_DEPTH: usize = 200;

/// Implements `json.dumps(value, ensure_ascii=..., indent=..., separators=..., sort_keys=...)`, without HTML escapes.
/// Keys keep their order.
///
/// # Errors
/// Returns an error if an option is unknown or of a wrong type, or if a value has no JSON form (an undefined value).
pub fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize),
        }),
    };
    let [item, key] = match separators.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned),
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = Writer { text: String::new(), indent, item, key, ascii, sorted };
    writer.value(value, 0)?;
    Ok(writer.text)
}

/// Writes values as JSON.
struct Writer {
    text: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: more than {MAX_DEPTH} levels")));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items.len(), depth, |writer, i| writer.value(&items[i], depth + 1))?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    pairs.push((self.name(&key)?, value.get_item(&key)?));
                }
                if self.sorted {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(['{', '}'], pairs.len(), depth, |writer, i| {
                    writer.string(&pairs[i].0);
                    writer.text.push_str(&writer.key.clone());
                    writer.value(&pairs[i].1, depth + 1)
                })?;
            }
            other => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {other} has no JSON")));
            }
        }
        Ok(())
    }

    /// Returns a key in the form of Python's `json`.
    fn name(&self, key: &Value) -> Result<String, Error> {
        Ok(match key.kind() {
            ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
            ValueKind::None => "null".into(),
            ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
            ValueKind::Number => number(key)?,
            other => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {other} as a key"))),
        })
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for i in 0..len {
            if i > 0 {
                self.text.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            item(self, i)?;
        }
        if len > 0 {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.text, "\\u{unit:04x}"); // writing to a String cannot fail
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// Returns a number in the form of Python.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(i128::try_from(value.clone())?.to_string());
    }
    let float = f64::try_from(value.clone())?;
    if !float.is_finite() {
        let sign = if float < 0.0 { "-" } else { "" };
        return Ok(if float.is_nan() { "NaN".into() } else { format!("{sign}Infinity") });
    }
    // The digits are the fewest that identify the number, as in Rust. Outside of 1e-4 to 1e16 the exponent has two
    // digits.
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&power) {
        let sign = if power < 0 { '-' } else { '+' };
        return Ok(format!("{digits}e{sign}{:02}", power.abs()));
    }
    Ok(format!("{float:?}"))
}

/// Implements `datetime.now().strftime(format)`, in the machine's local time.
///
/// # Errors
/// Returns an error if the format has an unknown directive.
pub fn now(format: &str) -> Result<String, Error> {
    let formatted = jiff::fmt::strtime::format(format, &jiff::Zoned::now());
    formatted.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?}: {e}")))
}

/// Implements `dict(pairs or mapping, key=value, ...)`.
///
/// # Errors
/// Returns an error if the first argument is neither.
pub fn dict(given: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(given) = given {
        for item in given.try_iter()? {
            if given.kind() == ValueKind::Map {
                let value = given.get_item(&item)?;
                pairs.push((item, value));
                continue;
            }
            let pair: Vec<Value> = item.try_iter()?.collect();
            let [key, value] = <[Value; 2]>::try_from(pair)
                .map_err(|_| Error::new(ErrorKind::InvalidOperation, "dict: expected pairs or a mapping"))?;
            pairs.push((key, value));
        }
    }
    for key in more.args() {
        pairs.push((key.into(), more.get(key)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// Implements methods of Python's strings and dicts.
///
/// # Errors
/// Returns an error if there is no such method, or if its arguments do not fit.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if name != "index" || value.as_str().is_none() {
        return unknown_method_callback(state, value, name, arguments);
    }
    let found = unknown_method_callback(state, value, "find", arguments)?;
    match found.as_i64() {
        Some(0..) => Ok(found),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "index: the text is not in the string")),
    }
}

/// Writes the value of `{{ }}`, with numbers in the form of Python.
///
/// # Errors
/// Returns an error if the output refuses more text.
pub fn print(out: &mut Output<'_>, state: &mut State, value: &Value) -> Result<(), Error> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    if is_float && f64::try_from(value.clone()).is_ok_and(f64::is_finite) {
        return Ok(out.write_str(&number(value)?)?);
    }
    escape_formatter(out, state, value)
}
