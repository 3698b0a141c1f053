//! Compares LoRA+, rsLoRA, PiSSA and DoRA with PEFT, and the head alone with transformers, on Llama and on MiniLM.
//! `fixtures/methods.py` describes the goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;
mod subject;

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::Tensor;
use gelora_lora::files::read_tensors;
use gelora_lora::{Adapter, AdapterConfig, Init};
use gelora_model::optim::Optimizer;
use gelora_model::{Batch, Classifier, Grads, Mode, Targets, Task};
use golden::{Golden, assert_close, fixture};
use serde_json::Value;
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

/// Compares logits, loss, gradients, ten steps and the written folder with PEFT's.
fn check_folder<S: Subject>(method: &str, config: AdapterConfig) {
    let folder = fixture("methods").join(format!("{}-{method}", S::NAME));
    let adapter = Adapter::read(&folder).expect("a PEFT folder");
    let mut subject = S::with_adapter(&S::base(), adapter.clone());
    assert_logits(&subject, method);
    assert_gradients(&subject, method);
    let written = tempfile::tempdir().expect("a folder");
    subject.adapter(config).write(written.path()).expect("it can be written");
    assert_same_adapter(written.path(), &folder);
    assert_steps(&mut subject, method, None);
}

/// Compares all tensors of two adapter folders, and what decides how PEFT uses them.
fn assert_same_adapter(got: &Path, want: &Path) {
    let tensors = |folder: &Path| {
        let read = read_tensors(&folder.join("adapter_model.safetensors"), |_| true).expect("tensors");
        let values = |tensor: &Tensor| (tensor.shape().to_vec(), tensor.bytes().expect("on the CPU").to_vec());
        read.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect::<BTreeMap<_, _>>()
    };
    let (ours, theirs) = (tensors(got), tensors(want));
    assert!(ours.keys().eq(theirs.keys()), "{:?} beside {:?}", ours.keys(), theirs.keys());
    ours.iter().for_each(|(name, values)| assert!(*values == theirs[name], "{name} has other values"));
    let config = |folder: &Path| -> Value {
        let file = std::fs::read(folder.join("adapter_config.json")).expect("a config");
        let mut config: Value = serde_json::from_slice(&file).expect("JSON");
        if let Some(names) = config["target_modules"].as_array_mut() {
            names.sort_by_key(Value::to_string); // PEFT writes a set
        }
        config
    };
    let (ours, theirs) = (config(got), config(want));
    for key in ["peft_type", "task_type", "bias", "fan_in_fan_out", "init_lora_weights", "use_dora", "use_rslora"]
        .into_iter()
        .chain(["lora_dropout", "r", "rank_pattern", "alpha_pattern", "target_modules"])
    {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert_eq!(ours["lora_alpha"].as_f64(), theirs["lora_alpha"].as_f64(), "lora_alpha");
    // PEFT lists the heads of every architecture.
    let heads = |config: &Value| config["modules_to_save"].as_array().cloned().unwrap_or_default();
    assert!(heads(&ours).iter().all(|head| heads(&theirs).contains(head)), "modules_to_save");
}

fn check_rslora<S: Subject>() {
    check_folder::<S>("rslora", AdapterConfig { use_rslora: true, ..S::config() });
}

fn check_dora<S: Subject>() {
    let config = AdapterConfig { use_dora: true, ..S::config() };
    check_folder::<S>("dora", config.clone());
    // New magnitudes change nothing.
    let (mut new, plain) = (S::load(), S::load().logits());
    new.add_adapters(&config);
    assert_close("new adapters", &new.logits(), &plain, 1e-5);
}

/// Compares loss, gradients and ten steps of a classifier without adapters with transformers.
fn check_head(name: &str, mut classifier: Classifier, batch: &Batch, labels: &[usize]) {
    let (golden, mut optimizer) = (goldens(), Optimizer::new(Default::default(), None));
    let mut losses = Vec::new();
    for step in 0..10 {
        let mut grads = Grads::new();
        let loss = classifier.backward(batch, Targets::Classes(labels), &Mode::inference(), 1.0, &mut grads);
        losses.push(loss.and_then(|loss| Ok(loss.item()?)).expect("a loss"));
        if step == 0 {
            assert_close(&format!("{name} loss"), &losses, &golden.floats(&format!("{name}.loss")), 1e-5);
            compare_gradients(&grads, &golden, &format!("{name}.{KEY}"));
        }
        optimizer.step(classifier.parameters_mut(), &grads, 1e-3).expect("a step");
    }
    assert_close(name, &losses, &golden.floats(&format!("{name}.adamw_losses")), 1e-4);
}

fn check_pissa<S: Subject>() {
    let golden = goldens();
    let config = AdapterConfig { init_lora_weights: Init::Named("pissa".into()), ..S::config() };
    let plain = S::load().logits();
    let mut subject = S::load();
    subject.add_adapters(&config);
    assert_close("new adapters", &subject.logits(), &plain, 1e-5);
    // Singular vectors have no sign of their own: give ours those of PEFT's.
    let mut signs = BTreeMap::new();
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
fn rslora_matches_peft() {
    check_rslora::<Llama>();
}

#[test]
fn head_alone_matches_transformers() {
    let task = Task::Classification { labels: ["0", "1", "2"].map(String::from).to_vec() };
    let mut classifier = Classifier::new(&Llama::base(), task, 0).expect("it loads");
    for (name, tensor) in classifier.parameters_mut() {
        let values = goldens().floats(&format!("llama.head.{KEY}{name}"));
        *tensor = Tensor::from_vec(values, tensor.shape()).expect("the shape of the head");
    }
    check_head("llama.head", classifier, Llama::load().batch(), &[0, 1, 2, 0]);
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
    use gelora_model::TaskModel;

    use super::*;
    use crate::subject::minilm::MiniLm;

    #[test]
    fn lora_plus_matches_peft_on_minilm() {
        check_lora_plus::<MiniLm>();
    }

    #[test]
    fn rslora_matches_peft_on_minilm() {
        check_rslora::<MiniLm>();
    }

    #[test]
    fn head_alone_matches_transformers_on_minilm() {
        let subject = MiniLm::load();
        let batch = subject.batch().clone();
        let TaskModel::Classifier(classifier) = subject.task_model() else { panic!("MiniLM is a classifier") };
        check_head("minilm.head", *classifier, &batch, &[0, 1, 0, 1, 0, 1]);
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
