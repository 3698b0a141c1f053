//! Compares MiniLM with its real weights with transformers and PEFT, on the tokens of 64 real sentences and pairs.

mod golden;

use std::path::PathBuf;

use gelora_kernels::ops::pool;
use gelora_kernels::{DType, Tensor};
use gelora_lora::Adapter;
use gelora_model::{Classifier, Grads, Granularity, Mode, Targets, Transformer};
use golden::{Golden, assert_close, assert_trains_like_peft, batch, fixture};

fn model() -> PathBuf {
    let testbed = std::env::var_os("GELORA_TESTBED").map(PathBuf::from);
    let testbed = testbed.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/testbed"));
    let model = testbed.join("minilm");
    assert!(model.is_dir(), "{} is missing; `cargo xtask testbed` fetches it", model.display());
    model
}

fn rows(golden: &Golden) -> Vec<(Vec<u32>, Vec<u32>)> {
    let (ids, types) = (golden.integers("input_ids"), golden.integers("token_type_ids"));
    let cut = |v: &[u32], b: usize, length: u32| v[b * 128..b * 128 + length as usize].to_vec();
    let lengths = golden.integers("lengths");
    lengths.iter().enumerate().map(|(b, length)| (cut(&ids, b, *length), cut(&types, b, *length))).collect()
}

#[test]
fn pooled_hidden_states_match_transformers() {
    let golden = Golden::open("minilm.golden.safetensors");
    let rows = rows(&golden);
    let encoder = Transformer::load(&model()).expect("it loads");
    let batch = batch(&rows, &(0..64).collect::<Vec<_>>());
    encoder
        .hidden_states(&batch, Granularity::Block, |l, tokens| {
            let pooled = pool::mean(tokens, batch.sequences())?;
            let every_fourth: Vec<f32> = pooled.as_slice()?.iter().step_by(4).copied().collect();
            assert_close(&format!("state {l}"), &every_fourth, &golden.floats(&format!("layer_{l}")), 1e-5);
            Ok(())
        })
        .expect("it runs");
}

#[test]
fn training_matches_peft() {
    let golden = Golden::open("minilm-peft.golden.safetensors");
    let rows = rows(&Golden::open("minilm.golden.safetensors"));
    let adapter = Adapter::read(&fixture("minilm-peft")).expect("a PEFT folder");
    let mut classifier = Classifier::with_adapter(&model(), adapter.clone(), None).expect("it fits");

    let all = batch(&rows, &(0..64).collect::<Vec<_>>());
    let logits = classifier.logits(&all).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    assert_close("logits", &logits, &golden.floats("logits"), 1e-5);

    let chosen: Vec<usize> = (0..16).map(|i| 4 * i).collect();
    let labels: Vec<usize> = (0..16).map(|i| i % 2).collect();
    let targets = Targets::Classes(&labels);
    let compared =
        assert_trains_like_peft(&golden, "train.", &adapter, &mut classifier, &batch(&rows, &chosen), targets);
    assert_eq!(compared, 6 * 4 * 2 + 2);
}

/// Bounds the effect of bf16 products (relative error 2^-9 for each factor) on hidden states, loss and gradients. On a
/// CPU without bf16 products there is no effect.
#[test]
fn bf16_stays_near_f32() {
    let rows = rows(&Golden::open("minilm.golden.safetensors"));
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let distance = |got: &[f32], want: &[f32]| {
        norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied())
    };

    let states = |dtype| {
        let mut encoder = Transformer::load(&model()).expect("it loads");
        encoder.compute_in(dtype).expect("f32 or bf16");
        let (batch, mut states) = (batch(&rows, &(0..64).collect::<Vec<_>>()), Vec::new());
        let visit = |_, tokens: &Tensor| {
            states.push(pool::mean(tokens, batch.sequences())?.to_vec()?);
            Ok(())
        };
        encoder.hidden_states(&batch, Granularity::Block, visit).expect("it runs");
        states
    };
    for (l, (got, want)) in states(DType::Bf16).iter().zip(&states(DType::F32)).enumerate() {
        let error = distance(got, want);
        assert!(error < 8e-3, "state {l}: relative error {error:.1e}");
    }

    let chosen: Vec<usize> = (0..16).map(|i| 4 * i).collect();
    let labels: Vec<usize> = (0..16).map(|i| i % 2).collect();
    let gradients = |dtype| {
        let adapter = Adapter::read(&fixture("minilm-peft")).expect("a PEFT folder");
        let mut classifier = Classifier::with_adapter(&model(), adapter, None).expect("it fits");
        classifier.compute_in(dtype).expect("f32 or bf16");
        let (batch, mut grads) = (batch(&rows, &chosen), Grads::new());
        let loss = classifier.backward(&batch, Targets::Classes(&labels), &Mode::inference(), 1.0, &mut grads);
        (loss.and_then(|loss| Ok(loss.item()?)).expect("backward"), grads)
    };
    let ((loss, got), (want_loss, want)) = (gradients(DType::Bf16), gradients(DType::F32));
    assert!((loss - want_loss).abs() < 2e-3, "loss {loss}, in f32 {want_loss}");
    for (name, want) in &want {
        let error = distance(&got[name].to_vec().expect("on the CPU"), &want.to_vec().expect("on the CPU"));
        assert!(error < 3e-2, "{name}: relative error {error:.1e}");
    }
}
