//! Trains an adapter and a head on labeled token ids, evaluates them, and writes a folder that PEFT loads.
//!
//! `cargo run --release -p gelora-model --example train -- MODEL_FOLDER`
//!
//! The task is artificial: whether the first token of a text is in the upper half of the vocabulary.

#![allow(clippy::print_stdout)] // an example shows its results

use std::path::PathBuf;

use gelora_kernels::random::Stream;
use gelora_model::measure::ModuleRank;
use gelora_model::train::Length;
use gelora_model::{Classifier, Event, Task, TaskModel, TokenRows, Tokens, TrainOptions, Trainer, evaluate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fixture = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny-bert"));
    let folder = std::env::args_os().nth(1).map_or_else(fixture, PathBuf::from);
    let task = Task::Classification { labels: vec!["lower".into(), "upper".into()] };
    let mut model = TaskModel::from(Classifier::new(&folder, task, 0)?);
    let vocabulary = model.transformer().config().vocabulary;
    let (train, held_out) = (rows(vocabulary, 1, 512), rows(vocabulary, 2, 128));

    // Rank 4 for the four projections of attention. `gelora_model::measure` would measure the ranks on data.
    let attention = model.transformer().linear_infos().into_iter().filter(|info| info.attention);
    let ranks = attention.map(|info| (info.name, ModuleRank { rank: 4, alpha: 8.0 })).collect();
    let options = TrainOptions { ranks, lr: 5e-3, length: Length::Epochs(3.0), ..Default::default() };
    let mut trainer = Trainer::new(&mut model, &train, options)?.with_held_out(Some(&held_out));
    trainer.run(&mut |event: Event<'_>| {
        if matches!(event, Event::Evaluated { .. }) {
            println!("{event}");
        }
    })?;
    let out = std::env::temp_dir().join("gelora-example-adapter");
    trainer.adapter().write(&out)?;
    println!("the adapter is in {}", out.display());
    let metrics = evaluate(&model, &held_out, 32, &mut |_: Event<'_>| {})?.metrics;
    println!("held-out: {metrics:?}");
    Ok(())
}

/// Makes texts of 8 to 24 random tokens with their classes.
fn rows(vocabulary: usize, seed: u64, number: usize) -> TokenRows {
    let mut stream = Stream::at(seed, &[0]);
    let mut text = || {
        let length = 8 + stream.below(17);
        (0..length).map(|_| stream.below(vocabulary) as u32).collect::<Vec<u32>>()
    };
    let texts: Vec<Vec<u32>> = (0..number).map(|_| text()).collect();
    let classes = texts.iter().map(|ids| usize::from(ids[0] as usize >= vocabulary / 2)).collect();
    TokenRows::with_classes(texts.into_iter().map(Tokens::of_ids).collect(), classes)
}
