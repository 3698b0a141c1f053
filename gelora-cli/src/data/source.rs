//! Reads the bytes of a text file as UTF-8. The file may be plain or gzip, with or without a byte order mark, in UTF-8
//! or UTF-16. It is read in pieces and never kept in memory as a whole.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use flate2::read::MultiGzDecoder;

use crate::ui::Progress;

/// Size in bytes from which on a file shows progress.
const LARGE: u64 = 16 << 20;
const PIECE: usize = 1 << 16;

/// A file that is read from beginning to end, with the number of the current line.
pub struct Source {
    path: PathBuf,
    input: Box<dyn Read>,
    buffer: Vec<u8>,
    position: usize,
    end: usize,
    line: usize,
}

impl Source {
    /// Opens a file. `label` names the step for the progress display; None shows no progress.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or read.
    pub fn open(path: &Path, label: Option<&str>) -> Result<Self> {
        let unreadable = || format!("{}: cannot be read", path.display());
        let file = File::open(path).with_context(unreadable)?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let progress = label.filter(|_| size >= LARGE).map(|label| {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            Progress::of_bytes(false, format!("{label} {name}"), size)
        });
        let counted: Box<dyn Read> = Box::new(Counted { file, progress });
        Self::of_input(path, counted).with_context(unreadable)
    }

    /// Returns a source of decompressed UTF-8.
    fn of_input(path: &Path, input: Box<dyn Read>) -> io::Result<Self> {
        let (start, input) = peeked(input, 2)?;
        let input: Box<dyn Read> = match start.as_slice() {
            [0x1f, 0x8b] => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PIECE, input))),
            _ => input,
        };
        Ok(Self::new(path, decoded(input)?))
    }

    /// Opens a stream, such as standard input. `name` stands for its path in messages.
    ///
    /// # Errors
    /// Returns an error if the stream cannot be read.
    pub fn of_stream(name: &Path, input: impl Read + 'static) -> Result<Self> {
        Self::of_input(name, Box::new(input)).with_context(|| format!("{}: cannot be read", name.display()))
    }

    /// Returns a source over bytes in memory.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Self {
        Self::new(path, Box::new(Cursor::new(bytes)))
    }

    fn new(path: &Path, input: Box<dyn Read>) -> Self {
        Self { path: path.to_owned(), input, buffer: vec![0; PIECE], position: 0, end: 0, line: 1 }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the 1-based line of the next byte.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Returns the next byte without consuming it, or None at the end.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or decompressed.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        if self.position == self.end {
            self.fill()?;
        }
        Ok((self.position < self.end).then(|| self.buffer[self.position]))
    }

    /// Returns the next byte, or None at the end.
    ///
    /// # Errors
    /// Returns the errors of [`Source::peek`].
    pub fn next(&mut self) -> Result<Option<u8>> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.position += 1;
            self.line += usize::from(byte == b'\n');
        }
        Ok(byte)
    }

    /// Skips white space, including line ends, then returns [`Source::peek`].
    ///
    /// # Errors
    /// Returns the errors of [`Source::peek`].
    pub fn skip_space(&mut self) -> Result<Option<u8>> {
        while self.peek()?.is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.next()?;
        }
        self.peek()
    }

    /// Appends the rest of the line without its end. Returns false at the end of the file.
    ///
    /// # Errors
    /// Returns the errors of [`Source::peek`].
    pub fn read_line(&mut self, line: &mut Vec<u8>) -> Result<bool> {
        let mut any = false;
        while self.peek()?.is_some() {
            any = true;
            let rest = &self.buffer[self.position..self.end];
            let length = rest.iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&rest[..length.unwrap_or(rest.len())]);
            self.position += length.map_or(rest.len(), |length| length + 1);
            if length.is_some() {
                self.line += 1;
                break;
            }
        }
        Ok(any)
    }

    fn fill(&mut self) -> Result<()> {
        (self.position, self.end) = (0, 0);
        let read = loop {
            match self.input.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.end = read.map_err(|error| anyhow!("{}: cannot be read: {error}", self.path.display()))?;
        Ok(())
    }
}

/// Returns bytes as text. `first_line` is the line that they start on.
///
/// # Errors
/// Returns an error if the bytes are not UTF-8. It names the line of the first invalid byte.
pub fn utf8<'b>(path: &Path, bytes: &'b [u8], first_line: usize) -> Result<&'b str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = first_line + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        anyhow!("{}: line {line} is not valid UTF-8; save the file in the encoding UTF-8", path.display())
    })
}

/// A file that reports the bytes read to the progress display.
struct Counted {
    file: File,
    progress: Option<Progress>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(progress) = &self.progress {
            progress.inc(read as u64);
        }
        Ok(read)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }
}

