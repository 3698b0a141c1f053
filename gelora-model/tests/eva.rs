//! Compares EVA with PEFT, on a language model and on MiniLM. `fixtures/eva.py` describes the goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;
mod subject;

use std::collections::BTreeMap;

use gelora_kernels::Tensor;
use gelora_lora::{Adapter, AdapterConfig};
use gelora_model::eva::{EvaOptions, Start, explained_inputs};
use gelora_model::measure::ModuleRank;
use gelora_model::optim::Optimizer;
use gelora_model::{Event, TokenRows};
use golden::{Golden, assert_close, fixture};
use subject::{Llama, Subject, compare_gradients};

/// The modules of the goldens at rank 3.
fn uniform<S: Subject>(golden: &Golden) -> BTreeMap<String, ModuleRank> {
    let (prefix, end) = (format!("{}.", S::NAME), ".lora_A.weight");
    let names = golden.names(&prefix, end);
    let module = |name: &String| name[prefix.len()..name.len() - end.len()].to_owned();
    names.iter().map(|name| (module(name), ModuleRank { rank: 3, alpha: 7.0 })).collect()
}

fn check<S: Subject>() {
    let golden = Golden::open("eva.golden.safetensors");
    let uniform = uniform::<S>(&golden);
    let mut rows = S::load().rows();
    if S::IS_LM {
        rows.iter_mut().for_each(|row| row.targets.iter_mut().take(2).for_each(|target| *target = false));
    }
    let rows = TokenRows::new(rows);
    let (options, silent) = (EvaOptions::default(), &mut |_: Event<'_>| ());
    let explained = explained_inputs(&mut S::load().task_model(), &rows, &uniform, &options, silent).expect("inputs");
    let start = Start::by_explained_variance(&uniform, &explained).expect("ranks");
    let (ranks, alphas) = start.ranks.iter().fold((Vec::new(), Vec::new()), |(mut ranks, mut alphas), (name, m)| {
        ranks.push((name.clone(), m.rank));
        alphas.push((name.clone(), m.alpha));
        (ranks, alphas)
    });
    let config = AdapterConfig {
        rank_pattern: ranks.into_iter().collect(),
        alpha_pattern: alphas.into_iter().collect(),
        ..S::config()
    };
    let mut subject = S::load();
    subject.add_adapters(&config);
    let mut factors = start.factors;
    for (name, tensor) in subject.parameters_mut() {
        let want = golden.floats(&format!("{}.{name}", S::NAME));
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let found = factors.remove(module).expect("every module has directions").to_vec().expect("on the CPU");
            assert_eq!(found.len(), want.len(), "{name}: PEFT gives it another rank");
            let exact = golden.floats(&format!("{}.{name}.exact", S::NAME));
            let c_in = tensor.cols();
            for (k, found) in found.chunks(c_in).enumerate() {
                // How far apart two directions are.
                let apart = |other: &[f32]| {
                    let dot: f64 = found.iter().zip(&other[k * c_in..]).map(|(a, b)| f64::from(a * b)).sum();
                    1.0 - dot.abs()
                };
                let (from_exact, from_peft) = (apart(&exact), apart(&want));
                println!("{name}, direction {k}: {from_exact:.1e} from the exact one, {from_peft:.1e} from PEFT's");
                assert!(from_exact < 1e-6 && from_peft < 1e-3, "{name}, direction {k}: {from_exact} {from_peft}");
            }
        }
        // PEFT's own directions from here on.
        let values = want;
        *tensor = Tensor::from_vec(values, tensor.shape()).expect("its shape");
    }
    assert!(factors.is_empty(), "PEFT gives no rank to {:?}", factors.keys());
    let mut optimizer = Optimizer::new(Default::default(), None);
    let mut losses = Vec::new();
    for step in 0..10 {
        let (loss, grads) = subject.backward();
        losses.push(loss);
        if step == 0 {
            compare_gradients(&grads, &golden, &format!("{}.", S::NAME));
        }
        optimizer.step(subject.parameters_mut(), &grads, 0.01).expect("a step");
    }
    let name = |what: &str| format!("{}.{what}", S::NAME);
    assert_close(&name("loss"), &losses[..1], &golden.floats(&name("adamw_losses"))[..1], 1e-5);
    assert_close(&name("losses"), &losses, &golden.floats(&name("adamw_losses")), 1e-4);
    assert_close(&name("logits"), &subject.logits(), &golden.floats(&name("logits")), 1e-4);
    let theirs = Adapter::read(&fixture("eva").join(S::NAME)).expect("a PEFT folder");
    let subject = S::with_adapter(&S::base(), theirs);
    let logits = subject.logits();
    assert_close(&name("logits"), &logits, &golden.floats(&name("logits")), 1e-5);
    let folder = tempfile::tempdir().expect("a folder");
    subject.write_merged(folder.path());
    assert_close("merged", &S::whole(folder.path()).logits(), &logits, 1e-4);
}

#[test]
fn eva_matches_peft() {
    check::<Llama>();
}

#[cfg(feature = "testbed")]
#[test]
fn eva_matches_peft_on_minilm() {
    check::<subject::minilm::MiniLm>();
}
