//! A model with its adapter merged into the weights, written as files that transformers loads.

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::{DType, Tensor};
use gelora_lora::files;
use gelora_lora::merge::merge;
use serde_json::{Map, Value, json};

use crate::config::Json;
use crate::{Error, Result, Transformer, checkpoint, linear};

/// The tensors and config.json of a merged model, before they are written.
pub(crate) struct Merged {
    tensors: BTreeMap<String, Tensor>,
    pub config: Map<String, Value>,
    /// Names of tensors whose merged values are too large for the base model's f16.
    too_large: Vec<String>,
}

impl Merged {
    /// Takes the base model's tensors under their names inside a task model, merges the adapters, and replaces the
    /// tensors that the adapter saves whole. Drops the base model's heads. `model` is the path that the transformer was
    /// loaded from, and `dtype` the type that [`write`](Self::write) will be asked for.
    ///
    /// # Errors
    /// Returns an error if the base files cannot be read again, or a merged weight is infinite or NaN.
    pub fn of(transformer: &Transformer, model: &Path, dtype: Option<DType>) -> Result<Self> {
        // Read the base tensors under their full names, without those of a head.
        let (_, base) = checkpoint::read(model)?;
        let prefix = transformer.prefix();
        let prefixed = base.keys().any(|name| name.starts_with(prefix));
        let tensors = base
            .into_iter()
            .filter(|(name, _)| !prefixed || name.starts_with(prefix))
            .map(|(name, tensor)| (if prefixed { name } else { format!("{prefix}{name}") }, tensor))
            .collect();
        let mut config = Json::load(model)?.map;
        config.remove("quantization_config"); // merged weights are not quantized
        let mut merged = Self { tensors, config, too_large: Vec::new() };
        for (name, tensor) in transformer.saved() {
            merged.replace(name, tensor)?;
        }
        // Add scaling B A to the weights of adapted modules.
        for linear in transformer.linears() {
            let Some(layer) = &linear.lora else { continue };
            let name = format!("{}.weight", linear.name);
            // For another type than the base model's, the sum is rounded once, when it is written.
            let weight = match dtype {
                Some(_) => &linear.weight.tensor().to_dtype(DType::F32)?,
                None => linear.weight.tensor(),
            };
            let sum = merge(weight, layer).map_err(|e| Error::Value(format!("tensor {name}: {e}")))?;
            let sum = if linear.transposed { linear::transpose(&sum)? } else { sum };
            if dtype.is_none() && sum.dtype() != linear.weight.tensor().dtype().unquantized() {
                merged.too_large.push(name.clone());
            }
            merged.tensors.insert(name, sum);
        }
        Ok(merged)
    }

    /// Replaces a tensor of the base model by a trained one. The element type stays if it can represent the values.
    fn replace(&mut self, name: &str, trained: &Tensor) -> Result<()> {
        // Old checkpoints name the parameters of a norm gamma and beta.
        let old = [(".weight", ".gamma"), (".bias", ".beta")].into_iter().find_map(|(new, old)| {
            let old = format!("{}{old}", name.strip_suffix(new)?);
            self.tensors.remove(&old)
        });
        let base = old.as_ref().or(self.tensors.get(name)).map(Tensor::dtype);
        let dtype = base.map_or(DType::F32, DType::unquantized);
        let mut stored = trained.to_dtype(dtype)?;
        if dtype == DType::F16 && stored.to_vec()?.iter().any(|value| value.is_infinite()) {
            self.too_large.push(name.to_owned());
            stored = trained.to_dtype(DType::F32)?;
        }
        self.tensors.insert(name.to_owned(), stored);
        Ok(())
    }

