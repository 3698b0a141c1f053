//! Compares LoRA+, PiSSA and DoRA with PEFT, on a language model and on MiniLM. `fixtures/methods.py` describes the
//! goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;

use std::path::{Path, PathBuf};

use gelora_kernels::Tensor;
use gelora_lora::{Adapter, AdapterConfig, Init, Names};
use gelora_model::optim::Optimizer;
use gelora_model::{Batch, CausalLm, Grads, Mode};
use golden::{Golden, assert_close, fixture};

const KEY: &str = "base_model.model.";

fn goldens() -> Golden {
    Golden::open("methods.golden.safetensors")
}

/// A model with adapters on the batch of its goldens.
trait Subject: Sized {
    /// The name of its goldens.
    const NAME: &'static str;

    fn base() -> PathBuf;
    /// The base model without adapters, with the head of the goldens.
    fn load() -> Self;
    fn with_adapter(base: &Path, adapter: Adapter) -> Self;
    /// A model that was written whole.
    fn whole(folder: &Path) -> Self;
    /// The adapter of the goldens of LoRA+.
    fn adapter_of_lora_plus() -> Adapter;
    /// The settings of the adapters in methods.py.
    fn config() -> AdapterConfig;
    fn add_adapters(&mut self, config: &AdapterConfig);
    fn adapter(&self, config: AdapterConfig) -> Adapter;
    fn backward(&self) -> (f32, Grads);
    fn logits(&self) -> Vec<f32>;
    fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)>;
    fn write_merged(&self, folder: &Path);
}

struct Llama {
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
}

/// Compares the loss and all gradients with PEFT's.
fn assert_gradients<S: Subject>(subject: &S, method: &str) {
    let (golden, prefix) = (goldens(), format!("{}.{method}", S::NAME));
    let (loss, grads) = subject.backward();
    assert_close(&format!("{prefix} loss"), &[loss], &golden.floats(&format!("{prefix}.loss")), 1e-5);
    let names = golden.names(&format!("{prefix}.{KEY}"), ".grad");
    let mut worst = 0.0_f64;
    for name in &names {
        let parameter = &name[prefix.len() + 1 + KEY.len()..name.len() - ".grad".len()];
        let got = grads.get(parameter).unwrap_or_else(|| panic!("no gradient of {parameter}"));
        let (got, want) = (got.to_vec().expect("on the CPU"), golden.floats(name));
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(error < 1e-4, "{prefix} {parameter}: relative error {error:.1e}");
        worst = worst.max(error);
    }
    assert_eq!(grads.len(), names.len(), "{:?}", grads.keys());
    println!("{prefix}: {} gradients, largest relative error {worst:.1e}", names.len());
}

/// Compares the losses of ten steps with PEFT's.
fn assert_steps<S: Subject>(subject: &mut S, method: &str, lora_plus: Option<f64>) {
    let mut optimizer = Optimizer::new(Default::default(), None);
    optimizer.lora_plus = lora_plus;
    let mut losses = Vec::new();
    for _ in 0..10 {
        let (loss, grads) = subject.backward();
        losses.push(loss);
        optimizer.step(subject.parameters_mut(), &grads, 1e-3).expect("step");
    }
    let name = format!("{}.{method}.adamw_losses", S::NAME);
    assert_close(&name, &losses, &goldens().floats(&name), 1e-4);
}

/// Compares the logits of a model, and of the merged model, with PEFT's.
fn assert_logits<S: Subject>(subject: &S, method: &str) {
    let name = format!("{}.{method}.logits", S::NAME);
    let (got, want) = (subject.logits(), goldens().floats(&name));
    assert_close(&name, &got, &want, 1e-4);
    let folder = tempfile::tempdir().expect("a folder");
    subject.write_merged(folder.path());
    assert_close(&format!("{name}, merged"), &S::whole(folder.path()).logits(), &got, 1e-4);
}

/// An adapter that is written and read again.
fn through_a_folder(adapter: &Adapter) -> Adapter {
    let folder = tempfile::tempdir().expect("a folder");
    adapter.write(folder.path()).expect("it can be written");
    Adapter::read(folder.path()).expect("a PEFT folder")
}

