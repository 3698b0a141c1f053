//! Compares a tiny random BERT with transformers and PEFT.

mod golden;

use gelora_kernels::Tensor;
use gelora_kernels::ops::loss::CrossEntropy;
use gelora_kernels::ops::pool;
use gelora_lora::Adapter;
use gelora_model::{Classifier, Grads, Granularity, Mode, Targets, Task, Transformer};
use golden::{Golden, assert_close, assert_trains_like_peft, batch, fixture};

type Row = (Vec<u32>, Vec<u32>);

/// The golden batch without its padding.
fn rows(golden: &Golden) -> Vec<Row> {
    let t = 19;
    let (ids, types) = (golden.integers("input_ids"), golden.integers("token_type_ids"));
    let mask = golden.integers("attention_mask");
    (0..ids.len() / t)
        .map(|b| {
            let length = mask[b * t..(b + 1) * t].iter().sum::<u32>() as usize;
            (ids[b * t..b * t + length].to_vec(), types[b * t..b * t + length].to_vec())
        })
        .collect()
}

const ALL: [usize; 5] = [0, 1, 2, 3, 4];

fn with_adapter(name: &str) -> (Adapter, Classifier) {
    let adapter = Adapter::read(&fixture(name)).expect("a PEFT folder");
    let classifier = Classifier::with_adapter(&fixture("tiny-bert"), adapter.clone(), None).expect("it fits");
    (adapter, classifier)
}

#[test]
fn hidden_states_and_logits_match_transformers() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let rows = rows(&golden);
    let batch = batch(&rows, &ALL);
    let encoder = Transformer::load(&fixture("tiny-bert")).expect("it loads");
    let mut states = 0;
    encoder
        .hidden_states(&batch, Granularity::Block, |l, tokens| {
            let padded = golden.floats(&format!("hidden_{l}"));
            let want: Vec<f32> = rows
                .iter()
                .enumerate()
                .flat_map(|(b, row)| padded[b * 19 * 32..][..row.0.len() * 32].to_vec())
                .collect();
            assert_close(&format!("hidden {l}"), tokens.as_slice()?, &want, 1e-5);
            let pooled = pool::mean(tokens, batch.sequences())?;
            assert_close(&format!("pooled {l}"), pooled.as_slice()?, &golden.floats(&format!("layer_{l}")), 1e-5);
            states += 1;
            Ok(())
        })
        .expect("it runs");
    assert_eq!(states, 4);
    let classifier = Classifier::load(&fixture("tiny-bert"), None).expect("the head is in the checkpoint");
    assert_eq!(classifier.task().outputs(), 3);
    let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    assert_close("logits", &logits, &golden.floats("base.logits"), 1e-5);
}

/// transformers' hidden_states do not contain the states between attention and MLP, but those after the MLP.
#[test]
fn sublayer_states_contain_the_block_states() {
    let batch = batch(&rows(&Golden::open("tiny-bert.golden.safetensors")), &ALL);
    let encoder = Transformer::load(&fixture("tiny-bert")).expect("it loads");
    let states = |granularity| {
        let mut states = Vec::new();
        let keep = |s: usize, tokens: &Tensor| {
            assert_eq!(s, states.len());
            states.push(tokens.to_vec()?);
            Ok(())
        };
        encoder.hidden_states(&batch, granularity, keep).expect("it runs");
        states
    };
    let (blocks, sublayers) = (states(Granularity::Block), states(Granularity::Sublayer));
    assert_eq!((blocks.len(), sublayers.len()), (4, 7));
    for (l, state) in blocks.iter().enumerate() {
        assert_eq!(state, &sublayers[2 * l], "state {l}");
    }
    for state in sublayers.iter().skip(1).step_by(2) {
        assert!(sublayers.iter().filter(|other| *other == state).count() == 1, "a state that differs from all others");
    }
    assert_eq!([(1, true), (1, false)].map(|(l, attention)| Granularity::Sublayer.step_of(l, attention)), [2, 3]);
    assert_eq!([(1, true), (1, false)].map(|(l, attention)| Granularity::Block.step_of(l, attention)), [1, 1]);
}

