//! Files: safetensors in and out, and writing that never leaves half a file.
//!
//! Reading maps the file and checks its header against its length before anything is taken from it; a damaged or hostile
//! file is an error that names it. Writing goes to a temporary file in the same folder, which replaces the old file only
//! when all of it is on the disk: a full disk or a crash leaves the previous file as it was.
//!
//! Source: the safetensors format, <https://github.com/huggingface/safetensors#format>: 8 bytes with the header's length,
//! the header as JSON, then the tensors' little-endian values without gaps.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use gelora_kernels::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};

use crate::{Error, Result};

/// The longest header that is read, as in the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of a safetensors file whose names `keep` accepts, each on the CPU and in its own element type (F32, F16,
/// BF16, F64).
///
/// # Errors
/// If the file cannot be read, is damaged, or a tensor that is kept is empty or of another type (integers, F8).
///
/// ```no_run
/// let weights = gelora_lora::files::read_tensors("model/model.safetensors".as_ref(), |name| !name.ends_with("position_ids"))?;
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn read_tensors(path: &Path, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "expected a safetensors file, got a folder or device"));
    }
    if metadata.len() == 0 {
        return Err(Error::file(path, "not a safetensors file: 0 bytes long")); // which cannot be mapped
    }
    // SAFETY: the map is private to this call and only read. A file that another process shortens meanwhile would end
    // this one with SIGBUS: that is the price of not copying files of gigabytes, as in every safetensors reader.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    tensors_of(path, &map, keep)
}

fn tensors_of(path: &Path, bytes: &[u8], keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let (metadata, data) = header_of(bytes).map_err(|problem| Error::file(path, problem))?;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        if !keep(&name) {
            continue;
        }
        if info.shape.contains(&0) {
            return Err(Error::tensor(path, &name, format!("is empty: shape {:?}", info.shape)));
        }
        // Offsets inside the file follow from `header_of`; `get` says so without trusting it.
        let (begin, end) = info.data_offsets;
        let values = data.get(begin..end).ok_or_else(|| Error::tensor(path, &name, "lies outside the file"))?;
        let tensor = tensor_of(info.dtype, &info.shape, values)
            .ok_or_else(|| Error::tensor(path, &name, format!("expected F32, F16, BF16 or F64, got {}", info.dtype)))?;
        tensors.insert(name, tensor?);
    }
    Ok(tensors)
}

/// The header, and the bytes after it, of which it accounts for each one. Not `SafeTensors::deserialize`, whose sum of
/// sizes overflows (a panic in debug builds) on a hostile header.
fn header_of(bytes: &[u8]) -> Result<(Metadata, &[u8]), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("not a safetensors file: {} bytes long", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("not a safetensors file: its header would be {length} bytes long"));
    }
    // At most MAX_HEADER, so it fits.
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(format!("truncated: the header has {length} bytes, the file {} after it begins", rest.len()));
    };
    // Checks, too, that the tensors' shapes fit their sizes and that they follow one another without gaps.
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("the safetensors header is invalid: {error}"))?;
    let (expected, got) = (metadata.data_len(), data.len());
    match expected == got {
        true => Ok((metadata, data)),
        false if got < expected => Err(format!("truncated: {got} of {expected} bytes of values")),
        false => Err(format!("expected {expected} bytes of values, got {got}")),
    }
}

/// None if this crate has no such element type.
fn tensor_of(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Option<Result<Tensor>> {
    fn values<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| from(chunk)).collect()
    }
    let tensor = match dtype {
        Dtype::F32 => Tensor::from_vec(values(bytes, f32::from_le_bytes), shape),
        Dtype::F64 => Tensor::from_f64(values(bytes, f64::from_le_bytes), shape),
        Dtype::F16 => Tensor::from_f16(values(bytes, f16::from_le_bytes), shape),
        Dtype::BF16 => Tensor::from_bf16(values(bytes, bf16::from_le_bytes), shape),
        _ => return None,
    };
    Some(tensor.map_err(Error::from))
}

/// Writes a safetensors file in one step (see this module's head), each tensor in its own element type and with the
/// metadata `{"format": "pt"}` that transformers asks for. A tensor on a GPU is fetched first, as f32.
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
        on_cpu.insert(name, tensor.to_device(&Device::Cpu)?);
    }
    let mut views = Vec::with_capacity(on_cpu.len());
    for (name, tensor) in &on_cpu {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
        };
        let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes()?)
            .map_err(|error| Error::tensor(path, name, error.to_string()))?;
        views.push((name, view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    replace(path, |_, temporary| {
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => Error::io(path)(source),
            other => Error::file(path, other.to_string()),
        })
    })
}

/// Writes a file in one step (see this module's head).
///
/// # Errors
/// If the file cannot be written; a previous file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |mut file, _| file.write_all(bytes).map_err(Error::io(path)))
}

/// Lets `write` fill a temporary file beside `path`, then puts it in `path`'s place. On an error it is removed.
fn replace(path: &Path, write: impl FnOnce(&File, &Path) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gelora-").suffix(".partial");
    // Temporary files are private by default, but this one stays: let the umask decide, as for any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(Error::io(path))?;
    write(temporary.as_file(), temporary.path())?;
    temporary.as_file().sync_all().map_err(Error::io(path))?;
    temporary.persist(path).map_err(|error| Error::io(path)(error.error))?;
    // The new name is on the disk when the folder is. Where a folder cannot be opened (Windows), the system decides.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The bytes of a file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A file of this header and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn check(bytes: &[u8], expected: &str) {
        let error = tensors_of("hostile.safetensors".as_ref(), bytes, |_| true).unwrap_err().to_string();
        assert!(error.starts_with("hostile.safetensors: ") && error.contains(expected), "{error}");
    }

    #[test]
    fn hostile_files() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(tensors_of("f".as_ref(), &file(one, &[0; 8]), |_| true).unwrap()["a"].shape(), [2]);
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
        let header = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}"#;
        let bytes = file(header, &[&[0; 8][..], &1.5f32.to_le_bytes()].concat());
        let tensors = tensors_of("f".as_ref(), &bytes, |name| name != "ids").unwrap();
        assert_eq!(tensors.len(), 1);
        assert_eq!(tensors["w"].item().unwrap(), 1.5);
        check(&bytes, "tensor ids: expected F32, F16, BF16 or F64, got I64");
    }

    #[test]
    fn a_failed_write_leaves_the_previous_file_and_nothing_else() -> Result<()> {
        let folder = folder();
        let path = folder.path().join("adapter_config.json");
        write_atomic(&path, b"before")?;
        let full = |_: &File, _: &Path| Err(Error::io(&path)(std::io::ErrorKind::StorageFull.into()));
        let error = replace(&path, |file, _| {
            let mut file = file;
            file.write_all(b"half").map_err(Error::io(&path))?;
            full(file, &path)
        });
        assert!(error.unwrap_err().to_string().contains("adapter_config.json"));
        assert_eq!(read_bytes(&path)?, b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_atomic(&path, b"after")?;
        assert_eq!(read_bytes(&path)?, b"after");
        Ok(())
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

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_is_written() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomic(&ours, b"x")?;
        fs::write(&plain, b"x").map_err(Error::io(&plain))?;
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
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
            prop_assert!(tensors_of(&path, shorter, |_| true).is_err());
            // One flipped bit may go unnoticed (it may be a value's), but never panics.
            let at = flip.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = tensors_of(&path, &bytes, |_| true);
        }
    }
}
