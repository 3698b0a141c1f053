//! An independent reader of TensorBoard's event files: checks both checksums of every record and returns its scalars.

use std::path::{Path, PathBuf};

/// An event: its step, the file version, whether it begins a session, and its scalars.
#[derive(Debug, Default, PartialEq)]
pub struct Event {
    pub wall_time: f64,
    pub step: u64,
    pub version: Option<String>,
    pub starts: bool,
    pub scalars: Vec<(String, f32)>,
}

/// The event files of a folder, in the order in which TensorBoard reads them.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("tfevents")))
        .collect();
    files.sort();
    files
}

/// CRC-32C from its definition, bit by bit: polynomial 0x1EDC6F41, reflected, all ones before and after.
fn crc_32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn unmasked(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// Bytes that are read from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Calls `visit` with the number and the value of every field of a message.
fn fields<'a>(message: &'a [u8], mut visit: impl FnMut(u64, Field<'a>)) {
    let mut bytes = Bytes(message);
    while !bytes.0.is_empty() {
        let key = bytes.varint();
        let value = match key & 7 {
            0 => Field::Number(bytes.varint()),
            1 => Field::Number(bytes.u64()),
            2 => {
                let length = bytes.varint() as usize;
                Field::Bytes(bytes.take(length))
            }
            5 => Field::Number(bytes.u32().into()),
            other => panic!("wire type {other}"),
        };
        visit(key >> 3, value);
    }
}

fn event(message: &[u8]) -> Event {
    let mut event = Event::default();
    fields(message, |number, value| match (number, value) {
        (1, Field::Number(bits)) => event.wall_time = f64::from_bits(bits),
        (2, Field::Number(step)) => event.step = step,
        (3, Field::Bytes(text)) => event.version = Some(String::from_utf8(text.to_vec()).expect("UTF-8")),
        (5, Field::Bytes(summary)) => fields(summary, |_, value| {
            let Field::Bytes(value) = value else { panic!("a value is a message") };
            let (mut tag, mut number) = (None, None);
            fields(value, |field, value| match (field, value) {
                (1, Field::Bytes(text)) => tag = Some(String::from_utf8(text.to_vec()).expect("UTF-8")),
                (2, Field::Number(bits)) => number = Some(f32::from_bits(bits as u32)),
                (other, _) => panic!("field {other} of a value"),
            });
            event.scalars.push((tag.expect("a tag"), number.expect("a number")));
        }),
        (7, Field::Bytes(log)) => fields(log, |field, value| {
            event.starts = field == 1 && matches!(value, Field::Number(1));
        }),
        (other, _) => panic!("field {other} of an event"),
    });
    event
}

/// Reads the events of a file.
pub fn read(path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).expect("a file");
    let (mut rest, mut events) = (Bytes(&bytes), Vec::new());
    while !rest.0.is_empty() {
        let length = rest.take(8);
        assert_eq!(unmasked(rest.u32()), crc_32c(length), "checksum of a length in {}", path.display());
        let data = rest.take(u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize);
        assert_eq!(unmasked(rest.u32()), crc_32c(data), "checksum of the data in {}", path.display());
        events.push(event(data));
    }
    events
}

/// Returns the scalars of a folder as TensorBoard has them: an event that begins a session removes what earlier files
/// have of its step and later ones.
pub fn scalars(folder: &Path) -> Vec<(u64, String, f32)> {
    let mut all: Vec<(u64, String, f32)> = Vec::new();
    for event in files(folder).iter().flat_map(|path| read(path)) {
        if event.starts {
            all.retain(|(step, ..)| *step < event.step);
        }
        all.extend(event.scalars.into_iter().map(|(tag, value)| (event.step, tag, value)));
    }
    all
}