#[test]
fn training_matches_peft() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let (adapter, mut classifier) = with_adapter("tiny-bert-peft");
    let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    assert_close("logits", &logits, &golden.floats("peft.logits"), 1e-5);
    let labels: Vec<usize> = golden.integers("labels").iter().map(|l| *l as usize).collect();
    let targets = Targets::Classes(&labels);
    let compared = assert_trains_like_peft(&golden, "peft.", &adapter, &mut classifier, &batch, targets);
    assert_eq!(compared, 3 * 4 * 2 + 2);
}

#[test]
fn regression_matches_peft() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let mut adapter = Adapter::read(&fixture("tiny-bert-peft")).expect("a PEFT folder");
    let head = |name: &str, shape: &[usize]| {
        Tensor::from_vec(golden.floats(&format!("regression.{name}")), shape).expect("the shape of the head")
    };
    adapter.saved.insert("classifier.weight".into(), head("classifier.weight", &[1, 32]));
    adapter.saved.insert("classifier.bias".into(), head("classifier.bias", &[1]));
    let base = fixture("tiny-bert");
    let mut classifier = Classifier::with_adapter(&base, adapter.clone(), None).expect("it fits");
    assert_eq!(*classifier.task(), Task::Regression);
    let scores = golden.floats("regression.labels");
    let targets = Targets::Scores(&scores);
    assert_trains_like_peft(&golden, "regression.", &adapter, &mut classifier, &batch, targets);
}

#[test]
fn all_linears_with_rank_stabilized_scaling() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let (adapter, classifier) = with_adapter("tiny-bert-peft-rslora");
    assert_eq!(adapter.layers.len(), 19);
    let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    assert_close("logits", &logits, &golden.floats("rslora.logits"), 1e-5);
}

#[test]
fn accumulated_gradients_match_those_of_the_whole_batch() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let rows = rows(&golden);
    let (_, mut classifier) = with_adapter("tiny-bert-peft");
    let labels = [0, 2, 1, 1, 0];
    let weighted = CrossEntropy { weights: vec![0.25, 3.0, 1.5], smoothing: 0.1 };
    for loss in [CrossEntropy::default(), weighted] {
        classifier.set_loss(loss.clone()).expect("three classes");
        let all = loss.total(labels);
        let run = |parts: &[&[usize]]| {
            let (mut grads, mut mean) = (Grads::new(), 0.0);
            for part in parts {
                let labels: Vec<usize> = part.iter().map(|&i| labels[i]).collect();
                let share = loss.total(labels.iter().copied()) / all;
                let (batch, targets) = (batch(&rows, part), Targets::Classes(&labels));
                let of_part = classifier.backward(&batch, targets, &Mode::inference(), share as f32, &mut grads);
                mean += share * f64::from(of_part.and_then(|loss| Ok(loss.item()?)).expect("backward"));
            }
            (grads, mean)
        };
        let ((whole, mean), (parts, mean_of_parts)) = (run(&[&ALL]), run(&[&[0, 1], &[2], &[3, 4]]));
        assert!((mean - mean_of_parts).abs() < 1e-6 * mean, "{loss:?}: {mean} {mean_of_parts}");
        assert_eq!(whole.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>());
        for (name, gradient) in &whole {
            let (a, b) = (gradient.to_vec().expect("on the CPU"), parts[name].to_vec().expect("on the CPU"));
            let scale = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert_close(name, &b, &a, 1e-5 * scale);
        }
    }
}

