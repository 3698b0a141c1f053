//! Compares GGUF files with transformers and the gguf package. `fixtures/gguf_files.py` describes the goldens.

mod golden;

use std::sync::Arc;

use gelora_kernels::{DType, Tensor};
use gelora_model::{Batch, CausalLm, Config, Granularity, Sampling};
use golden::{Golden, assert_close, fixture};

#[test]
fn blocks_decode_as_in_the_gguf_package() {
    let golden = Golden::open("gguf/blocks.golden.safetensors");
    for (name, dtype) in [
        ("Q4_0", DType::Q4_0),
        ("Q4_1", DType::Q4_1),
        ("Q5_0", DType::Q5_0),
        ("Q5_1", DType::Q5_1),
        ("Q8_0", DType::Q8_0),
        ("Q2_K", DType::Q2K),
        ("Q3_K", DType::Q3K),
        ("Q4_K", DType::Q4K),
        ("Q5_K", DType::Q5K),
        ("Q6_K", DType::Q6K),
        ("IQ4_NL", DType::Iq4Nl),
        ("IQ4_XS", DType::Iq4Xs),
    ] {
        let bytes: Vec<u8> = golden.integers(&format!("{name}.bytes")).into_iter().map(|b| b as u8).collect();
        let want = golden.floats(&format!("{name}.values"));
        let (len, shape) = (bytes.len(), [3, want.len() / 3]);
        let t = Tensor::from_bytes(Arc::new(bytes), 0..len, dtype, shape).expect("whole blocks");
        let largest = want.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        assert_close(name, &t.to_vec().expect("values"), &want, 3e-7 * largest);
    }
}

#[test]
fn a_gguf_model_computes_the_same_as_its_dequantized_weights() {
    let golden = Golden::open("gguf/tiny.golden.safetensors");
    let path = fixture("gguf/tiny.gguf");
    let config = Config::load(&path).expect("a config");
    assert_eq!((config.layers, config.kv_heads, config.head_size, &config.eos[..]), (2, 2, 16, &[0][..]));
    let lm = CausalLm::load(&path).expect("it loads");
    let ids = golden.integers("input_ids");
    let batch = Batch::of_ids(&[&ids]).expect("a row");
    let mut seen = 0;
    let check = |l: usize, tokens: &Tensor| {
        assert_close(&format!("hidden {l}"), tokens.as_slice()?, &golden.floats(&format!("hidden_{l}")), 1e-4);
        seen += 1;
        Ok(())
    };
    lm.transformer().hidden_states(&batch, Granularity::Block, check).expect("it runs");
    assert_eq!(seen, 3);
    let rows: Vec<usize> = (0..ids.len()).collect();
    let logits = lm.logits(&batch, &rows).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    assert_close("logits", &logits, &golden.floats("logits"), 1e-4);
    let generated = lm.generate(&ids, 30, Sampling::default(), &[], |_| true).expect("it generates");
    assert_eq!(generated, golden.integers("greedy"));
}
