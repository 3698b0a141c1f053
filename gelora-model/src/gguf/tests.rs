use std::sync::Arc;

use super::*;

/// Bytes of a file with one key and one tensor.
fn file(kind: u32, shape: &[u64], values: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(3u32.to_le_bytes());
    bytes.extend([1u64, 1].map(u64::to_le_bytes).concat());
    text(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "blk.0.attn_q.weight");
    bytes.extend((shape.len() as u32).to_le_bytes());
    bytes.extend(shape.iter().rev().flat_map(|d| d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(values);
    bytes
}

fn parse(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::parse(Path::new("f.gguf"), Arc::new(bytes))
}

#[test]
fn keys_and_tensors_are_read() {
    let values: Vec<u8> = (0..8).flat_map(|v| (v as f32).to_le_bytes()).collect();
    let gguf = parse(file(0, &[4, 2], &values)).unwrap();
    assert_eq!(gguf.architecture(), "llama");
    let t = gguf.tensor(&gguf.tensors[0]).unwrap();
    assert_eq!((t.shape(), t.to_vec().unwrap()[7]), (&[4, 2][..], 7.0));
    // One head of 4 rows. The rows of a pair are adjacent in the file.
    let rows = reorder(&t, 1, RowOrder::Halves).unwrap().to_vec().unwrap();
    assert_eq!(rows, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    assert!(reorder(&t, 3, RowOrder::Halves).is_err());
}

#[test]
fn a_truncated_file_is_an_error() {
    let values = [1u8; 32];
    let whole = file(0, &[4, 2], &values);
    for cut in 0..whole.len() {
        let found = parse(whole[..cut].to_vec()).and_then(|gguf| gguf.tensor(&gguf.tensors[0]).map(|_| ()));
        let message = found.unwrap_err().to_string();
        assert!(message.contains(if cut < 4 { "not a GGUF file" } else { "truncated" }), "{cut}: {message}");
    }
}

#[test]
fn errors_name_unsupported_types() {
    let gguf = parse(file(16, &[1, 256], &[0; 66])).unwrap();
    let message = gguf.tensor(&gguf.tensors[0]).unwrap_err().to_string();
    assert!(message.contains("tensor blk.0.attn_q.weight is of the type IQ2_XXS, which is not supported"), "{message}");
    assert!(parse(b"PK\x03\x04 a zip".to_vec()).unwrap_err().to_string().contains("not a GGUF file"));
}

#[test]
fn headers_with_too_large_sizes_are_errors() {
    let message = |bytes: Vec<u8>| {
        let found = parse(bytes).and_then(|gguf| gguf.tensors().map(|_| ()));
        found.unwrap_err().to_string()
    };
    // A tensor without dimensions, and a tensor with more dimensions than ggml allows.
    assert!(message(file(0, &[], &[0; 4])).contains("tensor blk.0.attn_q.weight has 0 dimensions; expected 1 to 4"));
    assert!(message(file(0, &[1; 5], &[0; 4])).contains("has 5 dimensions; expected 1 to 4"));
    // Shapes whose number of values or bytes does not fit into 64 bits.
    for shape in [[1 << 62, 1], [1 << 32, 1 << 32], [u64::MAX, 1], [u64::MAX, u64::MAX]] {
        assert!(message(file(0, &shape, &[0; 4])).contains("end beyond the file's"), "{shape:?}");
    }
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0u64, 1, 17].map(u64::to_le_bytes).concat());
    bytes.extend(b"general.alignment");
    bytes.extend(10u32.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    assert!(message(bytes).contains("general.alignment is 18446744073709551615, more than a file has"));
}

#[test]
fn sliding_layers_of_gemma_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.gguf");
    let config = |layers: u32, key: &str, value: MetadataValue| {
        let number = MetadataValue::Unsigned;
        let keys = [
            ("general.architecture", MetadataValue::Text("gemma3".into())),
            ("gemma3.block_count", number(layers)),
            ("gemma3.embedding_length", number(5376)),
            ("gemma3.attention.head_count", number(32)),
            (key, value),
        ];
        let keys: Vec<_> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        write::write(&path, &keys, &[]).unwrap();
        Gguf::open(&path).unwrap().config()
    };
    let pattern = "gemma3.attention.sliding_window_pattern";
    let (sliding, full) = ("sliding_attention", "full_attention");
    // Flags are stored as an array of type 7.
    let flags = [&7u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[1, 0, 1]].concat();
    let listed = config(3, pattern, MetadataValue::Stored(9, flags)).unwrap();
    assert_eq!(listed["layer_types"], json!([sliding, full, sliding]));
    assert!(!listed.contains_key("sliding_window_pattern") && !listed.contains_key("query_pre_attn_scalar"));
    assert_eq!(config(3, pattern, MetadataValue::Unsigned(2)).unwrap()["sliding_window_pattern"], 2);
    assert_eq!(config(2, pattern, MetadataValue::Unsigned(0)).unwrap()["layer_types"], json!([sliding, sliding]));
    let message = config(2, pattern, MetadataValue::Text("x".into())).unwrap_err().to_string();
    assert!(message.contains("sliding_window_pattern is \"x\"; expected a number of layers"), "{message}");
    // The largest model, whose scores are scaled by channels / heads.
    let large = config(62, "gemma3.rope.freq_base_swa", MetadataValue::Float(5000.0)).unwrap();
    assert_eq!((&large["query_pre_attn_scalar"], &large["rope_local_base_freq"]), (&json!(168), &json!(5000.0)));
}
