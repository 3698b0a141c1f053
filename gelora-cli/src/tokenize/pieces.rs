//! Checks the lengths of the pieces in a unigram tokenizer.json before the tokenizers crate reads it.
//!
//! The crate nests a map for each byte of a piece, and clones and drops these maps recursively. A piece of some ten
//! thousand bytes overflows the stack, which cannot be contained. Only the lists in `vocab` are checked, because
//! unigram models store their pieces there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::sentencepiece::MAX_PIECE_BYTES;

/// Checks the pieces of a tokenizer.json.
///
/// # Errors
/// Returns an error if the file is not a JSON object or has a piece of more than [`MAX_PIECE_BYTES`] bytes.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    serde_json::from_slice::<Fields>(bytes).map(|_| ()).map_err(|error| error.to_string())
}

/// The file, of which only the field `model` is read, and of that only `vocab`.
struct Fields;

/// A list of pieces, each a list that begins with its text. Any other value is skipped.
struct Pieces;

/// A piece.
struct Piece;

/// The text of a piece.
struct Text;

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "model" => {
                    map.next_value::<Fields>()?;
                }
                "vocab" => {
                    map.next_value::<Pieces>()?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Fields)
    }
}

/// Defines a type whose visitor skips every value except lists and strings.
macro_rules! lenient {
    ($type:ident, $($visit:item)+) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Lenient;
                impl<'de> Visitor<'de> for Lenient {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a value")
                    }
                    fn visit_unit<E>(self) -> Result<$type, E> {
                        Ok($type)
                    }
                    fn visit_bool<E>(self, _: bool) -> Result<$type, E> {
                        Ok($type)
                    }
                    fn visit_i64<E>(self, _: i64) -> Result<$type, E> {
                        Ok($type)
                    }
                    fn visit_u64<E>(self, _: u64) -> Result<$type, E> {
                        Ok($type)
                    }
                    fn visit_f64<E>(self, _: f64) -> Result<$type, E> {
                        Ok($type)
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$type, A::Error> {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        Ok($type)
                    }
                    $($visit)+
                }
                deserializer.deserialize_any(Lenient)
            }
        }
    };
}

lenient! {
    Pieces,
    fn visit_str<E>(self, _: &str) -> Result<Pieces, E> {
        Ok(Pieces)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pieces, A::Error> {
        while list.next_element::<Piece>()?.is_some() {}
        Ok(Pieces)
    }
}

lenient! {
    Piece,
    fn visit_str<E>(self, _: &str) -> Result<Piece, E> {
        Ok(Piece)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Piece, A::Error> {
        list.next_element::<Text>()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Piece)
    }
}

lenient! {
    Text,
    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        match text.len() <= MAX_PIECE_BYTES {
            true => Ok(Text),
            false => Err(E::custom(format_args!("a piece of {} bytes; expected {MAX_PIECE_BYTES} at \
                                                 most", text.len()))),
        }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_are_refused() {
        let file = |piece: &str| {
            format!(r#"{{"a": [1, null], "model": {{"b": {{}}, "vocab": [["x", -1.5], ["{piece}", 0]]}}}}"#)
        };
        check(file(&"y".repeat(MAX_PIECE_BYTES)).as_bytes()).unwrap();
        let problem = check(file(&"y".repeat(100_000)).as_bytes()).unwrap_err();
        assert!(problem.starts_with("a piece of 100000 bytes; expected 1024 at most"), "{problem}");
    }

    #[test]
    fn other_models_pass() {
        let long = "y".repeat(100_000);
        for vocabulary in
            [format!(r#"{{"{long}": 1}}"#), format!("[[1, \"{long}\"], \"{long}\", [], 3, true, null, [[]]]")]
        {
            check(format!(r#"{{"model": {{"vocab": {vocabulary}, "type": "BPE"}}, "x": "{long}"}}"#).as_bytes())
                .unwrap();
        }
        check(br#"{"model": {}}"#).unwrap();
        assert!(check(b"[]").is_err() && check(b"").is_err() && check(b"{}{}").is_err());
    }
}
