//! Reads the parts of SentencePiece model files that a unigram tokenizer of transformers needs.
//!
//! Source: `sentencepiece_model.proto`. A protobuf message is a sequence of fields. Each field has a number, a wire
//! type and a value. Fields that are not needed are skipped.

/// A piece of the vocabulary.
#[derive(Debug)]
pub struct Piece {
    pub text: String,
    /// Logarithm of the piece's probability.
    pub score: f64,
    pub kind: u64,
}

/// Types of pieces: those that stand for no text, and those that a user defined.
pub const CONTROL: u64 = 3;
pub const DEFINED: u64 = 4;

/// The parts of a model that are read.
#[derive(Debug)]
pub struct Model {
    pub pieces: Vec<Piece>,
    pub unknown: usize,
}

/// Maximum length of a piece in bytes. The tokenizers crate nests a map for each byte of a piece. SentencePiece's
/// default limit is 16 characters.
pub const MAX_PIECE_BYTES: usize = 1024;

/// Model type that is supported; 2 is BPE.
const UNIGRAM: u64 = 1;

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    /// Returns an error if the model is damaged, has no pieces, or is not a unigram model.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let damaged = || "not a SentencePiece model, or a damaged one".to_owned();
        let (mut pieces, mut unknown, mut kind) = (Vec::new(), 0, UNIGRAM);
        for field in fields(bytes) {
            match field.ok_or_else(damaged)? {
                (1, Value::Bytes(message)) => pieces.push(piece(message).ok_or_else(damaged)?),
                (2, Value::Bytes(trainer)) => {
                    for field in fields(trainer) {
                        match field.ok_or_else(damaged)? {
                            (3, Value::Number(number)) => kind = number,
                            (40, Value::Number(number)) => unknown = number as usize,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if pieces.is_empty() {
            return Err(damaged());
        }
        if kind != UNIGRAM {
            return Err(format!("a SentencePiece model of type {kind}; expected {UNIGRAM} (unigram)"));
        }
        let bad = |piece: &&Piece| piece.text.is_empty() || !piece.score.is_finite();
        if let Some(piece) = pieces.iter().find(bad) {
            return Err(format!("has the piece {:?} with the score {}", piece.text, piece.score));
        }
        if let Some(piece) = pieces.iter().find(|piece| piece.text.len() > MAX_PIECE_BYTES) {
            return Err(format!("has a piece of {} bytes; expected {MAX_PIECE_BYTES} at most", piece.text.len()));
        }
        if unknown >= pieces.len() {
            return Err(format!("the unknown piece is number {unknown} of {}", pieces.len()));
        }
        Ok(Self { pieces, unknown })
    }
}

fn piece(message: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Value::Float(score)) => piece.score = score.into(),
            (3, Value::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Some(piece)
}

enum Value<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Skipped,
}

/// Returns the fields of a message with their numbers. A damaged message ends with one None.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Option<(u64, Value<'_>)>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Skipped)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        5 => Value::Float(f32::from_le_bytes(take(rest, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(n)?;
    *rest = after;
    Some(taken)
}

/// Reads a variable-length integer: seven bits per byte, lowest bits first.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_and_damaged_files_are_errors() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tokenizers/spm/spm.model");
        let bytes = std::fs::read(path).unwrap();
        let model = Model::parse(&bytes).unwrap();
        assert_eq!((model.pieces.len(), model.unknown), (150, 3));
        assert_eq!(
            (model.pieces[3].text.as_str(), model.pieces[1].kind, model.pieces[4].kind),
            ("[UNK]", CONTROL, DEFINED)
        );
        assert!(model.pieces[5..].iter().all(|piece| piece.score < 0.0));
        for part in 0..16 {
            // May succeed if the cut is between two pieces, but must not panic.
            let _ = Model::parse(&bytes[..bytes.len() * part / 16]);
        }
        for at in 0..bytes.len() {
            for change in [0, 0x80, 0xff, bytes[at].wrapping_add(1)] {
                let mut bytes = bytes.clone();
                bytes[at] = change;
                let _ = Model::parse(&bytes);
            }
        }
        let long = [&b"\x0a\x8b\x10\x0a\x88\x10"[..], &[b'a'; 2056]].concat();
        assert!(Model::parse(&long).unwrap_err().contains("a piece of 2056 bytes"), "{:?}", Model::parse(&long));
        for bad in [
            &b""[..],
            b"\x0a\x7f",
            b"\x0a\x00",
            b"version https://git-lfs",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(Model::parse(bad).is_err(), "{bad:?}");
        }
    }
}
