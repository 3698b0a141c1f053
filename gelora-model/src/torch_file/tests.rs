//! `fixtures/torch_files.py` describes the files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/torch").join(name)
}

fn is_weight(name: &str) -> bool {
    !name.ends_with("position_ids") && !name.ends_with("attn.bias")
}

fn assert_same(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>) {
    assert!(got.keys().eq(want.keys()), "{:?} {:?}", got.keys(), want.keys());
    for (name, want) in want {
        let got = &got[name];
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{name}");
        assert!(got.bytes().unwrap() == want.bytes().unwrap(), "{name}");
    }
}

/// Reads a file with these bytes, or returns the error message.
fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read_tensors(file.path(), is_weight).map_err(|error| error.to_string())
}

fn assert_refused(bytes: &[u8], words: &str) {
    let problem = read(bytes).unwrap_err();
    assert!(problem.contains(words), "no {words:?} in {problem:?}");
}

#[test]
fn torch_views_match_pytorch() {
    let want = files::read_tensors(&fixture("views.safetensors"), |_| true).unwrap();
    assert!(want.len() > 15);
    assert_same(&read_tensors(&fixture("views.bin"), is_weight).unwrap(), &want);
    let integers = read_tensors(&fixture("views.bin"), |_| true).unwrap_err().to_string();
    assert!(integers.contains("views.bin: tensor h.0.attn.bias is of the type Byte; expected Float"), "{integers}");
}

#[test]
fn torch_containers_hold_the_same_tensors() {
    let zip = read_tensors(&fixture("zip.bin"), is_weight).unwrap();
    assert_same(&read_tensors(&fixture("legacy.bin"), is_weight).unwrap(), &zip);
    let weights = fixture("../families/deberta/model.safetensors");
    let weights = files::read_tensors(&weights, |_| true).unwrap();
    let half = weights.into_iter().map(|(name, t)| (name, t.to_dtype(gelora_kernels::DType::F16).unwrap())).collect();
    assert_same(&zip, &half);
}

#[test]
fn truncated_torch_files_are_errors() {
    for name in ["zip.bin", "legacy.bin", "views.bin"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        assert!(read(&whole).is_ok());
        for part in 0..16 {
            let problem = read(&whole[..whole.len() * part / 16]).unwrap_err();
            let words = ["truncated", "0 bytes long", "not a checkpoint", "damaged"];
            assert!(words.iter().any(|word| problem.contains(word)), "{part}/16 of {name}: {problem}");
        }
        assert!(read(&whole[..whole.len() - 1]).is_err(), "{name}");
    }
}

/// A file with a wrong byte is read or refused, but never panics.
#[test]
fn torch_files_with_a_wrong_byte_do_not_panic() {
    for name in ["views.bin", "legacy.bin", "zip.bin"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        // Change only bytes of the pickles and the directory.
        let small = |at: &usize| *at < 6000 || *at > whole.len() - 6000;
        for (i, at) in (0..whole.len()).filter(small).enumerate() {
            let mut bytes = whole.clone();
            bytes[at] = [0, 0xff, b'R', b'.', b'(', bytes[at].wrapping_add(1), bytes[at] ^ 0x80][i % 7];
            let bytes: SharedBytes = Arc::new(bytes);
            if let Ok(checkpoint) = Checkpoint::read(bytes.bytes()) {
                for (_, object) in checkpoint.entries().unwrap_or_default() {
                    if let Object::Tensor(view) = object {
                        let _ = checkpoint.tensor(view, &bytes, &mut 1_000_000);
                    }
                }
            }
        }
    }
}

/// Wraps a pickle in a checkpoint of the older format. If the pickle has a storage, it is "0" with four floats.
fn checkpoint_with(pickle: &[u8]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0a".to_vec();
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(b".\x80\x02M\xe9\x03.\x80\x02}.\x80\x02");
    file.extend_from_slice(pickle);
    if !pickle.windows(7).any(|part| part == b"storage") {
        return [file, b".\x80\x02].".to_vec()].concat();
    }
    file.extend_from_slice(b".\x80\x02]X\x01\0\0\x000a.\x04\0\0\0\0\0\0\0");
    [1.0f32, 2.0, 3.0, 4.0].iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
    file
}

