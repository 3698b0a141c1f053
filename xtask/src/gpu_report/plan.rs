//! Which parts there are: the checks, then the timings, each beside PyTorch's.

use std::path::{Path, PathBuf};

use gelora_kernels::verify::cases;
use gelora_kernels::{Device, DeviceKind};

use super::part::Part;

/// Trainings of ten steps whose losses are compared with the CPU's: a name, and the options of `gelora train`.
pub const LOSSES: [(&str, &str); 3] =
    [("f32", ""), ("f32-dropout", "--lora-dropout 0.1 --accumulate 2"), ("bf16", "--dtype bf16")];

/// Operators that take long to verify, each in a process of its own; all others share one.
const SLOW: [&str; 5] = ["linear", "lora_linear", "attention", "pairwise", "layer_norm"];

/// Where everything is.
pub struct Settings {
    pub xtask: PathBuf,
    pub gelora: PathBuf,
    pub python: Option<PathBuf>,
    pub script: PathBuf,
    pub tokenizer: Option<PathBuf>,
    pub data: Option<PathBuf>,
    pub device: DeviceKind,
    pub scratch: PathBuf,
    pub quick: bool,
}

impl Settings {
    /// The folder of one of the trainings of [`LOSSES`].
    pub fn training(&self, name: &str, device: &str) -> PathBuf {
        self.scratch.join(format!("losses-{name}-{device}"))
    }

    /// The folder of a model of random weights.
    fn model(&self, shape: &str) -> PathBuf {
        self.scratch.join(shape)
    }

    /// `{}` stands for the next path.
    fn part(&self, name: &str, limit: u64, program: &Path, line: &str, paths: &[&PathBuf]) -> Part {
        let mut paths = paths.iter();
        let args = line.split_whitespace().map(|word| match word {
            "{}" => paths.next().map(|path| path.display().to_string()).unwrap_or_default(),
            word => word.to_string(),
        });
        Part {
            name: name.into(),
            limit,
            program: program.to_path_buf(),
            args: args.collect(),
            folder: self.scratch.join("timings"),
            fails_with: None,
        }
    }

    fn own(&self, name: &str, limit: u64, line: &str, paths: &[&PathBuf]) -> Part {
        let line = format!("{line} --device {}", self.device);
        self.part(name, limit, &self.xtask, &line, paths)
    }

    /// What PyTorch does, if there is a Python.
    fn torch(&self, name: &str, limit: u64, line: &str, paths: &[&PathBuf]) -> Option<Part> {
        let mut all = vec![&self.script];
        all.extend(paths);
        Some(self.part(&format!("{name}, PyTorch"), limit, self.python.as_ref()?, &format!("{{}} {line}"), &all))
    }
}

/// Verification in several processes, and short trainings on the device and on the CPU.
pub fn checks(settings: &Settings) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut devices = vec![settings.device];
    if settings.device == DeviceKind::Cuda && Device::open(DeviceKind::Wgpu).is_ok() {
        devices.push(DeviceKind::Wgpu);
    }
    for device in devices {
        for (group, ops) in groups() {
            let line = format!("verify --device {device} --op {ops}");
            let mut part = settings.part(&format!("verify {device} {group}"), 200, &settings.xtask, &line, &[]);
            part.folder = settings.scratch.join(format!("verify-{device}-{group}"));
            parts.push(part);
        }
    }
    if let (Some(tokenizer), Some(data)) = (&settings.tokenizer, &settings.data) {
        let own = settings.device.to_string();
        for (name, options) in LOSSES {
            for device in ["cpu", own.as_str()] {
                let model = settings.training(name, device).join("model");
                // A model for each, so that none waits for another; all have the same weights.
                let line = format!(
                    "{{}} model --shape minilm --tokenizer {{}} --out {{}} --then {{}} train {{}} --data {{}} --out \
                     adapter \
                     --rank 8 --steps 10 --batch-size 32 --seed 1 --device {device} --quiet {options}"
                );
                let paths = [&settings.script, tokenizer, &model, &settings.gelora, &model, data];
                let Some(python) = &settings.python else { continue };
                let mut part = settings.part(&format!("losses {name} {device}"), 150, python, &line, &paths);
                part.folder = settings.training(name, device);
                parts.push(part);
            }
        }
    }
    parts
}

