//! JSON objects whose order matters: `rank_pattern` and `alpha_pattern` of adapter_config.json.
//!
//! PEFT tries the keys in the order of the file, and the first that matches counts. The map of `serde_json` sorts its
//! keys, so this one is a list of pairs.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Values by pattern, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Patterns<T> {
    /// Sets the value of a pattern. A new pattern comes last; a known one keeps its place, as in a Python dict.
    pub fn insert(&mut self, pattern: impl Into<String>, value: T) {
        let pattern = pattern.into();
        match self.0.iter_mut().find(|(p, _)| *p == pattern) {
            Some((_, old)) => *old = value,
            None => self.0.push((pattern, value)),
        }
    }

    /// The pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(pattern, value)| (pattern.as_str(), value))
    }

    /// Number of patterns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no patterns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: Into<String>, T> FromIterator<(S, T)> for Patterns<T> {
    fn from_iter<I: IntoIterator<Item = (S, T)>>(pairs: I) -> Self {
        let mut patterns = Self::default();
        for (pattern, value) in pairs {
            patterns.insert(pattern, value);
        }
        patterns
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from patterns to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut patterns = Patterns::default();
                while let Some((pattern, value)) = map.next_entry::<String, T>()? {
                    patterns.insert(pattern, value);
                }
                Ok(patterns)
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

/// Reads null as an empty object, which older files have.
pub(crate) fn null_is_empty<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Patterns<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// An alpha as PEFT writes it: 16 for 16.0.
#[derive(Clone, Copy)]
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Up to 2^53 every integer is an f64.
        match self.0.fract() == 0.0 && self.0.abs() < 9_007_199_254_740_992.0 {
            true => serializer.serialize_i64(self.0 as i64),
            false => serializer.serialize_f64(self.0),
        }
    }
}

pub(crate) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    Number(*value).serialize(serializer)
}

pub(crate) fn numbers<S: Serializer>(patterns: &Patterns<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(patterns.len()))?;
    for (pattern, &value) in patterns.iter() {
        map.serialize_entry(pattern, &Number(value))?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_file_is_kept() {
        let json = r#"{"z":3,"a":1,"m":2}"#;
        let patterns: Patterns<usize> = serde_json::from_str(json).unwrap();
        assert_eq!(patterns.iter().map(|(p, _)| p).collect::<Vec<_>>(), ["z", "a", "m"]);
        assert_eq!(serde_json::to_string(&patterns).unwrap(), json);
        // As in Python, a key that comes twice has its first place and its last value.
        let twice: Patterns<usize> = serde_json::from_str(r#"{"z":3,"a":1,"z":2}"#).unwrap();
        assert_eq!(serde_json::to_string(&twice).unwrap(), r#"{"z":2,"a":1}"#);
    }

    #[test]
    fn whole_alphas_are_integers() {
        let json = |v| serde_json::to_string(&Number(v)).unwrap();
        assert_eq!(
            (json(16.0), json(2.5), json(-3.0), json(1e300)),
            ("16".into(), "2.5".into(), "-3".into(), "1e+300".into())
        );
    }
}
