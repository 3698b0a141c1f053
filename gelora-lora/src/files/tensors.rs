//! The safetensors format.
//!
//! Source: <https://github.com/huggingface/safetensors#format>: 8 bytes with the header's length, the header as JSON,
//! then the tensors' little-endian values without gaps.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use gelora_kernels::{Bytes, DType, Device, SharedBytes, Tensor};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{check_downloaded, write_with};
use crate::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("the values of safetensors files are little-endian, and are used as they are");

/// The longest header that is read, in bytes; the limit of the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// Reads the tensors of a safetensors file whose names `keep` accepts, each on the CPU and in its own element type
/// (F32, F16, BF16, F64).
///
/// The file is mapped, and the tensors share the map: a value is read from the disk when it is first used, and a tensor
/// is copied when it is first written to.
///
/// # Contract
/// Nobody may write into the file or shorten it while a tensor from it is alive. This function cannot check that, and
/// it is not `unsafe` only because every reader of models makes the same assumption. Writing into the file changes the
/// tensors, and shortening it ends this process with SIGBUS when a lost value is used. Replacing the file (as all
/// writes of [`super`] do) or removing it is safe, because the map keeps the old file; Windows refuses both.
///
/// # Errors
/// If the file cannot be read, is damaged, or a tensor that is kept is empty or of another type (integers, F8).
///
/// ```no_run
/// let path = "model/model.safetensors".as_ref();
/// let weights = gelora_lora::files::read_tensors(path, |name| !name.ends_with("position_ids"))?;
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn read_tensors(path: &Path, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    tensors_of(path, map(path)?, keep)
}

/// The position of a tensor of any type in a safetensors file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name of the tensor.
    pub name: String,
    /// The element type as the file names it, such as `U8`.
    pub dtype: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub range: Range<usize>,
}

/// Maps a safetensors file and returns the position of each of its tensors, sorted by name. It serves formats whose
/// types [`read_tensors`] does not take, such as the integers of quantized weights. The contract of [`read_tensors`]
/// applies.
///
/// # Errors
/// If the file cannot be read or is damaged.
pub fn read_entries(path: &Path) -> Result<(SharedBytes, Vec<Entry>)> {
    let bytes = map(path)?;
    let (metadata, data) = header_of(bytes.bytes()).map_err(|problem| Error::file(path, problem))?;
    let start = bytes.bytes().len() - data.len();
    let entry = |(name, info): (String, &TensorInfo)| {
        let (begin, end) = info.data_offsets;
        Entry { name, dtype: info.dtype.to_string(), shape: info.shape.clone(), range: start + begin..start + end }
    };
    let mut entries: Vec<Entry> = metadata.tensors().into_iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((bytes, entries))
}

/// Maps the bytes of a file. The contract of [`read_tensors`] applies: nobody may write into the file or shorten it
/// while the bytes are in use.
///
/// # Errors
/// If the file cannot be read, is empty or is not a regular file; or as [`check_downloaded`].
pub fn map(path: &Path) -> Result<SharedBytes> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "expected a file, got a folder or device"));
    }
    if metadata.len() == 0 {
        return Err(Error::file(path, "0 bytes long")); // which cannot be mapped
    }
    // SAFETY: the map is only read. The caller keeps others from changing the file, as the contract above demands;
    // every reader that does not copy files of gigabytes depends on that.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    check_downloaded(path, &map)?;
    Ok(Arc::new(Mapped(map)))
}

/// A mapped file.
struct Mapped(Mmap);

impl Bytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn set_aside(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // The range is widened to whole pages. Bytes of other tensors on them are read again when they are used.
            // SAFETY: the map is of a file and only read, so dropped pages come back from the file unchanged.
            let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

fn tensors_of(path: &Path, bytes: SharedBytes, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let (metadata, data) = header_of(bytes.bytes()).map_err(|problem| Error::file(path, problem))?;
    let start = bytes.bytes().len() - data.len();
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        if !keep(&name) {
            continue;
        }
        if info.shape.contains(&0) {
            return Err(Error::tensor(path, &name, format!("is empty: shape {:?}", info.shape)));
        }
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => return Err(Error::tensor(path, &name, format!("expected F32, F16, BF16 or F64, got {other}"))),
        };
        // `header_of` has checked that the offsets are inside the file; the tensor checks them again.
        let (begin, end) = info.data_offsets;
        let tensor = Tensor::from_bytes(bytes.clone(), start + begin..start + end, dtype, info.shape.as_slice())?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The header, and the bytes after it. The header must account for every byte. `SafeTensors::deserialize` is not used:
/// its sum of sizes overflows (a panic in debug builds) on a hostile header.
fn header_of(bytes: &[u8]) -> Result<(Metadata, &[u8]), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("not a safetensors file: {} bytes long", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("not a safetensors file: its header would be {length} bytes long"));
    }
    // The length is at most MAX_HEADER, so it fits.
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(format!("truncated: the header has {length} bytes, the file {} after it begins", rest.len()));
    };
    // This also checks that the shapes fit the sizes and that the tensors follow one another without gaps.
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("the safetensors header is invalid: {error}"))?;
    let (expected, got) = (metadata.data_len(), data.len());
    match expected == got {
        true => Ok((metadata, data)),
        false if got < expected => Err(format!("truncated: {got} of {expected} bytes of values")),
        false => Err(format!("expected {expected} bytes of values, got {got}")),
    }
}

