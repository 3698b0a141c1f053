//! Compares a classifier whose classes do not exclude each other with transformers, PEFT and scikit-learn.
//! `fixtures/multi_label.py` describes the goldens.

mod golden;

use std::path::PathBuf;

use gelora_kernels::Tensor;
use gelora_lora::Adapter;
use gelora_model::evaluate::{evaluate, multi_label, predicted_set};
use gelora_model::optim::Optimizer;
use gelora_model::{Batch, Classifier, Event, Grads, Labels, Mode, Rows, Targets, Task, TaskModel, TokenRows, Tokens};
use golden::{Golden, assert_close, fixture};

const KEY: &str = "base_model.model.";

fn goldens() -> Golden {
    Golden::open("multi_label.golden.safetensors")
}

fn folder() -> PathBuf {
    fixture("families/bert")
}

fn task() -> Task {
    Task::MultiLabel { labels: ["a", "b", "c"].map(str::to_owned).to_vec() }
}

fn classifier() -> Classifier {
    let adapter = Adapter::read(&folder().join("adapter")).expect("a PEFT folder");
    Classifier::with_adapter(&folder(), adapter, Some(task())).expect("it fits")
}

fn rows() -> Vec<Vec<u32>> {
    let golden = Golden::open("families/bert.golden.safetensors");
    let (ids, mask) = (golden.integers("input_ids"), golden.integers("attention_mask"));
    let row = |(ids, mask): (&[u32], &[u32])| ids[..mask.iter().sum::<u32>() as usize].to_vec();
    ids.chunks(23).zip(mask.chunks(23)).map(row).collect()
}

/// The classes of rows of 0 and 1.
fn sets(name: &str, classes: usize) -> Vec<Vec<usize>> {
    let set = |row: &[u32]| (0..classes).filter(|class| row[*class] == 1).collect();
    goldens().integers(name).chunks(classes).map(set).collect()
}

fn backward(classifier: &Classifier) -> (f32, Grads) {
    let (sets, mut grads) = (sets("targets", 3), Grads::new());
    let sets: Vec<&[usize]> = sets.iter().map(Vec::as_slice).collect();
    let batch = Batch::of_ids(&rows()).expect("rows are not empty");
    let loss =
        classifier.backward(&batch, Targets::Sets(&sets), &Mode::inference(), 1.0, &mut grads).expect("backward");
    (loss.item().expect("a loss"), grads)
}

#[test]
fn loss_gradients_and_ten_steps_are_those_of_peft() {
    let (golden, mut classifier) = (goldens(), classifier());
    let (loss, grads) = backward(&classifier);
    assert_close("loss", &[loss], &golden.floats("loss"), 1e-5);
    let keys = golden.names(KEY, ".grad");
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for key in &keys {
        let name = &key[KEY.len()..key.len() - ".grad".len()];
        let got = grads.get(name).and_then(|t: &Tensor| t.to_vec().ok()).unwrap_or_else(|| panic!("no {name}"));
        let want = golden.floats(key);
        let whole = norm(&mut want.iter().copied());
        let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
        // The exact gradient of a key bias is 0.
        assert!(error < 1e-4 * whole.max(1e-3), "{name}: error {error:.1e} of {whole:.1e}");
    }
    assert_eq!(grads.len(), keys.len());

    let (mut optimizer, mut losses) = (Optimizer::new(Default::default(), None), Vec::new());
    for _ in 0..10 {
        let (loss, grads) = backward(&classifier);
        losses.push(loss);
        optimizer.step(classifier.parameters_mut(), &grads, 1e-3).expect("step");
    }
    assert_close("adamw_losses", &losses, &golden.floats("adamw_losses"), 1e-4);
}

#[test]
fn metrics_are_those_of_scikit_learn() {
    let golden = goldens();
    let (gold, predicted) = (sets("sets.gold", 7), sets("sets.predicted", 7));
    let found = multi_label(&predicted, &gold, 7);
    let values: Vec<f32> = found.iter().map(|(_, value)| *value as f32).collect();
    assert_close("metrics", &values, &golden.floats("sets.metrics"), 1e-6);
}

#[test]
fn rows_are_evaluated_by_their_sets() {
    let classifier = classifier();
    let batch = Batch::of_ids(&rows()).expect("rows are not empty");
    let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    let predicted: Vec<Vec<usize>> = logits.chunks(3).map(predicted_set).collect();
    let tokens: Vec<Tokens> = rows().into_iter().map(Tokens::of_ids).collect();
    let model = TaskModel::from(classifier);
    let metric = |sets: Vec<Vec<usize>>| {
        let rows = TokenRows::with_sets(tokens.clone(), sets);
        assert!(matches!(rows.labels(), Labels::Sets(_)));
        evaluate(&model, &rows, 2, &mut |_: Event<'_>| ()).map(|evaluation| evaluation.metrics)
    };
    assert_eq!(metric(predicted.clone()).expect("it runs").last(), Some(&("subset_accuracy", 1.0)));
    let error = metric(vec![vec![3]; predicted.len()]).expect_err("there are three classes");
    assert!(error.to_string().contains("below 3, got 3"), "{error}");
}

/// A merged model says that its classes do not exclude each other, and is read as such.
#[test]
fn a_merged_model_keeps_the_task() {
    let merged = tempfile::tempdir().expect("a folder");
    classifier().write_merged(&folder(), merged.path()).expect("it merges");
    assert_eq!(*Classifier::load(merged.path(), None).expect("a whole model").task(), task());
    // A head of three outputs whose task no file names is one of classes that exclude each other.
    let adapter = Adapter::read(&folder().join("adapter")).expect("a PEFT folder");
    let mut classifier = Classifier::with_adapter(&folder(), adapter, None).expect("it fits");
    assert!(matches!(classifier.task(), Task::Classification { .. }) && !classifier.is_task_known());
    classifier.set_task(task()).expect("three outputs");
    assert!(classifier.set_task(Task::Regression).is_err());
}
