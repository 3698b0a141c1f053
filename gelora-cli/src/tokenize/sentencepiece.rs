//! SentencePiece's model files, as far as a unigram tokenizer of transformers needs them.
//!
//! Source: `sentencepiece_model.proto`. A protobuf message is fields one after the other, each a number with a wire type and
//! a value; fields that are not asked for are skipped.

/// A piece of the vocabulary.
#[derive(Debug)]
pub struct Piece {
    pub text: String,
    /// Its logarithmic probability.
    pub score: f64,
    pub kind: u64,
}

/// Kinds of pieces: those that stand for no text, and those that a user defined.
pub const CONTROL: u64 = 3;
pub const DEFINED: u64 = 4;

/// What is read of a model.
#[derive(Debug)]
pub struct Model {
    pub pieces: Vec<Piece>,
    pub unknown: usize,
}

/// The longest piece in bytes. The tokenizer nests a map for each byte of one; SentencePiece's own limit is 16 characters unless
/// it is told otherwise.
pub const LONGEST: usize = 1024;

/// The type of model that is read; 2 is BPE.
const UNIGRAM: u64 = 1;

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    /// If it is damaged, has no pieces, or is not a unigram model.
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
        if let Some(piece) = pieces.iter().find(|piece| piece.text.len() > LONGEST) {
            return Err(format!("has a piece of {} bytes; expected {LONGEST} at most", piece.text.len()));
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

/// The fields of a message by their numbers; None, once, where it is damaged.
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

/// Seven bits a byte, the lowest first.
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
    fn a_model_is_read_and_damage_is_said() {
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
            let _ = Model::parse(&bytes[..bytes.len() * part / 16]); // no panic: a cut may fall between two pieces
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
