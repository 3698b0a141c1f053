//! Golden files made by transformers and PEFT (see fixtures/README.md), and comparisons with them.
#![allow(clippy::print_stdout)] // print the differences when a test fails
#![allow(dead_code)] // each test file uses a part of this module

use std::path::{Path, PathBuf};

use gelora_lora::Adapter;
use gelora_model::optim::Optimizer;
use gelora_model::{Batch, Classifier, Grads, Mode, Targets};
use safetensors::{Dtype, SafeTensors};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = fixture(name);
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a golden file is valid")
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(t.dtype(), Dtype::F32, "{name}");
        t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        let file = self.file();
        let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let width = t.data().len() / t.shape().iter().product::<usize>();
        t.data()
            .chunks_exact(width)
            .map(|b| b.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)) as u32)
            .collect()
    }

    pub fn names(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let file = self.file();
        let chosen = file.names().into_iter().filter(|n| n.starts_with(prefix) && n.ends_with(suffix));
        chosen.map(str::to_string).collect()
    }
}

pub fn batch(rows: &[(Vec<u32>, Vec<u32>)], chosen: &[usize]) -> Batch {
    Batch::new(&chosen.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>()).expect("rows are not empty")
}

pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    println!("{what}: largest difference {worst:.1e}");
    assert!(got.iter().chain(want).all(|v| v.is_finite()), "{what}: not finite");
    assert!(worst <= tolerance, "{what}: largest difference {worst}, at most {tolerance}");
}

/// Compares the loss, all gradients and ten AdamW steps with PEFT. Returns the number of compared gradients.
pub fn assert_trains_like_peft(
    golden: &Golden,
    prefix: &str,
    adapter: &Adapter,
    classifier: &mut Classifier,
    batch: &Batch,
    targets: Targets<'_>,
) -> usize {
    let mut grads = Grads::new();
    let loss = classifier.backward(batch, targets, &Mode::inference(), 1.0, &mut grads).expect("backward");
    assert_close("loss", &loss.to_vec().expect("a loss"), &golden.floats(&format!("{prefix}loss")), 1e-5);

    let names = golden.names(&format!("{prefix}base_model.model."), ".grad");
    assert_eq!(names.len(), 2 * adapter.layers.len() + 2, "gradients of every A and B, and of the head");
    for name in &names {
        let parameter = &name[prefix.len() + "base_model.model.".len()..name.len() - ".grad".len()];
        let got =
            grads.get(parameter).unwrap_or_else(|| panic!("no gradient of {parameter}")).to_vec().expect("on the CPU");
        let want = golden.floats(name);
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(error < 1e-4, "{parameter}: relative error {error:.1e}");
    }
    assert_eq!(grads.len(), names.len());

    let mut optimizer = Optimizer::new(Default::default(), None);
    let mut losses = Vec::new();
    for _ in 0..10 {
        let mut grads = Grads::new();
        let loss = classifier.backward(batch, targets, &Mode::inference(), 1.0, &mut grads).expect("backward");
        losses.push(loss.item().expect("a loss"));
        optimizer.step(classifier.parameters_mut(), &grads, 1e-3).expect("step");
    }
    assert_close("ten losses", &losses, &golden.floats(&format!("{prefix}adamw_losses")), 1e-4);
    names.len()
}
