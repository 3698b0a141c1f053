//! An adapter folder, as PEFT writes and reads it.
//!
//! ```text
//! adapter_config.json          see `config`
//! adapter_model.safetensors    base_model.model.<module>.lora_A.weight     A (R, C_in)
//!                              base_model.model.<module>.lora_B.weight     B (C_out, R)
//!                              base_model.model.<module>.lora_magnitude_vector     DoRA: m (C_out)
//!                              base_model.model.<module>.lora_A, .lora_B, .lora_E  AdaLoRA: A, B, e (R, 1)
//!                              base_model.model.<module>.<parameter>       the modules_to_save: the head
//! ```
//!
//! Source: PEFT 0.21.2, `utils/save_and_load.py`; names checked on folders that PEFT saved (fixtures/).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gelora_kernels::{DType, Tensor};

use crate::config::CONFIG_NAME;
use crate::{AdapterConfig, Error, LoraLayer, Matcher, Names, Result, files};

/// The name of the file with the tensors in an adapter folder.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";
const MAGNITUDE: &str = ".lora_magnitude_vector";
/// Names of AdaLoRA, whose factors are parameters and not modules.
const OF_TRIPLETS: [&str; 3] = [".lora_A", ".lora_B", ".lora_E"];

/// A trained adapter: the content of one PEFT folder.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// adapter_config.json.
    pub config: AdapterConfig,
    /// The adapted modules by their full names in the base model (no `base_model.model.`).
    pub layers: BTreeMap<String, LoraLayer>,
    /// The parameters of `modules_to_save` by their full names (`classifier.weight`), in the file's element type.
    pub saved: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// Reads an adapter folder with adapter_model.safetensors. A and B become f32, as in PEFT. All tensors are checked
    /// against the config.
    ///
    /// # Errors
    /// If a file is missing or damaged; if the config is not supported; if A or B of a module is missing, does not have
    /// the rank that the config gives the module, or belongs to a module without an adapter; or if another tensor is in
    /// no module of `modules_to_save`.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = AdapterConfig::read(&folder.join(CONFIG_NAME))?;
        let path = folder.join(WEIGHTS_NAME);
        let tensors = files::read_tensors(&path, |name| !is_given_up(&config, name))?;
        Self::from_tensors(config, tensors, &path)
    }

    /// The adapter of tensors that are already read, by their names in the file at `path`. They are checked as in
    /// [`Adapter::read`].
    ///
    /// # Errors
    /// As [`Adapter::read`], but for missing and damaged files.
    pub fn from_tensors(config: AdapterConfig, tensors: BTreeMap<String, Tensor>, path: &Path) -> Result<Self> {
        let matcher = config.matcher()?;
        let (mut a, mut b, mut magnitudes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut singular, mut saved) = (BTreeMap::new(), BTreeMap::new());
        let [triplets_a, triplets_b, triplets_e] = OF_TRIPLETS;
        for (key, tensor) in tensors {
            let Some(name) = key.strip_prefix(PREFIX) else {
                return Err(Error::tensor(path, &key, format!("expected a name that begins with {PREFIX}")));
            };
            if let Some(module) = name.strip_suffix(LORA_A).or(name.strip_suffix(triplets_a)) {
                a.insert(module.to_owned(), tensor.to_dtype(DType::F32)?);
            } else if let Some(module) = name.strip_suffix(LORA_B).or(name.strip_suffix(triplets_b)) {
                b.insert(module.to_owned(), tensor.to_dtype(DType::F32)?);
            } else if let Some(module) = name.strip_suffix(MAGNITUDE).filter(|_| config.use_dora) {
                magnitudes.insert(module.to_owned(), tensor.to_dtype(DType::F32)?);
            } else if let Some(module) = name.strip_suffix(triplets_e) {
                singular.insert(module.to_owned(), tensor.to_dtype(DType::F32)?);
            } else if is_saved(&config, &matcher, name) {
                saved.insert(name.to_owned(), tensor);
            } else {
                let problem = "expected lora_A.weight or lora_B.weight of a module, or a parameter of modules_to_save";
                return Err(Error::tensor(path, &key, problem));
            }
        }
        let mut layers = BTreeMap::new();
        for (module, a) in a {
            let b =
                b.remove(&module).ok_or_else(|| Error::module(&module, format!("{} has no lora_B", path.display())))?;
            let magnitude = magnitudes.remove(&module);
            let singular = singular.remove(&module);
            let mut layer = LoraLayer { a, b, scaling: 0.0, dropout: 0.0, magnitude, initial: None, singular };
            layer.sizes().map_err(|problem| Error::module(&module, problem))?;
            (layer.a, layer.singular) = (layer.factor_a()?, None);
            let layer = configured(&config, &matcher, &module, layer)?;
            layers.insert(module, layer);
        }
        if let Some((module, _)) = b.pop_first().or(magnitudes.pop_first()).or(singular.pop_first()) {
            return Err(Error::module(&module, format!("{} has no lora_A", path.display())));
        }
        Ok(Self { config, layers, saved })
    }

    /// Writes the folder so that `PeftModel.from_pretrained` loads it, and creates it if it does not exist. Each file
    /// is replaced atomically, the tensors first. The config is written with `inference_mode` true, as PEFT writes it.
    /// An adapter that began as singular triplets (PiSSA) is written as a plain one of twice the ranks, for the
    /// unmodified base model, and one with singular values (AdaLoRA) as a plain one of the ranks that it keeps.
    ///
    /// # Errors
    /// As [`Adapter::check`], and if a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if self.config.is_pissa() {
            return self.on_the_base()?.write(folder);
        }
        if self.config.is_adalora() {
            return self.clone().folded()?.write(folder);
        }
        self.check()?;
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let layers = self.layers.iter().flat_map(|(module, layer)| {
            [(format!("{PREFIX}{module}{LORA_A}"), &layer.a), (format!("{PREFIX}{module}{LORA_B}"), &layer.b)]
        });
        let magnitudes = self.layers.iter().filter_map(|(module, layer)| {
            layer.magnitude.as_ref().map(|magnitude| (format!("{PREFIX}{module}{MAGNITUDE}"), magnitude))
        });
        let saved = self.saved.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor));
        files::write_tensors(&folder.join(WEIGHTS_NAME), layers.chain(magnitudes).chain(saved))?;
        let config = AdapterConfig { inference_mode: true, ..self.config.clone() };
        config.write(&folder.join(CONFIG_NAME))
    }

    /// Checks that PEFT would read the adapter as it is.
    ///
    /// # Errors
    /// If the config is not supported; if a layer has another rank or scaling than the config gives it; or if a name in
    /// `saved` is in no module of `modules_to_save`.
    pub fn check(&self) -> Result<()> {
        self.config.validate()?;
        let matcher = self.config.matcher()?;
        for (module, layer) in &self.layers {
            let scaling = configured(&self.config, &matcher, module, layer.clone())?.scaling;
            if (scaling - layer.scaling).abs() > 1e-6 * scaling.abs() {
                return Err(Error::module(
                    module,
                    format!("the config gives it the scaling {scaling}, but the layer has {}", layer.scaling),
                ));
            }
        }
        for name in self.saved.keys() {
            if !is_saved(&self.config, &matcher, name) {
                return Err(Error::module(name, "is to be saved, but is in no module of modules_to_save"));
            }
        }
        Ok(())
    }

    /// The plain adapter of twice the ranks that computes on the base weights what this one computes on those without
    /// the triplets that it began as.
    fn on_the_base(&self) -> Result<Self> {
        let layer = |(name, layer): (&String, &LoraLayer)| Ok((name.clone(), layer.on_the_base()?));
        let layers = self.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { config: self.config.on_the_base(), layers, saved: self.saved.clone() })
    }

    /// The adapter of a PiSSA training with this config, from the plain one that [`Adapter::write`] wrote.
    ///
    /// # Errors
    /// If the ranks are not twice those of the config.
    pub fn on_the_residual(self, config: &AdapterConfig) -> Result<Self> {
        let matcher = config.matcher()?;
        let layer = |(name, layer): (String, LoraLayer)| {
            let layer = configured(config, &matcher, &name, layer.on_the_residual()?)?;
            Ok((name, layer))
        };
        let layers = self.layers.into_iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), layers, saved: self.saved })
    }

    /// Number of trained values: A, B, magnitudes and singular values of every module, and the parameters in `saved`.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.layers.values().map(LoraLayer::parameters).sum::<usize>()
            + self.saved.values().map(Tensor::len).sum::<usize>()
    }
}

