//! Measures the LoRA ranks of a model on texts and writes the PEFT config, without the program `gelora`.
//!
//! `cargo run --release -p gelora-model --example measure -- MODEL_FOLDER`
//!
//! A real caller passes the token ids of its texts. This example uses random ids, so its ranks have no meaning.

#![allow(clippy::print_stdout)] // an example shows its results

use std::path::PathBuf;

use gelora_kernels::random::Stream;
use gelora_model::{Event, MeasureOptions, Tokens, Transformer, measure};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fixture = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny-bert"));
    let folder = std::env::args_os().nth(1).map_or_else(fixture, PathBuf::from);
    let model = Transformer::load(&folder)?;
    let tokens = random_examples(&model, 300);

    let ranks = measure(&model, &tokens, &MeasureOptions::default(), &mut |event: Event<'_>| {
        if let Event::Finished { work } = event {
            println!("done: {}", work.name());
        }
    })?;
    for layer in &ranks.layers {
        println!("{}: growth {:+.2} with error {:.2}, rank {}", layer.name(), layer.delta, layer.error, layer.rank);
    }
    let path = std::env::temp_dir().join("adapter_config.json");
    ranks.adapter_config(&model)?.write(&path)?;
    println!("written: {}", path.display());
    Ok(())
}

/// Makes sequences of 8 to 24 random tokens.
fn random_examples(model: &Transformer, number: usize) -> Vec<Tokens> {
    let mut stream = Stream::at(1, &[0]);
    let mut example = || {
        let length = 8 + stream.below(17);
        Tokens::of_ids((0..length).map(|_| stream.below(model.config().vocabulary) as u32).collect())
    };
    (0..number).map(|_| example()).collect()
}
