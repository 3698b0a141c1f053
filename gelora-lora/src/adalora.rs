//! AdaLoRA: adapters in the form of a singular value decomposition, trained at more ranks than they keep.
//!
//! With A (R, C_in), e (R, 1), B (C_out, R) and the scaling s:
//!
//! ```text
//! W' = W + s B diag(e) A
//! ```
//!
//! A and B begin normal with the deviation 0.02, e with 0. While it trains, values of e are set to 0: a triplet whose
//! value is 0 is given up. What is left is a plain LoRA of the rank that is kept, A' = diag(e) A, which is what is
//! written. A module that keeps no triplet has no adapter then, and is among the config's excluded modules.
//!
//! Folders of PEFT's AdaLoRA are read as plain LoRA of the ranks that are kept, with the scaling alpha / (R + 1e-5) of
//! the rank R that the training began with.
//!
//! Source: Zhang et al. (arXiv 2303.10512); PEFT 0.21.2, `SVDLinear` and
//! `AdaLoraModel.resize_modules_by_rank_pattern`.

use std::collections::BTreeMap;

use gelora_kernels::ops::adalora;
use gelora_kernels::random::Stream;
use gelora_kernels::{Device, Tensor};

use crate::layer::name_hash;
pub use crate::peft_adalora::scaling_factor;
use crate::{Adapter, AdapterConfig, Error, Init, LoraLayer, ModuleConfig, Names, Result, ranks};

/// The name of the method in `init_lora_weights` while it trains.
pub(crate) const NAME: &str = "adalora";
/// Deviation of A and B before the first step.
const DEVIATION: f64 = 0.02;

impl LoraLayer {
    /// A new adapter of AdaLoRA on the CPU, which does not change the result yet. A and B depend only on the seed and
    /// the name of the module.
    ///
    /// # Errors
    /// If the rank is 0 or above min(C_in, C_out).
    pub fn adalora(module: &str, c_in: usize, c_out: usize, config: &ModuleConfig, seed: u64) -> Result<Self> {
        let rank = config.rank;
        ranks::check_rank(module, rank, c_in, c_out)?;
        let mut stream = Stream::at(seed, &[name_hash(module), 0x7472_6970]); // "trip"
        let mut normal = |len: usize| (0..len).map(|_| (DEVIATION * stream.normal()) as f32).collect::<Vec<_>>();
        Ok(Self {
            a: Tensor::from_vec(normal(rank * c_in), [rank, c_in])?,
            b: Tensor::from_vec(normal(c_out * rank), [c_out, rank])?,
            scaling: config.scaling,
            dropout: config.dropout,
            magnitude: None,
            initial: None,
            singular: Some(Tensor::zeros([rank, 1], &Device::Cpu)?),
        })
    }

    /// The factor A of the product s B A: diag(e) A with singular values, else A itself.
    ///
    /// # Errors
    /// If a device fails.
    pub fn factor_a(&self) -> Result<Tensor> {
        Ok(match &self.singular {
            Some(e) => adalora::forward(e, &self.a)?,
            None => self.a.clone(),
        })
    }

    /// The plain LoRA layer that computes the same: the triplets whose singular value is not 0, on the CPU; None if all
    /// are 0. The layer itself if it has no singular values.
    ///
    /// # Errors
    /// If a device fails.
    pub fn folded(&self) -> Result<Option<Self>> {
        let Some(e) = &self.singular else { return Ok(Some(self.clone())) };
        let (e, a, b) = (e.to_vec()?, self.factor_a()?.to_vec()?, self.b.to_vec()?);
        let (rank, c_in, c_out) = (self.rank(), self.a.cols(), self.b.rows());
        let kept: Vec<usize> = (0..rank).filter(|k| e[*k] != 0.0).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let row = |k: &usize| a[k * c_in..(k + 1) * c_in].iter().copied();
        let b = b.chunks(rank).flat_map(|row| kept.iter().map(|k| row[*k]));
        Ok(Some(Self {
            a: Tensor::from_vec(kept.iter().flat_map(row).collect(), [kept.len(), c_in])?,
            b: Tensor::from_vec(b.collect(), [c_out, kept.len()])?,
            singular: None,
            ..self.clone()
        }))
    }
}

impl AdapterConfig {
    /// Whether new adapters are those of AdaLoRA.
    #[must_use]
    pub fn is_adalora(&self) -> bool {
        self.init_lora_weights == Init::Named(NAME.into())
    }

    /// This config with AdaLoRA as the method of new adapters.
    #[must_use]
    pub fn with_adalora(self) -> Self {
        Self { init_lora_weights: Init::Named(NAME.into()), ..self }
    }
}