/// Operators that are verified together: a name, and what `--op` takes.
fn groups() -> Vec<(&'static str, String)> {
    let mut groups: Vec<(&str, String)> = SLOW.iter().map(|op| (*op, (*op).to_string())).collect();
    let slow = |op: &str| SLOW.iter().any(|prefix| op.starts_with(prefix));
    let mut rest: Vec<&str> = cases().iter().map(|case| case.op).filter(|op| !slow(op)).collect();
    rest.sort_unstable();
    rest.dedup();
    groups.push(("rest", rest.join(",")));
    groups
}

/// Every bench alone on the GPU, followed by what PyTorch needs for the same.
pub fn timings(settings: &Settings) -> Vec<Part> {
    let mut parts = Vec::new();
    let product = if settings.quick { "product --size 256" } else { "product" };
    parts.extend(settings.torch("Matrix product", 40, product, &[]));
    let kernels = if settings.quick {
        [("Two nearest neighbors", "two-nn --n 300 --d 48 --repeats 2"), ("LoRA linear", "lora --repeats 2"), ("", "")]
    } else {
        [
            ("Two nearest neighbors", "two-nn --n 20000 --d 768"),
            ("LoRA linear as in an LLM", "lora --tokens 8192 --d-in 4096 --d-out 4096 --r 16 --repeats 10"),
            ("LoRA linear as in MiniLM", "lora --tokens 4096 --d-in 384 --d-out 384 --r 8 --repeats 10"),
        ]
    };
    for (name, line) in kernels.into_iter().filter(|(name, _)| !name.is_empty()) {
        parts.push(settings.own(name, 60, &format!("bench {line}"), &[]));
        parts.extend(settings.torch(name, 60, line, &[]));
    }
    let (Some(tokenizer), Some(data), Some(_)) = (&settings.tokenizer, &settings.data, &settings.python) else {
        return parts;
    };
    let (samples, steps) = if settings.quick { (64, 4) } else { (2000, 40) };
    let minilm = settings.model("minilm");
    parts.extend(settings.torch(
        "MiniLM's shape",
        60,
        "model --shape minilm --tokenizer {} --out {}",
        &[tokenizer, &minilm],
    ));
    for (name, line, dtypes) in [
        ("Hidden states", format!("hidden --model {{}} --data {{}} --samples {samples} --batch 64"), "f32,bf16"),
        ("Training step", format!("train --model {{}} --data {{}} --steps {steps} --batch 128"), "f32,bf16"),
    ] {
        let own = format!("bench {line} --dtypes {dtypes} --gelora {{}}");
        parts.push(settings.own(name, 60, &own, &[&minilm, data, &settings.gelora]));
        parts.extend(settings.torch(name, 90, &line, &[&minilm, data]));
    }
    if settings.quick {
        return parts;
    }
    let mut out_of_memory = None;
    for shape in ["llama-1b", "llama-8b"] {
        let model = settings.model(shape);
        let make = "model --shape {} --tokenizer {} --out {}".replacen("{}", shape, 1);
        parts.extend(settings.torch(&format!("{shape}'s shape"), 120, &make, &[tokenizer, &model]));
        let line = format!(
            "train {{}} --data {{}} --task causal-lm --out {shape}-adapter --rank 16 --steps 8 --batch-size 8 \
             --max-length 512 \
             --dtype bf16 --device {} --json --quiet --profile={shape}.json",
            settings.device
        );
        parts.push(settings.part(&format!("{shape}, training"), 90, &settings.gelora, &line, &[&model, data]));
        if shape == "llama-1b" {
            let line = line.replace("--batch-size 8", "--batch-size 512").replace("adapter", "adapter-512");
            let name = format!("{shape}, out of memory");
            let part = settings.part(&name, 60, &settings.gelora, &line, &[&model, data]);
            out_of_memory = Some(Part { fails_with: Some("--batch-size"), ..part });
        }
        let steps = format!("steps --profile {shape}.json");
        parts.extend(settings.torch(&format!("{shape}, gelora's steps"), 20, &steps, &[]));
        let peer = "causal --model {} --batch 8 --length 512 --r 16 --steps 8";
        parts.extend(settings.torch(&format!("{shape}, training"), 90, peer, &[&model]));
        parts.extend(out_of_memory.take());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_in_a_group() {
        let groups = groups();
        for case in cases() {
            let names = groups.iter().flat_map(|(_, ops)| ops.split(','));
            assert!(names.into_iter().any(|name| case.op.starts_with(name)), "{}", case.op);
        }
    }
}
