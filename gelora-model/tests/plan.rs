//! The plan of a training counts what the training holds.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stdout)] // a skipped comparison must be visible

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gelora_kernels::{DType, Device, DeviceKind, plan};
use gelora_model::measure::{ModuleRank, TargetModules};
use gelora_model::optim::Optimizer;
use gelora_model::plan::{Planner, stored_dtype};
use gelora_model::train::Rehearsal;
use gelora_model::{
    CausalLm, Classifier, Granularity, Result, Task, TaskModel, TokenRows, Tokens, TrainOptions, Trainer,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

fn task() -> Task {
    Task::Classification { labels: ["a", "b"].map(str::to_owned).to_vec() }
}

fn rows(model: &TaskModel, tokens: usize) -> TokenRows {
    let row = vec![Tokens::of_ids(vec![0; tokens])];
    match model {
        TaskModel::CausalLm(_) => TokenRows::new(row),
        _ => TokenRows::with_classes(row, vec![0]),
    }
}

fn options(model: &TaskModel, dora: bool) -> Result<TrainOptions> {
    let (infos, layers) = (model.transformer().linear_infos(), model.transformer().config().layers);
    let targets = TargetModules::new(&infos, layers, Granularity::Block, &[])?;
    let ranks: BTreeMap<_, _> =
        targets.modules.iter().map(|(info, _)| (info.name.clone(), ModuleRank { rank: 2, alpha: 4.0 })).collect();
    Ok(TrainOptions { ranks, dora, ..TrainOptions::default() })
}

/// The model from its files, and the same model from config.json alone.
fn both(name: &str) -> Result<[TaskModel; 2]> {
    let path = fixture(name);
    let stored = stored_dtype(&path)?;
    Ok(match CausalLm::planned(&path, stored) {
        Ok(planned) => [CausalLm::load(&path)?.into(), planned.into()],
        Err(_) => [Classifier::new(&path, task(), 0)?.into(), Classifier::planned(&path, stored, task())?.into()],
    })
}

/// Tensors at the peak of a step and between steps, on a wgpu device.
fn held(model: &mut TaskModel, device: &Device, steps: [Rehearsal; 2], dora: bool) -> Result<Vec<u64>> {
    model.move_to(device)?;
    let (rows, options) = (rows(model, steps[0].tokens), options(model, dora)?);
    let mut trainer = Trainer::new(model, &rows, options)?;
    let mut optimizer = Optimizer::default();
    trainer.rehearse(Rehearsal { rows: 1, ..steps[0] }, 2, &mut optimizer)?;
    let mut all = vec![device.memory_in_use()?.unwrap_or_default()];
    for step in steps {
        device.reset_peak_memory();
        trainer.rehearse(step, 1, &mut optimizer)?;
        all.push(device.peak_memory().unwrap_or_default());
    }
    Ok(all)
}

/// One test, since the count is that of the device.
#[test]
fn a_plan_of_wgpu_is_what_a_step_takes() -> Result<()> {
    let Ok(device) = Device::open(DeviceKind::Wgpu) else {
        println!("skipped: no wgpu adapter");
        return Ok(());
    };
    let step = Rehearsal { rows: 3, tokens: 12, accumulate: 1, checkpoint_activations: false };
    let steps = [step, Rehearsal { rows: 4, accumulate: 2, checkpoint_activations: true, ..step }];
    let families = ["bert", "deberta-conv", "gpt2", "llama-nf4", "llama-tied", "gemma3"];
    for (name, dora) in families.into_iter().map(|name| (name, false)).chain([("bert", true), ("llama", true)]) {
        let before = device.memory_in_use()?.unwrap_or_default();
        let [mut real, mut sizes] = both(&format!("families/{name}"))?;
        let mut measured = held(&mut real, &device, steps, dora)?;
        drop(real);
        measured.iter_mut().for_each(|bytes| *bytes -= before);
        let planned = plan::open(DeviceKind::Wgpu, 1 << 30)?;
        sizes.move_to(&planned)?;
        let (rows, options) = (rows(&sizes, step.tokens), options(&sizes, dora)?);
        let mut planner = Planner::new(&mut sizes, &rows, options, step.tokens)?;
        let mut counted = vec![planner.between_steps()?];
        for step in steps {
            counted.push(planner.peak(step)?.expect("it fits").tensors);
        }
        println!("{name} dora {dora}: measured {measured:?}, planned {counted:?}");
        for (measured, counted) in measured.iter().zip(&counted) {
            let off = (*counted as f64 / *measured as f64 - 1.0).abs();
            assert!(off < 0.01, "{name}, dora {dora}: planned {counted} bytes, measured {measured}");
        }
        assert!(counted[1] > counted[0] && counted[2] > counted[0], "{counted:?}");
    }
    Ok(())
}

#[test]
fn quantized_weights_take_fewer_bytes_and_a_small_card_fewer_rows() -> Result<()> {
    let path = fixture("families/llama");
    let mut weights = Vec::new();
    for stored in [DType::F32, DType::F16] {
        let device = plan::open(DeviceKind::Cuda, 4 << 30)?;
        let mut model: TaskModel = CausalLm::planned(&path, stored)?.into();
        let before = plan::held(&device)?.tensors;
        model.move_to(&device)?;
        weights.push(plan::held(&device)?.tensors - before);
    }
    assert!(weights[1] < weights[0] * 6 / 10, "{weights:?}");
    let mut largest = Vec::new();
    for memory in [64 << 20, 256 << 20] {
        let device = plan::open(DeviceKind::Cuda, memory)?;
        let mut model: TaskModel = CausalLm::planned(&path, DType::F32)?.into();
        model.move_to(&device)?;
        let (rows, options) = (rows(&model, 16), options(&model, false)?);
        let mut planner = Planner::new(&mut model, &rows, options, 16)?;
        let step = Rehearsal { rows: 1, tokens: 16, accumulate: 1, checkpoint_activations: false };
        let rows = planner.largest(step, |peak| peak.reserved <= memory)?.rows;
        let at = |planner: &mut Planner<'_>, rows| planner.peak(Rehearsal { rows, ..step });
        assert!(at(&mut planner, rows)?.is_some_and(|peak| peak.reserved <= memory));
        let more = at(&mut planner, rows + rows / 32 + 2)?;
        assert!(more.is_none_or(|peak| peak.reserved > memory), "{rows} rows: {more:?}");
        largest.push(rows);
    }
    assert!(largest[0] > 0 && largest[1] > 2 * largest[0], "{largest:?}");
    Ok(())
}

#[test]
fn a_weight_that_no_buffer_holds_is_named() -> Result<()> {
    // A planned CUDA device has buffers of a quarter of its memory; the embedding of this model has 512 KiB or more.
    let device = plan::open(DeviceKind::Cuda, 1 << 20)?;
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(fixture("families/llama/config.json")).expect("its config");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["vocab_size"] = 4096.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a config");
    let mut model: TaskModel = CausalLm::planned(folder.path(), DType::F32)?.into();
    let problem = model.move_to(&device).expect_err("it is too large").to_string();
    for words in ["the word embedding", "512.0 KiB", "256.0 KiB", "--device cpu"] {
        assert!(problem.contains(words), "{words:?} in {problem}");
    }
    Ok(())
}
