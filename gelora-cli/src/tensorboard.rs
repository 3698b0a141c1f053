//! Event files of TensorBoard: scalars of a training, as `gelora train --tensorboard` writes them.
//!
//! A file is a sequence of records. A record is
//!
//! ```text
//! length of the data         u64, little-endian, as all numbers here
//! masked CRC-32C of the length   u32
//! data                       an `Event` in the encoding of protocol buffers
//! masked CRC-32C of the data     u32
//! mask(crc) = (crc rotated right by 15 bits) + 0xa282ead8
//! ```
//!
//! The fields of the messages that are written, with their numbers:
//!
//! ```text
//! Event         wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 (Summary),
//!               session_log = 7 (SessionLog)
//! Summary       value = 1 (Value, repeated)
//! Value         tag = 1 (string), simple_value = 2 (float)
//! SessionLog    status = 1 (enum; START = 1)
//! ```
//!
//! A training that resumes adds a file, which begins with a `SessionLog` of its first step: readers then drop what
//! earlier files have of that step and later ones. Readers take the files of a folder in the order of their names.
//!
//! Source: TensorFlow, `tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto` and
//! `tensorflow/core/framework/summary.proto`; TensorBoard, `backend/event_processing/event_accumulator.py` (`_Purge`).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use crc::{CRC_32_ISCSI, Crc};

use crate::output;

/// Pattern of the names of files that this program writes: the first `*` is the time at which the file begins, the
/// second one the number of such files before it.
pub const EVENT_FILES: &str = "events.out.tfevents.*.gelora.*";

/// CRC-32C, which catalogs call CRC-32/ISCSI.
const CRC_32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Version of the format of events.
const VERSION: &str = "brain.Event:2";

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins an event file in a folder. `first` is the number of steps before this run; above 0, the file begins with
    /// the note that everything from step `first + 1` on was written anew.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be listed or the file cannot be written.
    pub fn create(folder: &Path, first: usize) -> Result<Self> {
        let before = event_files(folder)?.len();
        let seconds = wall_time() as u64;
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.gelora.{before}"));
        let file = File::options().write(true).create_new(true).open(&path);
        let mut events = Self { file: file.with_context(|| path.display().to_string())?, path };
        events.write(&Event::new(0).string(3, VERSION))?;
        if first > 0 {
            events.write(&Event::new(first + 1).message(7, &Message::default().varint(1, 1)))?;
        }
        Ok(events)
    }

    /// Writes scalars of a step, which is counted from 1.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn scalars<'t>(&mut self, step: usize, values: impl IntoIterator<Item = (&'t str, f64)>) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            summary = summary.message(1, &Message::default().string(1, tag).float(2, value as f32));
        }
        self.write(&Event::new(step).message(5, &summary))
    }

    /// Writes a record with one call, so that a run that is killed leaves whole records.
    fn write(&mut self, event: &Message) -> Result<()> {
        self.file.write_all(&record(&event.0)).with_context(|| self.path.display().to_string())
    }
}

/// Removes the event files of an earlier training.
///
/// # Errors
/// Returns an error if the folder cannot be listed or a file cannot be removed.
pub fn remove_event_files(folder: &Path) -> Result<()> {
    for path in event_files(folder)? {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Returns the event files in a folder.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        if output::matches(EVENT_FILES, &entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Returns the seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Frames data as a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    CRC_32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// A message of protocol buffers under construction.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

/// The message `Event`.
struct Event;

impl Event {
    /// Returns an event of a step at this moment.
    #[allow(clippy::new_ret_no_self)]
    fn new(step: usize) -> Message {
        let time = Message::default().key(1, FIXED_64).bytes(&wall_time().to_le_bytes());
        time.varint(2, step as u64)
    }
}

impl Message {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends an integer, seven bits a byte, the lowest first; the highest bit says that more follow.
    fn raw_varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.raw_varint(field << 3 | wire_type)
    }

    fn varint(self, field: u64, value: u64) -> Self {
        self.key(field, VARINT).raw_varint(value)
    }

    fn float(self, field: u64, value: f32) -> Self {
        self.key(field, FIXED_32).bytes(&value.to_le_bytes())
    }

    fn string(self, field: u64, text: &str) -> Self {
        self.key(field, BYTES).raw_varint(text.len() as u64).bytes(text.as_bytes())
    }

    fn message(self, field: u64, message: &Message) -> Self {
        self.key(field, BYTES).raw_varint(message.0.len() as u64).bytes(&message.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_published_vectors() {
        // RFC 3720, B.4: 32 bytes of zeros, and of ones.
        assert_eq!(CRC_32C.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(CRC_32C.checksum(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn messages_have_the_published_encoding() {
        // Protocol buffers, "Encoding": field 1 = 150 is 08 96 01; field 2 = "testing" is 12 07 and the text.
        assert_eq!(Message::default().varint(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().string(2, "testing").0, *b"\x12\x07testing");
        assert_eq!(Message::default().float(2, 1.0).0, [0x15, 0, 0, 0x80, 0x3f]);
    }

    #[test]
    fn files_are_numbered_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let others = ["metrics.jsonl", "events.out.tfevents.1700000000.host.7"];
        others.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        EventFile::create(folder.path(), 0).unwrap().scalars(1, [("train/loss", 0.5)]).unwrap();
        EventFile::create(folder.path(), 3).unwrap();
        let mut names: Vec<PathBuf> = event_files(folder.path()).unwrap();
        names.sort();
        assert_eq!(names.len(), 2);
        assert!(names[0].to_string_lossy().ends_with(".gelora.0") && names[1].to_string_lossy().ends_with(".gelora.1"));
        remove_event_files(folder.path()).unwrap();
        assert_eq!(event_files(folder.path()).unwrap().len(), 0);
        assert!(others.iter().all(|name| folder.path().join(name).is_file()));
    }
}
