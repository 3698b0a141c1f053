//! Adapters on the linear modules of a transformer.

use std::collections::BTreeMap;
use std::sync::Arc;

use gelora_kernels::Tensor;
use gelora_kernels::ops::dora;
use gelora_kernels::ops::linear::Weight;
use gelora_lora::{AdapterConfig, LoraLayer, ModuleConfig};
use rayon::prelude::*;

use super::Transformer;
use crate::linear::{Linear, weight_on};
use crate::probe::Probe;
use crate::{Error, Result};

impl Transformer {
    pub(crate) fn lowest_adapted(&self) -> Option<usize> {
        self.blocks.iter().position(|b| b.linears().any(|linear| linear.lora.is_some()))
    }

    /// Adds new adapters to every module that the config targets. Returns the number of their parameters. If the
    /// config's `init_lora_weights` is "pissa", the adapters are the leading singular triplets of the weights, which
    /// the weights then lack.
    ///
    /// # Errors
    /// Returns an error if no module is targeted, a rank is above min(C_in, C_out), or PiSSA finds a quantized weight.
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        let matcher = config.matcher()?;
        let targets: Vec<(&Linear, ModuleConfig)> = self
            .linears()
            .filter_map(|linear| Some(matcher.module(&linear.name).transpose()?.map(|module| (linear, module))))
            .collect::<gelora_lora::Result<_>>()?;
        let new = |&(linear, module): &(&Linear, ModuleConfig)| {
            let (name, weight) = (&linear.name, &linear.weight);
            let (c_in, c_out) = (weight.c_in(), weight.c_out());
            let layer = match () {
                () if config.is_pissa() => LoraLayer::pissa(name, weight.tensor(), &module)?,
                () if config.is_adalora() => LoraLayer::adalora(name, c_in, c_out, &module, seed)?,
                () => LoraLayer::new(name, c_in, c_out, &module, seed)?,
            };
            let layer = if config.use_dora { layer.with_magnitude(weight.tensor())? } else { layer };
            Ok((name.clone(), layer))
        };
        // In parallel, for singular triplets take a while.
        let layers: BTreeMap<String, LoraLayer> = targets.par_iter().map(new).collect::<Result<_>>()?;
        if layers.is_empty() {
            return Err(Error::Value("the adapter config targets no linear module of this model".into()));
        }
        let parameters = layers.values().map(LoraLayer::parameters).sum();
        self.attach(layers)?;
        Ok(parameters)
    }

    /// Attaches each adapter to the module with its name. Takes singular triplets from the weight if an adapter began
    /// as such.
    ///
    /// # Errors
    /// Returns an error if the model has no module of that name or the sizes differ.
    pub(crate) fn attach(&mut self, mut layers: BTreeMap<String, LoraLayer>) -> Result<()> {
        let device = self.device.clone();
        for linear in self.linears_mut() {
            let Some(mut layer) = layers.remove(&linear.name) else {
                continue;
            };
            let (c_out, c_in) = (linear.weight.c_out(), linear.weight.c_in());
            if layer.a.cols() != c_in || layer.b.rows() != c_out {
                let (a, b, name) = (layer.a.shape(), layer.b.shape(), &linear.name);
                return Err(Error::Value(format!("{name} is {c_in} -> {c_out}; the adapter has A {a:?} and B {b:?}")));
            }
            if let Some(residual) = layer.residual(linear.weight.tensor())? {
                linear.weight = Weight::new(residual, linear.weight.compute())?;
                linear.weight = Weight::new(weight_on(&linear.weight, &device)?, linear.weight.compute())?;
            }
            linear.squares = match layer.magnitude {
                Some(_) => Some(dora::row_squares(linear.weight.tensor())?),
                None => None,
            };
            layer.move_to(&device)?;
            linear.lora = Some(layer);
        }
        match layers.keys().next() {
            Some(name) => Err(Error::Value(format!(
                "the adapter is for a module {name} that the model does not have among those that can carry one \
                 (linear modules of its blocks, and a pooler)"
            ))),
            None => Ok(()),
        }
    }

    /// Attaches the adapters of a PEFT folder, which must have one for every module that its config targets.
    pub(super) fn attach_all(
        &mut self,
        config: &AdapterConfig,
        layers: BTreeMap<String, LoraLayer>,
        is_bare: bool,
    ) -> Result<()> {
        let (matcher, prefix) = (config.matcher()?, self.prefix());
        for linear in self.linears() {
            let bare = linear.name.strip_prefix(prefix).unwrap_or(&linear.name);
            // The patterns of the config match the names of the model for which the adapter was made.
            let targeted = matcher.module(if is_bare { bare } else { &linear.name })?.is_some();
            if targeted && !layers.contains_key(&linear.name) {
                let name = &linear.name;
                return Err(Error::Value(format!(
                    "the adapter's config targets {name}, but its file has no weights for it"
                )));
            }
        }
        self.attach(layers)
    }

    /// Lets a probe see the inputs of the modules that it wants, or none.
    pub(crate) fn watch_inputs(&mut self, probe: Option<&Arc<dyn Probe>>) {
        for linear in self.linears_mut() {
            linear.probe = probe.filter(|probe| probe.wants(&linear.name)).cloned();
        }
    }

    /// Sets the dropout probability of every adapter.
    pub(crate) fn set_dropout(&mut self, dropout: f32) {
        self.linears_mut().filter_map(|linear| linear.lora.as_mut()).for_each(|layer| layer.dropout = dropout);
    }

    /// All adapters, by the names of their modules.
    pub(crate) fn adapters(&self) -> BTreeMap<String, LoraLayer> {
        self.linears().filter_map(|linear| Some((linear.name.clone(), linear.lora.clone()?))).collect()
    }

    /// A, B, magnitudes and singular values of every adapter with their names, in a fixed order.
    pub(crate) fn adapter_parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::new();
        for linear in self.linears_mut() {
            if let Some(layer) = &mut linear.lora {
                all.push((format!("{}.lora_A.weight", linear.name), &mut layer.a));
                all.push((format!("{}.lora_B.weight", linear.name), &mut layer.b));
                if let Some(magnitude) = &mut layer.magnitude {
                    all.push((format!("{}.lora_magnitude_vector", linear.name), magnitude));
                }
                if let Some(singular) = &mut layer.singular {
                    all.push((format!("{}.lora_E", linear.name), singular));
                }
            }
        }
        all
    }

    /// Tensors that an adapter trained and saved whole; tensors of the head excepted.
    pub(crate) fn saved(&self) -> &BTreeMap<String, Tensor> {
        &self.saved
    }

    /// Adds a tensor that an adapter trained whole and that is not part of the transformer itself.
    pub(crate) fn keep_saved(&mut self, name: &str, tensor: Tensor) {
        self.saved.insert(name.to_owned(), tensor);
    }
}
