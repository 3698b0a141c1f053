//! Compares LoRA+, PiSSA and DoRA with PEFT, on a language model and on MiniLM. `fixtures/methods.py` describes the
//! goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;
mod subject;

use gelora_lora::{Adapter, AdapterConfig, Init};
use gelora_model::optim::Optimizer;
use golden::{Golden, assert_close, fixture};
use subject::{KEY, Llama, Subject, compare_gradients};

fn goldens() -> Golden {
    Golden::open("methods.golden.safetensors")
}

/// Compares the loss and all gradients with PEFT's.
fn assert_gradients<S: Subject>(subject: &S, method: &str) {
    let (golden, prefix) = (goldens(), format!("{}.{method}", S::NAME));
    let (loss, grads) = subject.backward();
    assert_close(&format!("{prefix} loss"), &[loss], &golden.floats(&format!("{prefix}.loss")), 1e-5);
    compare_gradients(&grads, &golden, &format!("{prefix}.{KEY}"));
}

/// Compares the losses of ten steps with PEFT's.
fn assert_steps<S: Subject>(subject: &mut S, method: &str, lora_plus: Option<f64>) {
    let mut optimizer = Optimizer::new(Default::default(), None);
    optimizer.lora_plus = lora_plus;
    let mut losses = Vec::new();
    for _ in 0..10 {
        let (loss, grads) = subject.backward();
        losses.push(loss);
        optimizer.step(subject.parameters_mut(), &grads, 1e-3).expect("step");
    }
    let name = format!("{}.{method}.adamw_losses", S::NAME);
    assert_close(&name, &losses, &goldens().floats(&name), 1e-4);
}

/// Compares the logits of a model, and of the merged model, with PEFT's.
fn assert_logits<S: Subject>(subject: &S, method: &str) {
    let name = format!("{}.{method}.logits", S::NAME);
    let (got, want) = (subject.logits(), goldens().floats(&name));
    assert_close(&name, &got, &want, 1e-4);
    let folder = tempfile::tempdir().expect("a folder");
    subject.write_merged(folder.path());
    assert_close(&format!("{name}, merged"), &S::whole(folder.path()).logits(), &got, 1e-4);
}

/// An adapter that is written and read again.
fn through_a_folder(adapter: &Adapter) -> Adapter {
    let folder = tempfile::tempdir().expect("a folder");
    adapter.write(folder.path()).expect("it can be written");
    Adapter::read(folder.path()).expect("a PEFT folder")
}

fn check_lora_plus<S: Subject>() {
    let mut subject = S::with_adapter(&S::base(), S::adapter_of_lora_plus());
    assert_steps(&mut subject, "lora-plus", Some(16.0));
}

fn check_dora<S: Subject>() {
    let folder = fixture("methods").join(format!("{}-dora", S::NAME));
    let adapter = Adapter::read(&folder).expect("a PEFT folder");
    let mut subject = S::with_adapter(&S::base(), adapter.clone());
    assert_logits(&subject, "dora");
    assert_gradients(&subject, "dora");
    let again = through_a_folder(&subject.adapter(adapter.config));
    for (name, layer) in &adapter.layers {
        let bytes = |layer: &gelora_lora::LoraLayer| {
            let magnitude = layer.magnitude.as_ref().expect("every module has magnitudes");
            [&layer.a, &layer.b, magnitude].map(|t| t.bytes().expect("on the CPU").to_vec())
        };
        assert_eq!(bytes(layer), bytes(&again.layers[name]), "{name}");
    }
    assert_steps(&mut subject, "dora", None);
    // New magnitudes change nothing.
    let (mut new, plain) = (S::load(), S::load().logits());
    new.add_adapters(&AdapterConfig { use_dora: true, ..S::config() });
    assert_close("new adapters", &new.logits(), &plain, 1e-5);
}

fn check_pissa<S: Subject>() {
    let golden = goldens();
    let config = AdapterConfig { init_lora_weights: Init::Named("pissa".into()), ..S::config() };
    let plain = S::load().logits();
    let mut subject = S::load();
    subject.add_adapters(&config);
    assert_close("new adapters", &subject.logits(), &plain, 1e-5);
    // Singular vectors have no sign of their own: give ours those of PEFT's.
    let mut signs = std::collections::BTreeMap::new();
    let mut parameters = subject.parameters_mut();
    parameters.retain(|(name, _)| name.contains(".lora_"));
    for (name, tensor) in parameters {
        let want = golden.floats(&format!("{}.pissa.{KEY}{name}", S::NAME));
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (module, is_a) =
            name.split_once(".lora_").map(|(m, end)| (m.to_owned(), end.starts_with('A'))).expect("A or B");
        let values = tensor.as_mut_slice().expect("on the CPU");
        if is_a {
            let dot = |k: usize| (0..cols).map(|c| values[k * cols + c] * want[k * cols + c]).sum::<f32>();
            signs.insert(module.clone(), (0..rows).map(|k| dot(k).signum()).collect::<Vec<_>>());
        }
        // A comes before B.
        let signs = &signs[&module];
        let sign = |i: usize| if is_a { signs[i / cols] } else { signs[i % cols] };
        values.iter_mut().enumerate().for_each(|(i, value)| *value *= sign(i));
        assert_close(&format!("initial {name}"), values, &want, 1e-4);
    }
    assert_gradients(&subject, "pissa");
    assert_steps(&mut subject, "pissa", None);
    assert_logits(&subject, "pissa");
    // The folder holds a plain adapter of twice the rank on the base model.
    let plain = through_a_folder(&subject.adapter(config));
    assert!(plain.layers.values().all(|layer| layer.rank() == 6));
    assert_eq!((plain.config.r, plain.config.lora_alpha), (6, 14.0));
    assert_close("plain", &S::with_adapter(&S::base(), plain.clone()).logits(), &subject.logits(), 1e-4);
    // So does PEFT's, which lacks the head.
    let folder = fixture("methods").join(format!("{}-pissa", S::NAME));
    let mut theirs = Adapter::read(&folder).expect("a PEFT folder");
    assert!(theirs.saved.is_empty());
    theirs.saved = plain.saved;
    assert_eq!((theirs.config.r, theirs.config.lora_alpha), (6, 14.0));
    assert_logits(&S::with_adapter(&S::base(), theirs), "pissa");
}

#[test]
fn lora_plus_matches_peft() {
    check_lora_plus::<Llama>();
}

#[test]
fn pissa_matches_peft() {
    check_pissa::<Llama>();
}

#[test]
fn dora_matches_peft() {
    check_dora::<Llama>();
}

#[cfg(feature = "testbed")]
mod minilm {
    use super::*;
    use crate::subject::minilm::MiniLm;

    #[test]
    fn lora_plus_matches_peft_on_minilm() {
        check_lora_plus::<MiniLm>();
    }

    #[test]
    fn pissa_matches_peft_on_minilm() {
        check_pissa::<MiniLm>();
    }

    #[test]
    fn dora_matches_peft_on_minilm() {
        check_dora::<MiniLm>();
    }
}
