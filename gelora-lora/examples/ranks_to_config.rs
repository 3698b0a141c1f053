//! From intrinsic dimensions to adapter_config.json: growths, ranks, and the config that PEFT trains from.
//!
//!     cargo run -p gelora-lora --example ranks_to_config -- [FOLDER]
//!
//! Writes FOLDER/adapter_config.json, or prints it if no folder is given.

use std::io::Write;
use std::path::PathBuf;

use gelora_lora::ranks::{self, Limits, Policy, Step};
use gelora_lora::{AdapterConfig, CONFIG_NAME};

/// Inputs and outputs of every projection of the model.
const WIDTH: usize = 384;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();

    // Dimensions of the hidden states of a model with six layers: before the first layer, and after each.
    let dimensions = [10.2, 12.9, 13.1, 12.4, 15.8, 17.0, 14.5];
    let growths = ranks::differences(&dimensions)?;

    // Each layer adapts its query and its value projection. The growth has no confidence bound here.
    let cost = 2 * (WIDTH + WIDTH);
    let steps: Vec<Step> = growths.iter().map(|&delta| Step { delta, upper: delta, cost, most: WIDTH }).collect();
    let layers = ranks::assign(&steps, &Policy::default(), ranks::ALPHA_RATIO, &Limits::default())?;
    for (layer, (growth, given)) in growths.iter().zip(&layers).enumerate() {
        writeln!(out, "layer {layer}: growth {growth:+.1}, rank {}, alpha {}", given.rank, given.alpha)?;
    }

    // One config for all modules. `others` are linear modules that must not get an adapter.
    let name = |layer: usize, projection: &str| format!("bert.encoder.layer.{layer}.attention.self.{projection}");
    let modules: Vec<(String, usize, f64)> = layers
        .iter()
        .enumerate()
        .flat_map(|(layer, given)| ["query", "value"].map(|p| (name(layer, p), given.rank, given.alpha)))
        .collect();
    let others: Vec<String> = (0..layers.len()).map(|layer| name(layer, "key")).collect();
    let config = AdapterConfig {
        task_type: Some("SEQ_CLS".into()),
        modules_to_save: Some(vec!["classifier".into()]),
        ..AdapterConfig::for_modules(&modules, "bert.", &others)?
    };
    match std::env::args_os().nth(1).map(PathBuf::from) {
        Some(folder) => {
            std::fs::create_dir_all(&folder)?;
            config.write(&folder.join(CONFIG_NAME))?;
            writeln!(out, "wrote {}", folder.join(CONFIG_NAME).display())?;
        }
        None => writeln!(out, "{}", serde_json::to_string_pretty(&config)?)?,
    }
    Ok(())
}