/// torch's CrossEntropyLoss(weight, label_smoothing), worked out in f64 from the logits.
#[test]
fn a_weighted_and_smoothed_loss_by_its_formula() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let (_, mut classifier) = with_adapter("tiny-bert-peft");
    let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    let (labels, weights, smoothing) = ([0, 2, 1, 1, 0], [0.25f32, 3.0, 1.5], 0.1f32);
    let w = weights.map(f64::from);
    let (mut of_labels, mut of_all, mut total) = (0.0, 0.0, 0.0);
    for (row, label) in logits.chunks(3).zip(labels) {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let loss = |class: usize| w[class] * (sum.ln() - f64::from(row[class]));
        of_labels += loss(label);
        of_all += (0..3).map(loss).sum::<f64>();
        total += w[label];
    }
    let e = f64::from(smoothing);
    let expected = (1.0 - e) * of_labels / total + e / 3.0 * of_all / total;
    classifier.set_loss(CrossEntropy { weights: weights.to_vec(), smoothing }).expect("three classes");
    let loss = classifier.backward(&batch, Targets::Classes(&labels), &Mode::inference(), 1.0, &mut Grads::new());
    let loss = f64::from(loss.and_then(|loss| Ok(loss.item()?)).expect("backward"));
    assert!((loss - expected).abs() < 1e-6 * expected, "{loss}, expected {expected}");
    let wrong = classifier.set_loss(CrossEntropy { weights: vec![1.0], smoothing: 0.0 }).expect_err("one weight");
    assert!(wrong.to_string().contains("3 classes need as many weights, got 1"), "{wrong}");
}

#[test]
fn dropout_depends_on_seed_and_step_alone() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let (_, classifier) = with_adapter("tiny-bert-peft");
    let loss = |seed, step| {
        let targets = Targets::Classes(&[0, 2, 1, 1, 0]);
        let loss = classifier.backward(&batch, targets, &Mode::training(seed, step), 1.0, &mut Grads::new());
        loss.and_then(|loss| Ok(loss.item()?)).expect("backward")
    };
    assert_eq!(loss(1, 1), loss(1, 1));
    assert_ne!(loss(1, 1), loss(1, 2));
    assert_ne!(loss(1, 1), loss(2, 1));
}

/// Compares gradients with a finite difference through the whole model in training, with dropout.
#[test]
fn gradients_with_dropout_match_finite_differences() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let (_, mut classifier) = with_adapter("tiny-bert-peft-rslora");
    let targets = Targets::Classes(&[0, 2, 1, 1, 0]);
    let mode = Mode::training(5, 7);
    let mut grads = Grads::new();
    classifier.backward(&batch, targets, &mode, 1.0, &mut grads).expect("backward");
    // Along the gradient the slope of the loss must be the gradient's squared norm. f32 is too coarse for single
    // parameters.
    let squared: f64 = grads.values().flat_map(|g| g.to_vec().expect("on the CPU")).map(|v| f64::from(v).powi(2)).sum();
    let h = 2e-3 / squared.sqrt();
    let mut loss_at = |sign: f64| {
        for (name, parameter) in classifier.parameters_mut() {
            let Some(gradient) = grads.get(&name) else { continue };
            let gradient = gradient.to_vec().expect("on the CPU");
            for (p, g) in parameter.as_mut_slice().expect("on the CPU").iter_mut().zip(gradient) {
                *p += (sign * h) as f32 * g;
            }
        }
        let loss = classifier.backward(&batch, targets, &mode, 1.0, &mut Grads::new());
        f64::from(loss.and_then(|loss| Ok(loss.item()?)).expect("backward"))
    };
    let (up, down) = (loss_at(1.0), loss_at(-2.0));
    let slope = (up - down) / (2.0 * h);
    assert!((slope / squared - 1.0).abs() < 1e-2, "slope {slope}, squared norm of the gradient {squared}");
}

/// The weights are mapped from the files that merging replaces.
#[cfg(unix)]
#[test]
fn a_model_can_be_merged_into_its_own_folder() {
    let golden = Golden::open("tiny-bert.golden.safetensors");
    let batch = batch(&rows(&golden), &ALL);
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny-bert").join(name), folder.path().join(name)).expect("a copy");
    }
    let adapter = Adapter::read(&fixture("tiny-bert-peft")).expect("a PEFT folder");
    let classifier = Classifier::with_adapter(folder.path(), adapter, None).expect("it fits");
    classifier.write_merged(folder.path(), folder.path()).expect("it is written");
    let logits = |classifier: &Classifier| classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
    let merged = Classifier::load(folder.path(), None).expect("the merged model");
    assert_close("merged", &logits(&merged), &golden.floats("peft.logits"), 1e-5);
    assert_close("mapped before", &logits(&classifier), &golden.floats("peft.logits"), 1e-5);
}
