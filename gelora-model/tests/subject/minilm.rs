//! MiniLM as a classifier of two classes, on a padded batch of six examples of minilm.golden.

use std::path::{Path, PathBuf};

use gelora_kernels::Tensor;
use gelora_lora::{Adapter, AdapterConfig, Names};
use gelora_model::{Batch, Classifier, Grads, Mode, Targets, Task, TaskModel};

use super::{KEY, Subject};
use crate::golden::{Golden, fixture};

pub struct MiniLm {
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
        let golden = Golden::open("methods.golden.safetensors");
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

    fn task_model(self) -> TaskModel {
        self.classifier.into()
    }

    fn batch(&self) -> &Batch {
        &self.batch
    }
}