/// Writes a safetensors file atomically (see [`super`]), each tensor in its own element type, with the metadata
/// `{"format": "pt"}` that transformers requires. A tensor on a GPU is fetched first, as f32. A quantized tensor is
/// written in the type that holds its values ([`DType::unquantized`]).
///
/// # Errors
/// If two tensors have one name, a device fails, or the file cannot be written; a previous file is then untouched.
pub fn write_tensors<'a, N: Into<String>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Result<()> {
    let mut on_cpu = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name.into();
        if on_cpu.contains_key(&name) || name == "__metadata__" {
            return Err(Error::tensor(path, &name, "the name is taken already"));
        }
        let tensor = tensor.to_device(&Device::Cpu)?;
        let tensor = tensor.to_dtype(tensor.dtype().unquantized())?;
        on_cpu.insert(name, tensor);
    }
    // As the format's own writer orders them: by descending alignment, then by name.
    let mut ordered: Vec<(Dtype, &String, &Tensor)> = on_cpu.iter().map(|(n, t)| (dtype_of(t), n, t)).collect();
    ordered.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let (mut infos, mut end) = (Vec::with_capacity(ordered.len()), 0);
    for &(dtype, name, tensor) in &ordered {
        let data_offsets = (end, end + tensor.bytes()?.len());
        end = data_offsets.1;
        infos.push((name.clone(), TensorInfo { dtype, shape: tensor.shape().to_vec(), data_offsets }));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|error| Error::file(path, error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| Error::file(path, error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let values = ordered.iter().map(|(_, _, tensor)| tensor.bytes()).collect::<Result<Vec<_>, _>>()?;
    write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        values.iter().try_for_each(|bytes| file.write_all(bytes))
    })
}

