//! PyTorch checkpoints: `pytorch_model.bin`, the format of models before safetensors.
//!
//! `torch.save` of a state dict writes a pickle that describes the tensors, and their values beside it. Since PyTorch
//! 1.6 both are entries of a zip archive; before, they follow one another in the file. The values stay in the mapped
//! file, as those of safetensors do. The pickle is read by an interpreter that supports tensors and nothing else
//! (`pickle.rs`).
//!
//! Source: `torch/serialization.py`, `_save` and `_legacy_save`.

mod archive;
mod object;
mod pickle;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use gelora_kernels::{SharedBytes, Tensor};
use gelora_lora::files;
use object::{Object, Storage, View};
use pickle::Pickle;

use crate::{Error, Result};

/// First value of the older format, an integer of ten bytes, and the version after it.
const MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const VERSION: i64 = 1001;
/// Limit on the bytes that are copied for tensors that are not contiguous or aligned, as a multiple of the file size.
/// Tied weights may be copied more than once.
const COPIES: usize = 4;
const BIG_ENDIAN: &str = "its values are big-endian; expected little-endian ones";

/// Reads the tensors of a checkpoint whose names `keep` accepts. Each is on the CPU and has its own element type
/// (Float, Half, BFloat16, Double). Tensors share the mapped file, as those of [`files::read_tensors`] do, unless their
/// values are not contiguous in it.
///
/// # Errors
/// Returns an error if the file cannot be read, is truncated or damaged, holds anything but a dictionary of tensors, or
/// a tensor that is kept is empty or has another type.
pub(crate) fn read_tensors(path: &Path, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let bytes = files::map(path)?;
    let file_error = |problem: String| Error::file(path, problem);
    let checkpoint = Checkpoint::read(bytes.bytes()).map_err(file_error)?;
    let mut copies = bytes.bytes().len().saturating_mul(COPIES);
    let mut tensors = BTreeMap::new();
    for (name, object) in checkpoint.entries().map_err(file_error)? {
        if !keep(name) {
            continue;
        }
        let Object::Tensor(view) = object else {
            return Err(file_error(format!("{name:?} is {}; {EXPECTED}", object.name())));
        };
        let tensor = checkpoint.tensor(view, &bytes, &mut copies);
        tensors.insert(name.to_owned(), tensor.map_err(|problem| file_error(format!("tensor {name} {problem}")))?);
    }
    Ok(tensors)
}

const EXPECTED: &str = "expected tensors by their names, as model.state_dict() gives them";

/// A checkpoint: the pickled dictionary, and the byte ranges of its storages.
struct Checkpoint<'a> {
    pickle: Pickle<'a>,
    places: BTreeMap<&'a str, Range<usize>>,
}

