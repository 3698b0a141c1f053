//! Reads the JSON values of a file one after another, each with the line on which it starts. Supported layouts: one
//! value per line, a list, a list inside an object such as `{"data": [...]}`, and objects that span several lines.
//!
//! The file is split here rather than by serde, so that it is never kept in memory as a whole and a broken value does
//! not affect others.

use anyhow::{Result, bail};

use super::super::source::Source;

/// Keys under which an object may hold the list of rows.
const WRAPPERS: [&str; 10] =
    ["data", "rows", "examples", "instances", "items", "records", "samples", "train", "validation", "test"];

/// Layout of the values in the file.
enum Layout {
    Lines,
    /// `wrapped`: the list is inside an object. `begun`: a value was read.
    List {
        wrapped: bool,
        begun: bool,
    },
    /// Values are separated by white space.
    Stream,
    Done,
}

/// Values of a file.
pub struct Values {
    source: Source,
    layout: Layout,
    /// Value that was read to find the layout, with its line.
    first: Option<(usize, Vec<u8>)>,
}

impl Values {
    /// Opens a source and finds its layout.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is empty.
    pub fn open(mut source: Source) -> Result<Self> {
        let Some(start) = source.skip_space()? else { bail!("{}: the file is empty", source.path().display()) };
        let (layout, first) = match start {
            b'[' => {
                source.next()?;
                (Layout::List { wrapped: false, begun: false }, None)
            }
            b'{' => {
                let line = source.line();
                let mut bytes = Vec::new();
                let layout = first_object(&mut source, &mut bytes)?;
                let is_row = !matches!(layout, Layout::List { .. });
                (layout, is_row.then_some((line, bytes)))
            }
            _ => (Layout::Lines, None),
        };
        Ok(Self { source, layout, first })
    }

    /// Reads the next value into `value`. Returns its line, or None at the end.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or if the text between two values is invalid.
    pub fn next(&mut self, value: &mut Vec<u8>) -> Result<Option<usize>> {
        value.clear();
        if let Some((line, bytes)) = self.first.take() {
            *value = bytes;
            return Ok(Some(line));
        }
        match self.layout {
            Layout::Done => Ok(None),
            Layout::Lines => loop {
                let line = self.source.line();
                value.clear();
                if !self.source.read_line(value)? {
                    return Ok(None);
                }
                if !value.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            },
            Layout::Stream => {
                let found = self.source.skip_space()?.is_some();
                if found { self.value(value).map(Some) } else { Ok(None) }
            }
            Layout::List { wrapped, begun } => self.in_list(value, wrapped, begun),
        }
    }

    fn in_list(&mut self, value: &mut Vec<u8>, wrapped: bool, begun: bool) -> Result<Option<usize>> {
        let mut next = self.source.skip_space()?;
        if begun && next == Some(b',') {
            self.source.next()?;
            next = self.source.skip_space()?;
        } else if next == Some(b']') {
            self.source.next()?;
            self.layout = Layout::Done;
            if !wrapped && self.source.skip_space()?.is_some() {
                return self.invalid("text after the end of the list");
            }
            return Ok(None);
        } else if begun && next.is_some() {
            return self.invalid("expected `,` or `]` after an object");
        }
        if next.is_none() {
            let line = self.source.line();
            bail!("{}: line {line} ends a list that has no closing bracket", self.source.path().display());
        }
        self.layout = Layout::List { wrapped, begun: true };
        self.value(value).map(Some)
    }

    /// Reads one value. Brackets and quotes determine its end.
    fn value(&mut self, value: &mut Vec<u8>) -> Result<usize> {
        let line = self.source.line();
        let (mut depth, mut text) = (0_usize, StringState::default());
        while let Some(byte) = self.source.peek()? {
            let outside = !text.inside;
            let ends = match byte {
                b']' | b'}' | b',' => true,
                _ => byte.is_ascii_whitespace(),
            };
            if outside && depth == 0 && ends {
                break;
            }
            self.source.next()?;
            value.push(byte);
            text.pass(byte);
            match byte {
                b'{' | b'[' if outside => depth += 1,
                b'}' | b']' if outside => depth -= 1,
                _ => continue,
            }
            if depth == 0 {
                break;
            }
        }
        if value.is_empty() {
            return self.invalid("expected value");
        }
        Ok(line)
    }

    fn invalid<T>(&self, what: &str) -> Result<T> {
        bail!("{}: line {} is not valid JSON: {what}", self.source.path().display(), self.source.line())
    }
}

/// Tracks whether a byte is inside a string.
#[derive(Default)]
struct StringState {
    inside: bool,
    escaped: bool,
}

impl StringState {
    fn pass(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.inside => self.escaped = true,
            b'"' => self.inside = !self.inside,
            _ => {}
        }
    }
}

/// Reads the first object, or the text up to the first value of a list of rows inside it.
fn first_object(source: &mut Source, object: &mut Vec<u8>) -> Result<Layout> {
    let (mut depth, mut text, mut several_lines) = (0_usize, StringState::default(), false);
    // Start of the last string, and range of the last key at the top level.
    let (mut string, mut name) = (0, None);
    while let Some(byte) = source.next()? {
        if byte == b'\n' && !several_lines {
            let before = object.trim_ascii_end().last();
            if text.inside || !before.is_some_and(|last| b"{[,:".contains(last)) {
                return Ok(Layout::Lines);
            }
            several_lines = true;
        }
        let outside = !text.inside;
        text.pass(byte);
        object.push(byte);
        match byte {
            b'"' if outside => string = object.len(),
            b':' if outside && depth == 1 => name = Some(string..object.trim_ascii_end().len()),
            b'[' if outside && depth == 1 => {
                depth += 1;
                let name = name.take().map(|range| object[range].to_vec()).unwrap_or_default();
                let name = String::from_utf8_lossy(&name).into_owned();
                let name = name.trim_end_matches([':', ' ', '\t', '\r', '\n']).trim_end_matches('"').to_owned();
                if WRAPPERS.contains(&name.as_str()) {
                    while let Some(space) = source.peek()?.filter(u8::is_ascii_whitespace) {
                        several_lines |= space == b'\n';
                        object.push(space);
                        source.next()?;
                    }
                    if source.peek()? == Some(b'{') {
                        return Ok(Layout::List { wrapped: true, begun: false });
                    }
                }
            }
            b'{' | b'[' if outside => depth += 1,
            b'}' | b']' if outside => depth = depth.saturating_sub(1),
            _ => {}
        }
        if outside && depth == 0 {
            break;
        }
    }
    // Another object on the same line makes the file a stream; any other text belongs to the line.
    while let Some(space) = source.peek()?.filter(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
        source.next()?;
        object.push(space);
    }
    let next = source.peek()?;
    if several_lines || next == Some(b'{') {
        return Ok(Layout::Stream);
    }
    source.read_line(object)?;
    Ok(Layout::Lines)
}