fn check_lora_plus<S: Subject>() {
    let mut subject = S::with_adapter(&S::base(), S::adapter_of_lora_plus());
    assert_steps(&mut subject, "lora-plus", Some(16.0));
}

fn check_dora<S: Subject>() {
    let folder = fixture("methods").join(format!("{}-dora", S::NAME));
    let adapter = Adapter::read(&folder).expect("a PEFT folder");
    let mut subject = S::with_adapter(&S::base(), adapter.clone());
    assert_logits(&subject, "dora");
    assert_gradients(&subject, "dora");
    let again = through_a_folder(&subject.adapter(adapter.config));
    for (name, layer) in &adapter.layers {
        let bytes = |layer: &gelora_lora::LoraLayer| {
            let magnitude = layer.magnitude.as_ref().expect("every module has magnitudes");
            [&layer.a, &layer.b, magnitude].map(|t| t.bytes().expect("on the CPU").to_vec())
        };
        assert_eq!(bytes(layer), bytes(&again.layers[name]), "{name}");
    }
    assert_steps(&mut subject, "dora", None);
    // New magnitudes change nothing.
    let (mut new, plain) = (S::load(), S::load().logits());
    new.add_adapters(&AdapterConfig { use_dora: true, ..S::config() });
    assert_close("new adapters", &new.logits(), &plain, 1e-5);
}

fn check_pissa<S: Subject>() {
    let golden = goldens();
    let config = AdapterConfig { init_lora_weights: Init::Named("pissa".into()), ..S::config() };
    let plain = S::load().logits();
    let mut subject = S::load();
    subject.add_adapters(&config);
    assert_close("new adapters", &subject.logits(), &plain, 1e-5);
    // Singular vectors have no sign of their own: give ours those of PEFT's.
    let mut signs = std::collections::BTreeMap::new();
    let mut parameters = subject.parameters_mut();
    parameters.retain(|(name, _)| name.contains(".lora_"));
    for (name, tensor) in parameters {
        let want = golden.floats(&format!("{}.pissa.{KEY}{name}", S::NAME));
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (module, is_a) =
            name.split_once(".lora_").map(|(m, end)| (m.to_owned(), end.starts_with('A'))).expect("A or B");
        let values = tensor.as_mut_slice().expect("on the CPU");
        if is_a {
            let dot = |k: usize| (0..cols).map(|c| values[k * cols + c] * want[k * cols + c]).sum::<f32>();
            signs.insert(module.clone(), (0..rows).map(|k| dot(k).signum()).collect::<Vec<_>>());
        }
        // A comes before B.
        let signs = &signs[&module];
        let sign = |i: usize| if is_a { signs[i / cols] } else { signs[i % cols] };
        values.iter_mut().enumerate().for_each(|(i, value)| *value *= sign(i));
        assert_close(&format!("initial {name}"), values, &want, 1e-4);
    }
    assert_gradients(&subject, "pissa");
    assert_steps(&mut subject, "pissa", None);
    assert_logits(&subject, "pissa");
    // The folder holds a plain adapter of twice the rank on the base model.
    let plain = through_a_folder(&subject.adapter(config));
    assert!(plain.layers.values().all(|layer| layer.rank() == 6));
    assert_eq!((plain.config.r, plain.config.lora_alpha), (6, 14.0));
    assert_close("plain", &S::with_adapter(&S::base(), plain.clone()).logits(), &subject.logits(), 1e-4);
    // So does PEFT's, which lacks the head.
    let folder = fixture("methods").join(format!("{}-pissa", S::NAME));
    let mut theirs = Adapter::read(&folder).expect("a PEFT folder");
    assert!(theirs.saved.is_empty());
    theirs.saved = plain.saved;
    assert_eq!((theirs.config.r, theirs.config.lora_alpha), (6, 14.0));
    assert_logits(&S::with_adapter(&S::base(), theirs), "pissa");
}

#[test]
fn lora_plus_matches_peft() {
    check_lora_plus::<Llama>();
}

#[test]
fn pissa_matches_peft() {
    check_pissa::<Llama>();
}

