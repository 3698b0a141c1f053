use super::*;

/// The tensors of one weight `w`: name, type, bytes.
type Tensors = BTreeMap<&'static str, (&'static str, Vec<u8>)>;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

const JSON: &str = r#"{"quant_type":"nf4","blocksize":64,"dtype":"float32","shape":[2,64]}"#;
const NESTED: &str = r#"{"quant_type":"nf4","blocksize":64,"dtype":"float32","shape":[2,64],
    "nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.5}"#;

/// Two rows of 64 values. Each row has one code and one scale: 1.0 times 3, then -1.0 times 2.
fn plain() -> Tensors {
    BTreeMap::from([
        ("w", ("U8", [[0xff; 32], [0; 32]].concat())),
        ("w.absmax", ("F32", floats(&[3.0, 2.0]))),
        ("w.quant_map", ("F32", floats(&four_bit::NF4))),
        ("w.quant_state.bitsandbytes__nf4", ("U8", JSON.into())),
    ])
}

/// The same weight with 8-bit scales: code 200 is 2.5 and code 3 is 1.5, times 1, plus 0.5.
fn nested() -> Tensors {
    let mut map = [0.0; 256];
    (map[200], map[3]) = (2.5, 1.5);
    let mut all = plain();
    all.insert("w.absmax", ("U8", vec![200, 3]));
    all.insert("w.nested_absmax", ("F32", floats(&[1.0])));
    all.insert("w.nested_quant_map", ("F32", floats(&map)));
    all.insert("w.quant_state.bitsandbytes__nf4", ("U8", NESTED.into()));
    all
}

/// Reads the tensors, half of which are in a second file.
fn read(tensors: &Tensors) -> Result<BTreeMap<String, Tensor>> {
    let mut parts = Parts::default();
    for odd in [false, true] {
        let (mut bytes, mut entries) = (Vec::new(), Vec::new());
        for (name, (dtype, values)) in tensors.iter().skip(usize::from(odd)).step_by(2) {
            let begin = bytes.len();
            bytes.extend(values);
            let range = begin..bytes.len();
            entries.push(Entry { name: (*name).into(), dtype: (*dtype).into(), shape: vec![values.len()], range });
        }
        parts.add(Path::new(if odd { "b.safetensors" } else { "a.safetensors" }), Arc::new(bytes), entries);
    }
    assert!(parts.has("w.absmax") == parts.has("w") && !parts.has("v") && !parts.has("wx.absmax"));
    parts.tensors()
}

fn message(tensors: &Tensors) -> String {
    read(tensors).map(|_| ()).unwrap_err().to_string()
}

/// `fixtures/bitsandbytes_files.py` describes the cases.
#[test]
fn values_match_those_of_bitsandbytes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/bitsandbytes-weights");
    let (_, weights) = crate::checkpoint::read(&folder).expect("a checkpoint");
    let golden = gelora_lora::files::read_tensors(&folder.join("golden.safetensors"), |_| true).expect("a golden file");
    assert_eq!(weights.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
    assert_eq!(weights.len(), 9);
    for (name, weight) in &weights {
        let in_blocks = !name.contains("split_rows");
        assert_eq!((weight.dtype().is_quantized(), weight.shape()), (in_blocks, golden[name].shape()), "{name}");
        let (got, want) = (weight.to_vec().expect("on the CPU"), golden[name].to_vec().expect("on the CPU"));
        assert!(got == want, "{name}: {:?} is not {:?}", &got[..8], &want[..8]);
    }
}

#[test]
fn both_kinds_of_scales_are_read() {
    for tensors in [plain(), nested()] {
        let all = read(&tensors).expect("whole");
        let w = &all["w"];
        assert_eq!((all.len(), w.dtype(), w.shape()), (1, DType::Nf4(Rounding::F32), &[2, 64][..]));
        let values = w.to_vec().expect("on the CPU");
        assert_eq!((values[0], values[63], values[64], values[127]), (3.0, 3.0, -2.0, -2.0));
    }
}

#[test]
fn rows_that_are_not_whole_blocks_take_the_type_of_the_model() {
    let mut tensors = plain();
    let json = JSON.replace("[2,64]", "[4,32]").replace("float32", "bfloat16");
    tensors.insert("w.quant_state.bitsandbytes__nf4", ("U8", json.into()));
    let w = read(&tensors).expect("whole").remove("w").expect("there");
    assert_eq!((w.dtype(), w.shape()), (DType::Bf16, &[4, 32][..]));
    assert_eq!(w.to_vec().expect("on the CPU")[63..65], [3.0, -2.0]);
}