/// Returns the first bytes, and a reader that still yields them.
fn peeked(mut input: Box<dyn Read>, length: u64) -> io::Result<(Vec<u8>, Box<dyn Read>)> {
    let mut start = Vec::new();
    (&mut input).take(length).read_to_end(&mut start)?;
    Ok((start.clone(), Box::new(Cursor::new(start).chain(input))))
}

/// Returns a reader of UTF-8 without a byte order mark. UTF-16 without a mark is recognized by its first character,
/// which has a zero byte.
fn decoded(input: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
    let (start, mut input) = peeked(input, 3)?;
    let (mark, big_endian) = match start.as_slice() {
        [0xef, 0xbb, 0xbf] => (3, None),
        [0xff, 0xfe, ..] => (2, Some(false)),
        [0xfe, 0xff, ..] => (2, Some(true)),
        [0, second, _] if *second != 0 => (0, Some(true)),
        [first, 0, third] if *first != 0 && *third != 0 => (0, Some(false)),
        _ => (0, None),
    };
    input.read_exact(&mut vec![0; mark])?;
    Ok(match big_endian {
        None => input,
        Some(big_endian) => {
            let input = BufReader::with_capacity(PIECE, input);
            Box::new(Utf16 { input, big_endian, decoded: Vec::new(), position: 0, high: None })
        }
    })
}

/// Reader that converts UTF-16 to UTF-8.
struct Utf16 {
    input: BufReader<Box<dyn Read>>,
    big_endian: bool,
    decoded: Vec<u8>,
    position: usize,
    /// First half of a surrogate pair whose second half is in the next piece.
    high: Option<u16>,
}

impl Utf16 {
    fn decode(&mut self) -> io::Result<()> {
        self.position = 0;
        self.decoded.clear();
        let mut bytes = Vec::new();
        (&mut self.input).take(PIECE as u64).read_to_end(&mut bytes)?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not valid UTF-16");
        if !bytes.len().is_multiple_of(2) {
            return Err(invalid());
        }
        let unit = |pair: &[u8; 2]| if self.big_endian { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
        let mut units: Vec<u16> = self.high.take().into_iter().collect();
        units.extend(bytes.as_chunks().0.iter().map(unit));
        if !bytes.is_empty() {
            self.high = units.pop_if(|last| (0xd800..0xdc00).contains(last));
        }
        for decoded in char::decode_utf16(units) {
            let mut utf8 = [0; 4];
            self.decoded.extend_from_slice(decoded.map_err(|_| invalid())?.encode_utf8(&mut utf8).as_bytes());
        }
        Ok(())
    }
}

impl Read for Utf16 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.decoded.len() {
            self.decode()?;
        }
        let read = (self.decoded.len() - self.position).min(buffer.len());
        buffer[..read].copy_from_slice(&self.decoded[self.position..self.position + read]);
        self.position += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn whole(bytes: &[u8]) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.txt");
        std::fs::write(&path, bytes)?;
        let mut source = Source::open(&path, None)?;
        let (mut text, mut lines) = (Vec::new(), 0);
        while source.read_line(&mut text)? {
            text.push(b'\n');
            lines += 1;
        }
        assert!(source.line() == lines + 1 || !bytes.ends_with(b"\n"));
        Ok(utf8(&path, &text, 1)?.to_owned())
    }

    fn units(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn text_is_the_same_in_every_encoding() {
        // The text is longer than a piece, so that a surrogate pair is split.
        let text = format!("a{}\nnaïve\n", "\u{1f600}".repeat(PIECE));
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let little = [b"\xff\xfe".to_vec(), units(&text, u16::to_le_bytes)].concat();
        let stored = [
            text.clone().into_bytes(),
            format!("\u{feff}{text}").into_bytes(),
            little.clone(),
            [b"\xfe\xff".to_vec(), units(&text, u16::to_be_bytes)].concat(),
            units(&text, u16::to_le_bytes),
            units(&text, u16::to_be_bytes),
            gzip(text.as_bytes()),
            gzip(&little),
            [gzip(&text.as_bytes()[..1]), gzip(&text.as_bytes()[1..])].concat(),
        ];
        for (i, bytes) in stored.iter().enumerate() {
            assert!(whole(bytes).unwrap() == text, "{i}");
        }
        assert_eq!(whole(b"").unwrap(), "");
        assert_eq!(whole(b"a").unwrap(), "a\n");
        for damaged in [&little[..little.len() - 1], &b"\xff\xfe\x00\xdc"[..], &gzip(b"text")[..12]] {
            assert!(whole(damaged).unwrap_err().to_string().contains("a.txt: cannot be read"));
        }
    }
}
