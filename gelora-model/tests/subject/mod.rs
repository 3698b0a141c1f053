//! Models that fixtures/methods.py, adalora.py and eva.py describe.

#[cfg(feature = "testbed")]
pub mod minilm;

use std::path::{Path, PathBuf};

use gelora_kernels::Tensor;
use gelora_lora::{Adapter, AdapterConfig, Names};
use gelora_model::{Batch, CausalLm, Grads, Mode, TaskModel, Tokens};

use crate::golden::{Golden, fixture};

/// What names in adapter_model.safetensors begin with.
pub const KEY: &str = "base_model.model.";

/// Compares all gradients with those of the goldens, whose names begin with `prefix`: 1e-4 relative by norm.
#[allow(dead_code)]
pub fn compare_gradients(grads: &Grads, golden: &Golden, prefix: &str) {
    let names = golden.names(prefix, ".grad");
    let mut worst = 0.0_f64;
    for name in &names {
        let parameter = &name[prefix.len()..name.len() - ".grad".len()];
        let got = grads.get(parameter).unwrap_or_else(|| panic!("no gradient of {parameter}"));
        let (got, want) = (got.to_vec().expect("on the CPU"), golden.floats(name));
        assert_eq!(got.len(), want.len(), "{name}");
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let (apart, whole) = (norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)), norm(&mut want.iter().copied()));
        let error = if whole > 0.0 { apart / whole } else { apart };
        assert!(error < 1e-4, "{name}: relative error {error:.1e}");
        worst = worst.max(error);
    }
    assert_eq!(grads.len(), names.len(), "{:?}", grads.keys());
    println!("{prefix}: {} gradients, largest relative error {worst:.1e}", names.len());
}

/// A model with adapters on the batch of its goldens.
pub trait Subject: Sized {
    /// The name of its goldens.
    const NAME: &'static str;
    /// Whether it is a language model.
    #[allow(dead_code)]
    const IS_LM: bool = false;

    fn base() -> PathBuf;
    /// The base model without adapters, with the head of the goldens.
    fn load() -> Self;
    fn with_adapter(base: &Path, adapter: Adapter) -> Self;
    /// A model that was written whole.
    fn whole(folder: &Path) -> Self;
    /// The adapter of the goldens of LoRA+.
    #[allow(dead_code)] // not every test has LoRA+
    fn adapter_of_lora_plus() -> Adapter;
    /// The settings of the adapters in methods.py.
    fn config() -> AdapterConfig;
    fn add_adapters(&mut self, config: &AdapterConfig);
    #[allow(dead_code)]
    fn adapter(&self, config: AdapterConfig) -> Adapter;
    fn backward(&self) -> (f32, Grads);
    fn logits(&self) -> Vec<f32>;
    fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)>;
    #[allow(dead_code)]
    fn write_merged(&self, folder: &Path);
    #[allow(dead_code)] // only EVA measures a model
    fn task_model(self) -> TaskModel;
    fn batch(&self) -> &Batch;

    /// The rows of the batch.
    #[allow(dead_code)]
    fn rows(&self) -> Vec<Tokens> {
        let (ids, types) = (self.batch().ids(), self.batch().types());
        let row = |range: std::ops::Range<usize>| Tokens {
            ids: ids[range.clone()].to_vec(),
            type_ids: types[range.clone()].to_vec(),
            targets: vec![true; range.len()],
        };
        self.batch().sequences().ranges().map(row).collect()
    }
}

pub struct Llama {
    lm: CausalLm,
    batch: Batch,
}

impl Llama {
    fn of(lm: CausalLm) -> Self {
        let golden = Golden::open("families/llama.golden.safetensors");
        let (ids, mask) = (golden.integers("input_ids"), golden.integers("attention_mask"));
        let row = |(ids, mask): (&[u32], &[u32])| ids[..mask.iter().sum::<u32>() as usize].to_vec();
        let rows: Vec<Vec<u32>> = ids.chunks(23).zip(mask.chunks(23)).map(row).collect();
        Self { lm, batch: Batch::of_ids(&rows).expect("rows are not empty") }
    }
}

impl Subject for Llama {
    const NAME: &'static str = "llama";
    const IS_LM: bool = true;

    fn base() -> PathBuf {
        fixture("families/llama")
    }

    fn load() -> Self {
        Self::whole(&Self::base())
    }

    fn with_adapter(base: &Path, adapter: Adapter) -> Self {
        Self::of(CausalLm::with_adapter(base, adapter).expect("it fits"))
    }

    fn whole(folder: &Path) -> Self {
        Self::of(CausalLm::load(folder).expect("it loads"))
    }

    fn adapter_of_lora_plus() -> Adapter {
        let adapter = Adapter::read(&fixture("families/llama/adapter")).expect("a PEFT folder");
        Adapter { saved: [].into(), ..adapter }
    }

    fn config() -> AdapterConfig {
        let targets = ["q_proj", "v_proj", "o_proj", "down_proj"].map(str::to_owned);
        AdapterConfig {
            r: 3,
            lora_alpha: 7.0,
            task_type: Some("CAUSAL_LM".into()),
            target_modules: Some(Names::List(targets.to_vec())),
            ..AdapterConfig::default()
        }
    }

    fn add_adapters(&mut self, config: &AdapterConfig) {
        self.lm.add_adapters(config, 1).expect("they fit");
    }

    fn adapter(&self, config: AdapterConfig) -> Adapter {
        self.lm.adapter(config)
    }

    fn backward(&self) -> (f32, Grads) {
        let (targets, mut grads) = (vec![true; self.batch.ids().len()], Grads::new());
        let loss = self.lm.backward(&self.batch, &targets, &Mode::inference(), 1.0, &mut grads).expect("backward");
        (loss.item().expect("a loss"), grads)
    }

    fn logits(&self) -> Vec<f32> {
        // The second row.
        let rows: Vec<usize> = (23..32).collect();
        self.lm.logits(&self.batch, &rows).and_then(|t| Ok(t.to_vec()?)).expect("logits")
    }

    fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        self.lm.parameters_mut()
    }

    fn write_merged(&self, folder: &Path) {
        self.lm.write_merged(&Self::base(), folder).expect("it merges");
    }

    fn task_model(self) -> TaskModel {
        self.lm.into()
    }

    fn batch(&self) -> &Batch {
        &self.batch
    }
}