impl Adapter {
    /// The plain LoRA adapter that computes the same: without singular values, each module with the rank that it keeps.
    /// Modules that keep none have no adapter. The adapter itself if it has no singular values.
    ///
    /// # Errors
    /// If no module keeps a rank, or a device fails.
    pub fn folded(self) -> Result<Self> {
        if !self.config.is_adalora() {
            return Ok(self);
        }
        let (mut layers, mut without) = (BTreeMap::new(), Vec::new());
        for (name, layer) in &self.layers {
            match layer.folded()? {
                Some(layer) => {
                    layers.insert(name.clone(), layer);
                }
                None => without.push(name.clone()),
            }
        }
        if layers.is_empty() {
            return Err(Error::Ranks { problem: "AdaLoRA has not trained yet: every singular value is 0".into() });
        }
        // Full names: each matches its own module alone.
        let rank = |(name, layer): (&String, &LoraLayer)| (name.clone(), layer.rank());
        let alpha =
            |(name, layer): (&String, &LoraLayer)| (name.clone(), f64::from(layer.scaling) * layer.rank() as f64);
        let config = AdapterConfig {
            rank_pattern: layers.iter().map(rank).collect(),
            alpha_pattern: layers.iter().map(alpha).collect(),
            init_lora_weights: Init::default(),
            exclude_modules: excluding(self.config.exclude_modules.clone(), without),
            ..self.config
        };
        Ok(Self { config, layers, saved: self.saved })
    }
}

/// These excluded modules, and others by their full names.
fn excluding(excluded: Option<Names>, others: Vec<String>) -> Option<Names> {
    if others.is_empty() {
        return excluded;
    }
    Some(match excluded {
        None => Names::List(others),
        Some(Names::List(names)) => Names::List([names, others].concat()),
        Some(Names::Pattern(pattern)) => {
            let others: Vec<String> = others.iter().map(|name| fancy_regex::escape(name).into_owned()).collect();
            Names::Pattern(format!("(?:{pattern})|(?:{})", others.join("|")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ModuleConfig = ModuleConfig { rank: 3, alpha: 6.0, scaling: 2.0, dropout: 0.0 };

    fn with_values(values: [f32; 3]) -> LoraLayer {
        let layer = LoraLayer::adalora("l.q", 5, 4, &CONFIG, 1).unwrap();
        LoraLayer { singular: Some(Tensor::from_vec(values.to_vec(), [3, 1]).unwrap()), ..layer }
    }

    #[test]
    fn a_new_layer_is_normal_and_changes_nothing() -> Result<()> {
        let layer = LoraLayer::adalora("q", 400, 300, &CONFIG, 1)?;
        assert_eq!(layer.parameters(), 3 * (400 + 300) + 3);
        for factor in [&layer.a, &layer.b] {
            let values = factor.to_vec()?;
            let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            assert!((variance.sqrt() / 0.02 - 1.0).abs() < 0.1, "{variance}");
        }
        assert!(layer.factor_a()?.to_vec()?.iter().all(|v| *v == 0.0));
        Ok(())
    }

    #[test]
    fn folded_layers_keep_what_is_not_zero_and_compute_the_same() -> Result<()> {
        let layer = with_values([0.5, 0.0, -2.0]);
        let folded = layer.folded()?.expect("two are left");
        assert_eq!((folded.rank(), folded.singular.is_none(), folded.scaling), (2, true, 2.0));
        let weight = Tensor::from_vec((0..20).map(|i| i as f32 / 7.0).collect(), [4, 5])?;
        let (want, got) = (crate::merge::merge(&weight, &layer)?, crate::merge::merge(&weight, &folded)?);
        for (want, got) in want.to_vec()?.iter().zip(got.to_vec()?) {
            assert!((want - got).abs() < 1e-6, "{want} {got}");
        }
        assert!(with_values([0.0; 3]).folded()?.is_none());
        Ok(())
    }

    #[test]
    fn folders_hold_the_plain_adapter() -> Result<()> {
        let config = AdapterConfig {
            r: 3,
            lora_alpha: 6.0,
            target_modules: Some(Names::List(vec!["q".into(), "v".into()])),
            ..AdapterConfig::default()
        }
        .with_adalora();
        let values = [("l.q", [1.0, 0.0, 0.0]), ("l.v", [1.0; 3]), ("m.q", [0.0; 3])];
        let layers = values.map(|(name, values)| (name.to_owned(), with_values(values)));
        let adapter = Adapter { config, layers: layers.into(), saved: [].into() };
        let folder = tempfile::tempdir().unwrap();
        adapter.write(folder.path())?;
        let read = Adapter::read(folder.path())?;
        assert_eq!((read.layers["l.q"].rank(), read.layers["l.v"].rank()), (1, 3));
        for (name, layer) in &read.layers {
            assert!((layer.scaling - 2.0).abs() < 1e-6, "{name}: {}", layer.scaling);
        }
        assert!(!read.config.is_adalora() && !read.layers.contains_key("m.q"));
        assert_eq!(read.config.exclude_modules, Some(Names::List(vec!["m.q".into()])));
        let pattern = excluding(Some(Names::Pattern("x|y".into())), vec!["m.q".into()]);
        assert_eq!(pattern, Some(Names::Pattern(r"(?:x|y)|(?:m\.q)".into())));
        Ok(())
    }
}