/// Whether AdaLoRA left no rank to the module of this tensor, which is empty then.
fn is_given_up(config: &AdapterConfig, name: &str) -> bool {
    let Some(Names::List(excluded)) = &config.exclude_modules else { return false };
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let module = OF_TRIPLETS.iter().find_map(|end| name.strip_suffix(end));
    module.is_some_and(|module| excluded.iter().any(|excluded| excluded == module))
}

/// Whether the config saves this parameter: it is in a module of `modules_to_save`, or it is the language-model head,
/// which PEFT saves with the word embedding if `ensure_weight_tying` is true.
fn is_saved(config: &AdapterConfig, matcher: &Matcher, name: &str) -> bool {
    let tied = config.other.get("ensure_weight_tying").is_some_and(|value| value == true);
    matcher.is_saved(name.rsplit_once('.').map_or("", |(module, _)| module)) || (tied && name == "lm_head.weight")
}

/// The layer with the scaling and dropout of the config. An error if its shapes do not fit the config.
fn configured(config: &AdapterConfig, matcher: &Matcher, module: &str, layer: LoraLayer) -> Result<LoraLayer> {
    let (rank, ..) = layer.sizes().map_err(|problem| Error::module(module, problem))?;
    if config.use_dora != layer.magnitude.is_some() {
        let problem = match config.use_dora {
            true => "the config has use_dora, but there is no lora_magnitude_vector",
            false => "has a lora_magnitude_vector, but the config does not have use_dora",
        };
        return Err(Error::module(module, problem));
    }
    match matcher.module(module)? {
        None => Err(Error::module(module, "has an adapter, but the config does not target it")),
        Some(config) if config.rank != rank => {
            let (a, b) = (layer.a.shape(), layer.b.shape());
            Err(Error::module(module, format!("the config gives it rank {}, but A is {a:?} and B {b:?}", config.rank)))
        }
        Some(config) => Ok(LoraLayer { scaling: config.scaling, dropout: config.dropout, ..layer }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(json: &str) -> AdapterConfig {
        serde_json::from_str(json).unwrap()
    }

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, &gelora_kernels::Device::Cpu).unwrap()
    }

    fn problem(tensors: &[(&str, &[usize])]) -> String {
        let config = config(r#"{"r": 2, "target_modules": ["q"], "modules_to_save": ["classifier"]}"#);
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        Adapter::from_tensors(config, tensors, "f".as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn tensors_that_do_not_fit() {
        const A: &str = "base_model.model.l.q.lora_A.weight";
        const B: &str = "base_model.model.l.q.lora_B.weight";
        assert_eq!(problem(&[(A, &[2, 8])]), "module l.q: f has no lora_B");
        assert_eq!(problem(&[(B, &[8, 2])]), "module l.q: f has no lora_A");
        assert!(problem(&[(A, &[2, 8]), (B, &[8, 3])]).contains("module l.q: expected A (R, C_in) and B (C_out, R)"));
        assert!(problem(&[(A, &[2, 8]), (B, &[2])]).contains("module l.q: expected A"));
        assert_eq!(
            problem(&[(A, &[3, 8]), (B, &[8, 3])]),
            "module l.q: the config gives it rank 2, but A is [3, 8] and B [8, 3]"
        );
        let other =
            [("base_model.model.l.k.lora_A.weight", &[2, 8][..]), ("base_model.model.l.k.lora_B.weight", &[8, 2])];
        assert!(problem(&other).contains("module l.k: has an adapter, but the config does not target it"));
        assert!(
            problem(&[("q.lora_A.weight", &[2, 8])]).contains("tensor q.lora_A.weight: expected a name that begins")
        );
        let dora = "base_model.model.l.q.lora_magnitude_vector";
        assert!(
            problem(&[(dora, &[8])]).contains("tensor base_model.model.l.q.lora_magnitude_vector: expected lora_A")
        );
        assert!(problem(&[("base_model.model.pooler.weight", &[8])]).contains("modules_to_save"));
        assert!(problem(&[("base_model.model.", &[8])]).contains("modules_to_save"));
    }

    #[test]
    fn folders_without_an_adapter() {
        let folder = tempfile::tempdir().unwrap();
        let problem = || Adapter::read(folder.path()).unwrap_err().to_string();
        assert!(problem().contains("adapter_config.json"));
        config(r#"{"target_modules": ["q"]}"#).write(&folder.path().join(CONFIG_NAME)).unwrap();
        assert!(problem().contains("adapter_model.safetensors: No such file"));
    }

    #[test]
    fn what_peft_would_read_differently_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let layer = LoraLayer {
            a: zeros(&[2, 8]),
            b: zeros(&[8, 2]),
            scaling: 2.0,
            dropout: 0.0,
            magnitude: None,
            initial: None,
            singular: None,
        };
        let mut adapter = Adapter {
            config: config(r#"{"r": 2, "lora_alpha": 4, "target_modules": ["q"], "modules_to_save": ["score"]}"#),
            layers: [("l.q".to_owned(), layer)].into(),
            saved: [("score.weight".to_owned(), zeros(&[3, 8]))].into(),
        };
        adapter.write(folder.path()).unwrap();
        assert_eq!(adapter.parameters(), 2 * 16 + 24);
        let fails = |adapter: &Adapter| adapter.write(folder.path()).unwrap_err().to_string();
        adapter.config.lora_alpha = 2.0;
        assert!(fails(&adapter).contains("module l.q: the config gives it the scaling 1, but the layer has 2"));
        adapter.config = AdapterConfig { r: 3, lora_alpha: 6.0, ..adapter.config };
        assert!(fails(&adapter).contains("rank 3"));
        adapter.config = AdapterConfig { r: 2, lora_alpha: 4.0, modules_to_save: None, ..adapter.config };
        assert!(fails(&adapter).contains("score.weight"));
        adapter.config =
            AdapterConfig { use_dora: true, modules_to_save: Some(vec!["score".into()]), ..adapter.config };
        assert!(fails(&adapter).contains("module l.q: the config has use_dora, but there is no lora_magnitude"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn round_trip(
            ranks in prop::collection::vec((1..5usize, 1..20u32), 1..13),
            rslora: bool, dropout in 0.0..0.9f32, seed: u64,
        ) {
            let name = |l: usize| format!("bert.encoder.layer.{l}.attention.self.query");
            let modules: Vec<_> =
                ranks.iter().enumerate().map(|(l, &(rank, alpha))| (name(l), rank, f64::from(alpha) / 4.0)).collect();
            let config = AdapterConfig {
                use_rslora: rslora,
                lora_dropout: dropout,
                inference_mode: true,
                modules_to_save: Some(vec!["classifier".into()]),
                ..AdapterConfig::for_modules(&modules, "bert.", &["bert.pooler.dense"]).unwrap()
            };
            let matcher = config.matcher().unwrap();
            let layers = modules.iter().map(|(name, ..)| {
                let module = matcher.module(name).unwrap().unwrap();
                (name.clone(), LoraLayer::new(name, 7, 5, &module, seed).unwrap())
            });
            let head = LoraLayer::new("h", 7, 5, &matcher.module(&name(0)).unwrap().unwrap(), seed).unwrap().a;
            let saved = [("classifier.weight".to_owned(), head.to_dtype(DType::Bf16).unwrap())].into();
            let written = Adapter { layers: layers.collect(), saved, config };
            let folder = tempfile::tempdir().unwrap();
            written.write(folder.path()).unwrap();

            let read = Adapter::read(folder.path()).unwrap();
            prop_assert_eq!(&read.config, &written.config);
            prop_assert!(read.layers.keys().eq(written.layers.keys()));
            for (r, w) in read.layers.values().zip(written.layers.values()) {
                prop_assert_eq!((r.scaling, r.dropout), (w.scaling, w.dropout));
                prop_assert_eq!(r.a.bytes().unwrap(), w.a.bytes().unwrap());
                prop_assert_eq!(r.b.bytes().unwrap(), w.b.bytes().unwrap());
            }
            let [read, written] = [&read, &written].map(|adapter| &adapter.saved["classifier.weight"]);
            prop_assert_eq!(read.bytes().unwrap(), written.bytes().unwrap());
        }
    }

    #[test]
    fn half_precision_adapters_become_f32() -> Result<()> {
        let config = AdapterConfig { r: 1, target_modules: Some(Names::List(vec!["q".into()])), ..Default::default() };
        let tensors = [("base_model.model.q.lora_A.weight", [1, 3]), ("base_model.model.q.lora_B.weight", [3, 1])];
        let tensors = tensors.map(|(name, shape)| Ok((name.to_owned(), zeros(&shape).to_dtype(DType::Bf16)?)));
        let adapter = Adapter::from_tensors(config, tensors.into_iter().collect::<Result<_>>()?, "f".as_ref())?;
        assert_eq!((adapter.layers["q"].a.dtype(), adapter.layers["q"].b.dtype()), (DType::F32, DType::F32));
        Ok(())
    }
}