/// Returns the pickle of {"a": a tensor of that storage}.
fn pickled(offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let numbers = |all: &[u8]| [b"(".to_vec(), all.iter().flat_map(|n| [b'K', *n]).collect(), b"t".to_vec()].concat();
    let function = b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(";
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04NtQK";
    [function.to_vec(), storage.to_vec(), vec![offset], numbers(shape), numbers(stride), b"\x89}tRs".to_vec()].concat()
}

#[test]
fn torch_tensors_cannot_leave_their_storage() {
    let values = |offset, shape: &[u8], stride: &[u8]| {
        read(&checkpoint_with(&pickled(offset, shape, stride))).map(|all| all["a"].to_vec().unwrap())
    };
    assert_eq!(values(1, &[3], &[1]).unwrap(), [2.0, 3.0, 4.0]);
    assert_eq!(values(0, &[2, 2], &[1, 2]).unwrap(), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(0, &[1, 3, 1], &[77, 1, 200]).unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(values(3, &[2, 2], &[0, 0]).unwrap(), [4.0; 4]);
    for (offset, shape, stride) in [(2, &[3][..], &[1][..]), (0, &[2, 2], &[2, 2]), (4, &[1], &[1]), (9, &[], &[])] {
        let problem = values(offset, shape, stride).unwrap_err();
        assert!(problem.contains("tensor a ends beyond its storage, which has 4 values"), "{problem}");
    }
    let problem = values(0, &[255, 255], &[0, 0]).unwrap_err();
    assert!(problem.contains("tensor a would have 65025 values"), "{problem}");
    assert!(values(0, &[0, 3], &[3, 1]).unwrap_err().contains("tensor a is empty: shape [0, 3]"));
    assert!(values(0, &[4], &[]).unwrap_err().contains("damaged"));
    assert!(values(0, &[1; 9], &[1; 9]).unwrap_err().contains("9 dimensions"));
}

/// OrderedDict([["a", tensor]]), with the function that created tensors before PyTorch 0.4.
#[test]
fn torch_files_of_python_2_are_read() {
    let new = pickled(1, &[3], &[1]);
    let at = new.windows(9).position(|part| part == b"tensor_v2").unwrap();
    // Remove {}, "a", the last arguments and s.
    let tensor = [&new[7..at], b"tensor", &new[at + 9..new.len() - 5], b"tR"].concat();
    let old = [b"ccollections\nOrderedDict\n(](X\x01\0\0\0a".to_vec(), tensor, b"latR".to_vec()].concat();
    let tensors = read(&checkpoint_with(&old)).unwrap();
    assert_eq!(tensors["a"].to_vec().unwrap(), [2.0, 3.0, 4.0]);
    assert!(read(&checkpoint_with(b"ccollections\nOrderedDict\n(](X\x01\0\0\0alatR")).is_err());
}

#[test]
fn torch_pickles_of_other_objects_are_refused() {
    let command = b"cos\nsystem\nX\x04\0\0\0exit\x85R";
    assert_refused(&checkpoint_with(command), "asks to run os.system; only tensors are read");
    assert_refused(&checkpoint_with(b"X\x02\0\0\0osX\x06\0\0\0system\x93)R"), "asks to run os.system;");
    // In the newer format, whose tensors call a function.
    let mut views = std::fs::read(fixture("views.bin")).unwrap();
    let name = b"torch._utils\n_rebuild_parameter\n";
    let at = views.windows(name.len()).position(|part| part == name).unwrap();
    views[at..at + name.len()].copy_from_slice(b"subprocess\ncheck_output________\n");
    assert_refused(&views, "asks to run subprocess.check_output");

    let nested = [b"}X\x0a\0\0\0state_dict".to_vec(), pickled(0, &[1], &[1]), b"s".to_vec()].concat();
    assert_refused(&checkpoint_with(&nested), "\"state_dict\" is a dictionary; expected tensors by their names");
    assert_refused(&checkpoint_with(b"]"), "holds a list; expected tensors by their names");
    assert_refused(&checkpoint_with(b"}K\x01Ns"), "an integer among its keys");
    assert_refused(&checkpoint_with(b"}X\x05\0\0\0epochK\x01s"), "\"epoch\" is an integer");
    assert_refused(b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the file itself");
    assert_refused(b"a text, not a checkpoint", "not a checkpoint of PyTorch");
    assert_refused(b"PK\x03\x04 and nothing else that a zip archive would have", "truncated: its directory");
}

#[test]
fn deep_circular_or_damaged_torch_pickles_are_errors() {
    let deep = [vec![b')'], vec![0x85; 1_000_000]].concat();
    assert_refused(&checkpoint_with(&deep), "holds a list");
    assert_refused(&checkpoint_with(b"]q\0h\0a"), "holds a list");
    assert_refused(&checkpoint_with(&vec![b'N'; 5 << 20]), "longer than");
    for damaged in
        [&b"a"[..], b"(", b"h\x07", b"K\x01K\x02s", b"(K\x01u", b"}(K\x01u", b"R", b"))R", b"N(\x85", b"Q", b"Nb"]
    {
        assert!(read(&checkpoint_with(damaged)).is_err(), "{damaged:?}");
    }
}

/// The pickle makes a dictionary from one list of a thousand pairs, five thousand times.
#[test]
fn a_pickle_cannot_copy_a_list_without_limit() {
    let bomb = |times: usize| {
        let mut bytes = b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(".to_vec();
        bytes.extend(b"K\x01K\x02\x86".repeat(1000));
        bytes.extend(b"e\x85q\x02R");
        bytes.extend(b"h\x00h\x02R".repeat(times));
        bytes.push(b'.');
        Pickle::read(&bytes).err()
    };
    assert_eq!(bomb(10), None);
    assert_eq!(bomb(5000).unwrap(), "its pickle makes dictionaries of more than 4194304 entries");
}