#[test]
fn dora_matches_peft() {
    check_dora::<Llama>();
}

#[cfg(feature = "testbed")]
mod minilm {
    use gelora_model::{Classifier, Targets, Task};

    use super::*;

    struct MiniLm {
        classifier: Classifier,
        batch: Batch,
    }

    impl MiniLm {
        fn of(classifier: Classifier) -> Self {
            let golden = Golden::open("minilm.golden.safetensors");
            let (ids, types) = (golden.integers("input_ids"), golden.integers("token_type_ids"));
            let cut = |v: &[u32], b: usize, length: u32| v[b * 128..b * 128 + length as usize].to_vec();
            let lengths = golden.integers("lengths");
            let row = |b: usize| (cut(&ids, b, lengths[b]), cut(&types, b, lengths[b]));
            let rows: Vec<_> = (0..6).map(|i| row(4 * i)).collect();
            Self { classifier, batch: Batch::new(&rows).expect("rows are not empty") }
        }
    }

    impl Subject for MiniLm {
        const NAME: &'static str = "minilm";

        fn base() -> PathBuf {
            let testbed = std::env::var_os("GELORA_TESTBED").map(PathBuf::from);
            let testbed = testbed.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/testbed"));
            let model = testbed.join("minilm");
            assert!(model.is_dir(), "{} is missing; `cargo xtask testbed` fetches it", model.display());
            model
        }

        fn load() -> Self {
            let task = Task::Classification { labels: vec!["0".into(), "1".into()] };
            let mut subject = Self::of(Classifier::new(&Self::base(), task, 0).expect("it loads"));
            let golden = goldens();
            for (name, tensor) in subject.classifier.parameters_mut() {
                let values = golden.floats(&format!("minilm.pissa.{KEY}{name}"));
                *tensor = Tensor::from_vec(values, tensor.shape()).expect("the shape of the head");
            }
            subject
        }

        fn with_adapter(base: &Path, adapter: Adapter) -> Self {
            Self::of(Classifier::with_adapter(base, adapter, None).expect("it fits"))
        }

        fn whole(folder: &Path) -> Self {
            Self::of(Classifier::load(folder, None).expect("it loads"))
        }

        fn adapter_of_lora_plus() -> Adapter {
            Adapter::read(&fixture("minilm-peft")).expect("a PEFT folder")
        }

        fn config() -> AdapterConfig {
            let targets = r"bert\.encoder\.layer\.[05]\.attention\.self\.(query|value)";
            AdapterConfig {
                r: 3,
                lora_alpha: 7.0,
                task_type: Some("SEQ_CLS".into()),
                target_modules: Some(Names::Pattern(targets.into())),
                modules_to_save: Some(vec!["classifier".into()]),
                ..AdapterConfig::default()
            }
        }

        fn add_adapters(&mut self, config: &AdapterConfig) {
            self.classifier.add_adapters(config, 1).expect("they fit");
        }

        fn adapter(&self, config: AdapterConfig) -> Adapter {
            self.classifier.adapter(config)
        }

        fn backward(&self) -> (f32, Grads) {
            let (labels, mut grads) = ((0..6).map(|i| i % 2).collect::<Vec<_>>(), Grads::new());
            let targets = Targets::Classes(&labels);
            let loss = self.classifier.backward(&self.batch, targets, &Mode::inference(), 1.0, &mut grads);
            (loss.and_then(|loss| Ok(loss.item()?)).expect("a loss"), grads)
        }

        fn logits(&self) -> Vec<f32> {
            self.classifier.logits(&self.batch).and_then(|t| Ok(t.to_vec()?)).expect("logits")
        }

        fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
            self.classifier.parameters_mut()
        }

        fn write_merged(&self, folder: &Path) {
            self.classifier.write_merged(&Self::base(), folder).expect("it merges");
        }
    }

    #[test]
    fn lora_plus_matches_peft_on_minilm() {
        check_lora_plus::<MiniLm>();
    }

    #[test]
    fn pissa_matches_peft_on_minilm() {
        check_pissa::<MiniLm>();
    }

    #[test]
    fn dora_matches_peft_on_minilm() {
        check_dora::<MiniLm>();
    }
}