#[test]
fn errors_name_missing_and_wrong_tensors() {
    let state = "w.quant_state.bitsandbytes__nf4";
    for name in ["w", "w.absmax", "w.quant_map"] {
        let mut tensors = plain();
        tensors.remove(name);
        assert!(message(&tensors).ends_with(&format!("tensor {state}: expected a tensor {name} beside it")), "{name}");
    }
    for name in ["w.nested_absmax", "w.nested_quant_map"] {
        let mut tensors = nested();
        tensors.remove(name);
        assert!(message(&tensors).contains(&format!("expected a tensor {name} beside it")), "{name}");
    }
    let with = |name: &'static str, dtype: &'static str, bytes: &[u8]| {
        let mut tensors = plain();
        tensors.insert(name, (dtype, bytes.to_vec()));
        message(&tensors)
    };
    assert!(with("w.absmax", "F16", &[0; 4]).contains("tensor w.absmax: expected F32, got F16"));
    assert!(with("w.absmax", "F32", &[0; 4]).contains("tensor w.absmax: expected 2 scales for [2, 64], got 1"));
    assert!(with("w", "U8", &[0; 65]).contains("tensor w: expected 64 bytes for [2, 64], got 65"));
    assert!(with("w.quant_map", "F32", &floats(&four_bit::FP4)).contains("expected the 16 values of nf4, got [0.0, "));
    assert!(with("w.zeros", "F32", &[0; 4]).contains("\"zeros\" is not known for a weight of bitsandbytes"));
    let described = |from: &str, to: &str| with(state, "U8", JSON.replace(from, to).as_bytes());
    assert!(described("{", "[").contains("expected a JSON object"));
    assert!(described("nf4", "int8").contains("quant_type must be nf4 or fp4, got \"int8\""));
    assert!(described("64,\"dtype", "0,\"dtype").contains("blocksize must be a positive integer, got 0"));
    assert!(described("float32", "float64").contains("dtype must be float32, bfloat16 or float16, got \"float64\""));
    assert!(described("[2,64]", "[128]").contains("shape must be that of a matrix, got [128]"));
    assert!(described("[2,64]", "[4294967296,4294967296]").contains("shape must be that of a matrix"));
    assert!(described("{", "{\"group\":1,").contains("group is not known; expected quant_type"));
    let mut tensors = nested();
    tensors.insert("w.nested_absmax", ("F32", floats(&[1.0, 1.0])));
    assert!(message(&tensors).contains("2 scales in blocks of 256 need 1 values, got 2"));
    tensors.insert("w.nested_quant_map", ("F32", floats(&[1.0; 16])));
    assert!(message(&tensors).contains("tensor w.nested_quant_map: expected 256 values, got 16"));
}

/// If config.json says that weights are quantized and they are not, transformers would quantize them while loading.
#[test]
fn a_config_with_four_bits_needs_quantized_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |text: &str| std::fs::write(folder.path().join("config.json"), text).expect("a config");
    assert!(check_promise(folder.path(), true).is_ok());
    write(r#"{"model_type": "llama", "quantization_config": {"load_in_4bit": true}}"#);
    assert!(check_promise(folder.path(), false).is_ok());
    let message = check_promise(folder.path(), true).unwrap_err().to_string();
    assert!(
        message.contains("config.json: quantization_config says that weights have 4 bits, but none has"),
        "{message}"
    );
    write(r#"{"model_type": "llama"}"#);
    assert!(check_promise(folder.path(), true).is_ok());
}

#[test]
fn other_quantization_methods_are_refused_by_name() {
    let check_of = |family: &str, config: &Value| {
        let map = Map::from_iter([("model_type".to_owned(), family.into()), (CONFIG.to_owned(), config.clone())]);
        check_config(&Json::new("config.json".into(), map)).map_err(|e| e.to_string())
    };
    let four = serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    let check = |config: Value| check_of("llama", &config);
    assert_eq!(check_of("llama", &four), Ok(()));
    assert!(check_of("gpt2", &four).unwrap_err().contains("not supported for gpt2"));
    let message = check(serde_json::json!({"quant_method": "gptq", "bits": 4})).unwrap_err();
    assert!(message.contains("config.json: quantization_config names gptq, which is not supported"), "{message}");
    let message = check(serde_json::json!({"quant_method": "bitsandbytes", "load_in_8bit": true})).unwrap_err();
    assert!(message.contains("bitsandbytes with load_in_8bit, which is not supported; expected"), "{message}");
}