    /// Adds a tensor of the head.
    pub fn insert(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, tensor);
    }

    /// Removes a prefix from all names, for a model without a task head.
    pub fn without_prefix(&mut self, prefix: &str) {
        let strip = |(name, tensor): (String, Tensor)| (name.strip_prefix(prefix).unwrap_or(&name).to_owned(), tensor);
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(strip).collect();
    }

    /// Returns the tensors.
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.tensors
    }

    /// Writes model.safetensors and config.json, with all tensors in `dtype`, or in the types of the base model.
    /// Returns remarks for the user.
    ///
    /// # Errors
    /// Returns an error if a value is too large for `dtype`, or the files cannot be written.
    pub fn write(mut self, out: &Path, dtype: Option<DType>) -> Result<Vec<String>> {
        let mut remarks = Vec::new();
        if let Some(dtype) = dtype {
            for (name, tensor) in &mut self.tensors {
                let stored = tensor.to_dtype(dtype)?;
                if dtype == DType::F16 && is_beyond(tensor, &stored)? {
                    let problem = format!("has values beyond {}, which f16 cannot hold; bf16 and f32 can", half_max());
                    return Err(Error::Value(format!("tensor {name}: {problem}")));
                }
                *tensor = stored;
            }
            self.name_dtype(dtype);
        } else if let Some(first) = self.too_large.first() {
            // Convert all tensors: transformers loads the whole model in the one type that config.json names.
            for tensor in self.tensors.values_mut().filter(|tensor| tensor.dtype().unquantized() == DType::F16) {
                *tensor = tensor.to_dtype(DType::F32)?;
            }
            for key in ["dtype", "torch_dtype"] {
                if let Some(dtype) = self.config.get_mut(key) {
                    *dtype = json!("float32");
                }
            }
            let others = match self.too_large.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} other tensors"),
            };
            remarks.push(format!(
                "{first}{others} have merged values beyond {}, which the base model's f16 cannot hold; the model is \
                 written in f32",
                half_max()
            ));
        }
        let path = out.join("config.json");
        let config = serde_json::to_vec_pretty(&Value::Object(self.config));
        let config = config.map_err(|e| Error::file(&path, e.to_string()))?;
        files::write_tensors(&out.join("model.safetensors"), self.tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        files::write_atomic(&path, &config)?;
        Ok(remarks)
    }

    /// Names the type of all tensors in config.json, under the key that it has, or the older one that all versions of
    /// transformers read.
    fn name_dtype(&mut self, dtype: DType) {
        let name = match dtype {
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
            _ => "float32",
        };
        let key = if self.config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        self.config.insert(key.into(), json!(name));
    }
}

/// Whether rounding made a finite value infinite.
fn is_beyond(exact: &Tensor, rounded: &Tensor) -> Result<bool> {
    Ok(exact.to_f32()?.iter().zip(rounded.to_f32()?.iter()).any(|(x, y)| x.is_finite() && y.is_infinite()))
}

/// Largest value of f16.
fn half_max() -> f32 {
    65504.0
}

impl Transformer {
    /// Merges the adapters into the weights and writes the model without a task head: model.safetensors and
    /// config.json, which transformers loads with `AutoModel`. `model` is the path that this model was loaded from.
    /// Returns remarks for the user.
    ///
    /// # Errors
    /// Returns an error if the base files cannot be read again or the new files cannot be written.
    pub fn write_merged(&self, model: &Path, out: &Path) -> Result<Vec<String>> {
        self.write_merged_as(model, out, None)
    }

    /// [`write_merged`](Self::write_merged) with all tensors in `dtype`: f32, f16 or bf16; None keeps the types of the
    /// base model.
    ///
    /// # Errors
    /// Returns the errors of [`write_merged`](Self::write_merged), and an error if a value is too large for `dtype`.
    pub fn write_merged_as(&self, model: &Path, out: &Path, dtype: Option<DType>) -> Result<Vec<String>> {
        let mut merged = Merged::of(self, model, dtype)?;
        merged.without_prefix(self.prefix());
        merged.config.insert("architectures".into(), serde_json::json!([self.family().classes[2]]));
        merged.write(out, dtype)
    }
}