fn dtype_of(tensor: &Tensor) -> Dtype {
    match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        _ => unreachable!("quantized tensors were made f32"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{read_bytes, write_atomic};
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A file of this header and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn check(bytes: &[u8], expected: &str) {
        let error =
            tensors_of("hostile.safetensors".as_ref(), Arc::new(bytes.to_vec()), |_| true).unwrap_err().to_string();
        assert!(error.starts_with("hostile.safetensors: ") && error.contains(expected), "{error}");
    }

    #[test]
    fn hostile_files() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(tensors_of("f".as_ref(), Arc::new(file(one, &[0; 8])), |_| true).unwrap()["a"].shape(), [2]);
        check(&[], "0 bytes long");
        check(&[1, 2, 3], "3 bytes long");
        check(&u64::MAX.to_le_bytes(), "header would be 18446744073709551615 bytes");
        check(&1000u64.to_le_bytes(), "truncated: the header has 1000 bytes");
        check(&file("", &[]), "header is invalid: EOF");
        check(&file("not json", &[]), "header is invalid: expected");
        check(&file(&"[".repeat(10_000), &[]), "header is invalid");
        check(&file(&format!(r#"{{"a":{}"#, "[".repeat(10_000)), &[]), "header is invalid");
        check(&[&1u64.to_le_bytes()[..], &[0xff]].concat(), "header is invalid");
        check(&file(one, &[0; 7]), "truncated: 7 of 8 bytes of values");
        check(&file(one, &[0; 9]), "expected 8 bytes of values, got 9");
        check(&file(&one.replace("[2]", "[3]"), &[0; 8]), "invalid shape");
        check(&file(&one.replace("[2]", "[-2]"), &[0; 8]), "header is invalid: invalid value");
        check(&file(&one.replace("[0,8]", "[8,0]"), &[0; 8]), "invalid offset for tensor `a`");
        check(&file(&one.replace("[0,8]", "[1,8]"), &[0; 8]), "invalid offset for tensor `a`");
        check(&file(&one.replace("[2]", "[4294967296,4294967296]"), &[0; 8]), "overflow");
        check(&file(&one.replace("F32", "F33"), &[0; 8]), "unknown variant `F33`");
        check(&file(&one.replace("F32", "I32"), &[0; 8]), "tensor a: expected F32, F16, BF16 or F64, got I32");
        check(&file(r#"{"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}"#, &[]), "tensor a: is empty");
        let twice = format!(r#"{},"b":{}"#, &one[..one.len() - 1], &one[5..]);
        check(&file(&twice, &[0; 8]), "invalid offset");
    }

    #[test]
    fn sizes_that_add_up_to_the_end_of_the_address_space() {
        let end = |i: u64| if i == 16 { u64::MAX } else { i << 60 };
        let tensor = |i: u64| {
            let (begin, end) = (end(i), end(i + 1));
            format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        };
        let header = format!("{{{}}}", (0..16).map(tensor).collect::<Vec<_>>().join(","));
        check(&file(&header, &[0; 7]), "truncated: 7 of 18446744073709551615 bytes");
    }

    #[test]
    fn what_is_not_kept_may_be_anything() {
        let header = concat!(
            r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"#,
            r#""w":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}"#
        );
        let bytes = file(header, &[&[0; 8][..], &1.5f32.to_le_bytes()].concat());
        let tensors = tensors_of("f".as_ref(), Arc::new(bytes.clone()), |name| name != "ids").unwrap();
        assert_eq!(tensors.len(), 1);
        assert_eq!(tensors["w"].item().unwrap(), 1.5);
        let folder = folder();
        let path = folder.path().join("f.safetensors");
        write_atomic(&path, &bytes).unwrap();
        let (mapped, entries) = read_entries(&path).unwrap();
        let found: Vec<_> = entries.iter().map(|e| (&e.name[..], &e.dtype[..], &e.shape[..])).collect();
        assert_eq!(found, [("ids", "I64", &[1][..]), ("w", "F32", &[])]);
        assert_eq!(mapped.bytes()[entries[1].range.clone()], 1.5f32.to_le_bytes());
        check(&bytes, "tensor ids: expected F32, F16, BF16 or F64, got I64");
    }

    #[test]
    fn missing_files_and_names_taken_twice() -> Result<()> {
        let folder = folder();
        let nowhere = folder.path().join("none").join("f.safetensors");
        let t = Tensor::from_vec(vec![1.0], [1])?;
        assert!(read_tensors(&nowhere, |_| true).unwrap_err().to_string().contains("f.safetensors"));
        assert!(write_tensors(&nowhere, [("t", &t)]).unwrap_err().to_string().contains("f.safetensors"));
        assert!(read_tensors(folder.path(), |_| true).unwrap_err().to_string().contains("a folder"));
        let path = folder.path().join("f.safetensors");
        assert!(
            write_tensors(&path, [("t", &t), ("t", &t)])
                .unwrap_err()
                .to_string()
                .contains("tensor t: the name is taken")
        );
        write_atomic(&path, b"")?;
        assert!(read_tensors(&path, |_| true).unwrap_err().to_string().contains("0 bytes"));
        Ok(())
    }

    /// Linux and macOS keep a replaced file for whoever has mapped it.
    #[cfg(unix)]
    #[test]
    fn a_mapped_file_can_be_replaced() -> Result<()> {
        let folder = folder();
        let path = folder.path().join("f.safetensors");
        let first = tensor(DType::F32, vec![300, 100], 1);
        write_tensors(&path, [("t", &first)])?;
        let mapped = read_tensors(&path, |_| true)?.remove("t").unwrap();
        write_tensors(&path, [("t", &mapped), ("u", &mapped)])?;
        write_atomic(&path, b"short")?;
        assert_eq!(mapped.bytes()?, first.bytes()?);
        Ok(())
    }

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate() -> Result<()> {
        use safetensors::tensor::TensorView;
        let folder = folder();
        let path = folder.path().join("f.safetensors");
        let all = [("b", DType::F32), ("a", DType::Bf16), ("\"", DType::F32), ("c", DType::F64)]
            .map(|(name, dtype)| (name, tensor(dtype, vec![3, 1], 5)));
        write_tensors(&path, all.iter().map(|(n, t)| (*n, t)))?;
        let views = all
            .iter()
            .map(|(n, t)| (*n, TensorView::new(dtype_of(t), t.shape().to_vec(), t.bytes().unwrap()).unwrap()));
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        assert_eq!(read_bytes(&path)?, safetensors::serialize(views, Some(format)).unwrap());
        Ok(())
    }

    fn tensor(dtype: DType, shape: Vec<usize>, seed: u64) -> Tensor {
        let mut stream = gelora_kernels::random::Stream::new(seed);
        let values = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect::<Vec<_>>();
        Tensor::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn round_trip_and_truncation(
            items in prop::collection::btree_map(
                "[a-z.\"\\\\é]{1,12}",
                (prop::sample::select(vec![DType::F32, DType::Bf16, DType::F16, DType::F64]),
                 prop::collection::vec(1..5usize, 0..4)),
                1..6,
            ),
            seed: u64, cut in 0.0..1.0f64, flip: prop::sample::Index, bit in 0..8u8,
        ) {
            let folder = folder();
            let path = folder.path().join("t.safetensors");
            let written: BTreeMap<String, Tensor> =
                items.into_iter().map(|(name, (dtype, shape))| (name, tensor(dtype, shape, seed))).collect();
            write_tensors(&path, written.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
            let read = read_tensors(&path, |_| true).unwrap();
            prop_assert_eq!(read.len(), written.len());
            for (name, t) in &written {
                let r = &read[name];
                prop_assert_eq!((r.shape(), r.dtype(), r.bytes().unwrap()), (t.shape(), t.dtype(), t.bytes().unwrap()));
            }
            let mut bytes = read_bytes(&path).unwrap();
            let shorter = &bytes[..(cut * bytes.len() as f64) as usize];
            prop_assert!(tensors_of(&path, Arc::new(shorter.to_vec()), |_| true).is_err());
            // One flipped bit may go unnoticed (it may be a value's), but never panics.
            let at = flip.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = tensors_of(&path, Arc::new(bytes), |_| true);
        }
    }
}