impl<'a> Checkpoint<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if archive::is_archive(bytes) { Self::from_archive(bytes) } else { Self::from_sequence(bytes) }
    }

    /// Reads an archive with the entries NAME/data.pkl and NAME/data/KEY.
    fn from_archive(bytes: &'a [u8]) -> Result<Self, String> {
        let entries = archive::entries(bytes)?;
        let end = "/data.pkl";
        let Some((name, place)) = entries.iter().find(|(name, _)| name.ends_with(end)) else {
            return Err("a zip archive without data.pkl; expected a checkpoint of PyTorch".into());
        };
        let folder = &name[..name.len() - end.len()];
        let order = entries.get(format!("{folder}/byteorder").as_str());
        if order.is_some_and(|place| &bytes[place.clone()] != b"little") {
            return Err(BIG_ENDIAN.into());
        }
        let pickle = Pickle::read(&bytes[place.clone()])?;
        let inside = format!("{folder}/data/");
        let places = entries.iter().filter_map(|(name, place)| Some((name.strip_prefix(&inside)?, place.clone())));
        Ok(Self { pickle, places: places.collect() })
    }

    /// Reads the older format. It is a sequence of pickles (magic number, version, facts about the machine that wrote
    /// it, dictionary, keys of the storages), followed by the storages, each with its number of values first.
    fn from_sequence(bytes: &'a [u8]) -> Result<Self, String> {
        let mut at = 0;
        let mut next = || -> Result<Pickle<'a>, String> {
            let pickle = Pickle::read(&bytes[at..])?;
            at += pickle.length;
            Ok(pickle)
        };
        let magic = next();
        if !magic.as_ref().is_ok_and(|magic| matches!(magic.root(), Object::Long(MAGIC))) {
            return Err("not a checkpoint of PyTorch".into());
        }
        if !matches!(next()?.root(), Object::Int(VERSION)) {
            return Err(format!("a checkpoint of another version of PyTorch's format; expected {VERSION}"));
        }
        let machine = next()?;
        if let Object::Dict(facts) = machine.root() {
            let mut facts = facts.iter().map(|(fact, value)| (machine.get(*fact), machine.get(*value)));
            if facts.any(|fact| matches!(fact, (Object::Text("little_endian"), Object::Bool(false)))) {
                return Err(BIG_ENDIAN.into());
            }
        }
        // The dictionary, and the keys of the storages in file order.
        let (pickle, keys) = (next()?, next()?);
        let Object::List(listed) = keys.root() else { return Err("the list of its storages is missing".into()) };
        let storages = pickle.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some((storage.key, &**storage)),
            _ => None,
        });
        let storages: BTreeMap<&str, &Storage<'_>> = storages.collect();
        let mut places = BTreeMap::new();
        for key in listed {
            let Object::Text(key) = keys.get(*key) else { return Err("a storage without a name".into()) };
            let storage = storages.get(key).ok_or_else(|| format!("no tensor uses the storage {key}"))?;
            let range = bytes[at..].split_first_chunk::<8>().and_then(|(count, _)| {
                let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
                let begin = at + 8;
                Some(begin..begin.checked_add(count.checked_mul(storage.kind.size)?)?)
            });
            let range = range.filter(|range| range.end <= bytes.len());
            let place =
                range.ok_or_else(|| format!("truncated: its values end beyond the file's {} bytes", bytes.len()))?;
            at = place.end;
            places.insert(*key, place);
        }
        Ok(Self { pickle, places })
    }

    /// Returns the entries of the dictionary.
    fn entries(&self) -> Result<Vec<(&'a str, &Object<'a>)>, String> {
        let Object::Dict(entries) = self.pickle.root() else {
            return Err(format!("holds {}; {EXPECTED}", self.pickle.root().name()));
        };
        let entry = |(key, value): &(u32, u32)| match self.pickle.get(*key) {
            Object::Text(name) => Ok((*name, self.pickle.get(*value))),
            other => Err(format!("holds a dictionary with {} among its keys; {EXPECTED}", other.name())),
        };
        entries.iter().map(entry).collect()
    }

    fn tensor(&self, view: &View, bytes: &SharedBytes, copies: &mut usize) -> Result<Tensor, String> {
        let View { storage, offset, shape, stride } = view;
        let Object::Storage(storage) = self.pickle.get(*storage) else { return Err("has no storage".into()) };
        let (kind, size) = (storage.kind, storage.kind.size);
        if shape.contains(&0) {
            return Err(format!("is empty: shape {shape:?}"));
        }
        let dtype = kind
            .dtype
            .ok_or_else(|| format!("is of the type {}; expected Float, Half, BFloat16 or Double", kind.name))?;
        let place = self.places.get(storage.key).ok_or("has no values in this file")?;
        let stored = storage.len.min(place.len() / size);
        let outside = || format!("ends beyond its storage, which has {stored} values");
        let dims = || shape.iter().zip(stride);
        // Index of the last value.
        let last = dims().try_fold(*offset, |at, (n, stride)| at.checked_add((n - 1).checked_mul(*stride)?));
        last.filter(|last| *last < stored).ok_or_else(outside)?;
        let count = shape.iter().try_fold(1, |n: usize, d| n.checked_mul(*d)).ok_or_else(outside)?;
        let mut follows = 1;
        // Row-major strides: each is the product of the sizes after it. Sizes of 1 may have any stride.
        let contiguous = dims().rev().all(|(n, stride)| {
            let is_contiguous = *n == 1 || *stride == follows;
            follows *= n; // at most count
            is_contiguous
        });
        let begin = place.start + offset * size;
        if !contiguous || !begin.is_multiple_of(size) {
            *copies = count.checked_mul(size).and_then(|n| copies.checked_sub(n)).ok_or_else(|| {
                format!("would have {count} values that are not contiguous, in a file of {} bytes", bytes.bytes().len())
            })?;
        }
        // Share the mapped file if possible, else copy.
        let tensor = if contiguous {
            Tensor::from_bytes(bytes.clone(), begin..begin + count * size, dtype, shape.as_slice())
        } else {
            let dims: Vec<_> = dims().filter(|(n, _)| **n > 1).collect();
            let values = gather(&bytes.bytes()[place.clone()], size, *offset, &dims, count);
            Tensor::from_bytes(Arc::new(values), 0..count * size, dtype, shape.as_slice())
        };
        tensor.map_err(|error| error.to_string())
    }
}

/// Copies the values of a tensor in row-major order. `dims` holds sizes and strides.
fn gather(bytes: &[u8], size: usize, offset: usize, dims: &[(&usize, &usize)], count: usize) -> Vec<u8> {
    let mut values = Vec::with_capacity(count * size);
    let (mut index, mut at) = (vec![0; dims.len()], offset);
    for _ in 0..count {
        values.extend_from_slice(&bytes[at * size..][..size]);
        for (i, (n, stride)) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            at += **stride;
            if *i < **n {
                break;
            }
            at -= **n * **stride;
            *i = 0;
        }
    }
    values
}

#[cfg(test)]
mod tests;
