//! The directory of a zip archive with uncompressed entries: the byte range of each entry.
//!
//! The zip crate copies entries and allocates memory for the number of entries that a file claims to have. Here entries
//! stay in the mapped file, and memory is bounded by the length of the directory.
//!
//! Source: PKWARE's APPNOTE.TXT, 4.3. The archive has entries with local headers, a directory of them, and an end
//! record. Sizes that do not fit into 32 bits are in an extra field (zip64), which PyTorch always writes for the end
//! record.

use std::collections::BTreeMap;
use std::ops::Range;

const LOCAL: &[u8] = b"PK\x03\x04";
const ENTRY: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
/// Length of the end record. A comment of at most 65535 bytes follows it.
const END_LENGTH: usize = 22;
const MAX_COMMENT: usize = 0xffff;
/// Value of a field whose number does not fit and is in the extra field.
const IN_EXTRA_FIELD: usize = 0xffff_ffff;

/// Whether these are the bytes of an archive.
pub fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL)
}

/// Returns the entries of an archive with their byte ranges.
///
/// # Errors
/// Returns an error if the archive is truncated or damaged, or an entry is compressed.
pub fn entries(bytes: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, String> {
    let directory = directory(bytes).ok_or("truncated: its directory, which is at the end of the file, is missing")?;
    let mut found = BTreeMap::new();
    let mut rest = bytes.get(directory).ok_or("damaged: its directory is not inside the file")?;
    while !rest.is_empty() {
        let (entry, length) = Entry::parse(rest).ok_or("damaged: its directory cannot be read")?;
        let name = std::str::from_utf8(entry.name).map_err(|_| "damaged: the name of an entry is not UTF-8")?;
        if entry.method != 0 {
            return Err(format!("the entry {name:?} is compressed; PyTorch stores entries uncompressed"));
        }
        let place = entry.place(bytes).ok_or_else(|| format!("truncated: the entry {name:?} is incomplete"))?;
        found.insert(name, place);
        rest = &rest[length..];
    }
    Ok(found)
}

/// Returns the byte range of the directory.
fn directory(bytes: &[u8]) -> Option<Range<usize>> {
    let last = bytes.len().checked_sub(END_LENGTH)?;
    let earliest = last.saturating_sub(MAX_COMMENT);
    let end = (earliest..=last).rev().find(|at| bytes[*at..].starts_with(END))?;
    let (mut size, mut begin) = (u32_at(bytes, end + 12)?, u32_at(bytes, end + 16)?);
    let locator = end.checked_sub(20).filter(|at| bytes[*at..].starts_with(LOCATOR64));
    if let Some(locator) = locator {
        let end64 = u64_at(bytes, locator + 8)?;
        bytes.get(end64..).filter(|record| record.starts_with(END64))?;
        (size, begin) = (u64_at(bytes, end64.checked_add(40)?)?, u64_at(bytes, end64.checked_add(48)?)?);
    }
    Some(begin..begin.checked_add(size)?)
}

/// An entry of the directory.
struct Entry<'a> {
    name: &'a [u8],
    method: usize,
    size: usize,
    local: usize,
}

impl<'a> Entry<'a> {
    /// Reads the first entry in a part of the directory. Returns it with its length in bytes.
    fn parse(bytes: &'a [u8]) -> Option<(Self, usize)> {
        bytes.starts_with(ENTRY).then_some(())?;
        let method = u16_at(bytes, 10)?;
        let (mut stored, mut size, mut local) = (u32_at(bytes, 20)?, u32_at(bytes, 24)?, u32_at(bytes, 42)?);
        let name = 46 + u16_at(bytes, 28)?;
        let extra = name + u16_at(bytes, 30)?;
        let end = extra + u16_at(bytes, 32)?;
        bytes.get(..end)?;
        let mut fields = &bytes[name..extra];
        while fields.len() >= 4 {
            let (kind, length) = (u16_at(fields, 0)?, u16_at(fields, 2)?);
            let field = fields.get(4..4 + length)?;
            if kind == 1 {
                // The extra field holds, in this order, only the numbers that do not fit.
                let mut at = 0;
                for number in [&mut size, &mut stored, &mut local] {
                    if *number == IN_EXTRA_FIELD {
                        *number = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            fields = &fields[4 + length..];
        }
        (stored == size || method != 0).then_some((Self { name: &bytes[46..name], method, size, local }, end))
    }

    /// Returns the byte range of the entry. Its bytes follow a local header, whose length may differ from the
    /// directory's.
    fn place(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let header = bytes.get(self.local..).filter(|header| header.starts_with(LOCAL))?;
        let skipped = 30 + u16_at(header, 26)? + u16_at(header, 28)?;
        let begin = self.local.checked_add(skipped)?;
        let end = begin.checked_add(self.size)?;
        (end <= bytes.len()).then_some(begin..end)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    array(bytes, at).map(|b| usize::from(u16::from_le_bytes(b)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(array(bytes, at)?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(array(bytes, at)?)).ok()
}
