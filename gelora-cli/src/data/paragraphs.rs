//! Reader of `.txt` files: a running text, split after its blank lines.

use std::path::Path;

use anyhow::{Result, bail};

use super::columns::Columns;
use super::source::{Source, utf8};
use super::{Dataset, Example};

/// Reads the paragraphs. Together they are the whole text. The line of a paragraph is that of its first word.
///
/// # Errors
/// Returns an error if the file cannot be read, is not UTF-8 or has no text.
pub fn read(path: &Path, label: Option<&str>, data: &mut Dataset) -> Result<()> {
    let mut source = Source::open(path, label)?;
    data.begin(path);
    data.running = true;
    data.columns = Columns { text: "text".into(), all: vec!["text".into()], ..Columns::default() };
    let (mut paragraph, mut first_line, mut in_paragraph) = (String::new(), 0, false);
    let mut bytes = Vec::new();
    loop {
        let line = source.line();
        bytes.clear();
        if !source.read_line(&mut bytes)? {
            break;
        }
        let ended = source.line() > line;
        let text = utf8(path, &bytes, line)?;
        let is_blank = text.trim().is_empty();
        if !is_blank && !in_paragraph && first_line > 0 {
            data.read += 1;
            data.push(Example { text: std::mem::take(&mut paragraph), ..Example::default() }, first_line);
            first_line = 0;
        }
        if !is_blank && first_line == 0 {
            first_line = line;
        }
        paragraph.push_str(text);
        if ended {
            paragraph.push('\n');
        }
        in_paragraph = !is_blank;
    }
    if first_line == 0 {
        bail!("{}: the file has no text", path.display());
    }
    data.read += 1;
    data.push(Example { text: paragraph, ..Example::default() }, first_line);
    Ok(())
}
