//! An adapter folder, written as PEFT writes it, read again, merged into a weight and taken out again.
//!
//!     cargo run -p gelora-lora --example merge

use std::io::Write;

use gelora_kernels::{Tensor, random::Stream};
use gelora_lora::{Adapter, AdapterConfig, LoraLayer, merge};

const MODULE: &str = "encoder.layer.0.attention.self.query";
const WIDTH: usize = 64;

fn random(seed: u64, shape: [usize; 2], deviation: f64) -> gelora_lora::Result<Tensor> {
    let mut stream = Stream::new(seed);
    let values = (0..shape[0] * shape[1]).map(|_| (deviation * stream.normal()) as f32).collect::<Vec<f32>>();
    Ok(Tensor::from_vec(values, shape)?)
}

fn largest_difference(x: &Tensor, y: &Tensor) -> gelora_lora::Result<f32> {
    let (x, y) = (x.to_vec()?, y.to_vec()?);
    Ok(x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();

    // A config that gives one module the rank 4 and alpha 8, and a layer for it. A new layer has B = 0; training would
    // change B, random numbers stand for that here.
    let config = AdapterConfig::for_modules(&[(MODULE.to_owned(), 4, 8.0)], "", &[""; 0])?;
    let module = config.module(MODULE)?.ok_or("the config has no such module")?;
    let mut layer = LoraLayer::new(MODULE, WIDTH, WIDTH, &module, 42)?;
    layer.b = random(1, [WIDTH, module.rank], 0.1)?;

    // The folder that PEFT loads with `PeftModel.from_pretrained`.
    let folder = tempfile::tempdir()?;
    Adapter { config, layers: [(MODULE.to_owned(), layer)].into(), saved: Default::default() }.write(folder.path())?;
    let adapter = Adapter::read(folder.path())?;
    writeln!(out, "read {} trained numbers", adapter.parameters())?;

    // W' = W + s B A, and back.
    let weight = random(2, [WIDTH, WIDTH], 1.0)?;
    let layer = &adapter.layers[MODULE];
    let merged = merge::merge(&weight, layer)?;
    let restored = merge::unmerge(&merged, layer)?;
    writeln!(out, "merging moved a value of W by up to {:.3}", largest_difference(&weight, &merged)?)?;
    writeln!(out, "after unmerging {:.1e} is left of that", largest_difference(&weight, &restored)?)?;
    Ok(())
}
