use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gelora_kernels::ops::linear::Weight;
use gelora_kernels::{DType, Device, Tensor};

use crate::linear::{Linear, transpose};
use crate::norm::Norm;
use crate::{Error, Result, checkpoint};

/// The tensors of a model folder (single file or sharded). Modules take their tensors one by one as they are built.
/// Tensors that an adapter saves whole (PEFT's `modules_to_save`) replace those of the checkpoint.
pub(crate) struct Weights {
    /// The folder or file of the model.
    model: PathBuf,
    /// The file that error messages name.
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors of an adapter, by their names inside a task model, that no module has taken yet.
    saved: BTreeMap<String, Tensor>,
    /// Prefix of the encoder's names inside a task model, and whether the names in this checkpoint have it.
    prefix: &'static str,
    prefixed: bool,
    linears: usize,
    /// Set if there is no checkpoint and every tensor is made as it is asked for.
    planned: Option<Planned>,
}

/// Tensors without a checkpoint: zeros, which take no memory until they are read.
struct Planned {
    /// Type of the matrices.
    dtype: DType,
    /// Zeros for the largest tensor so far.
    zeros: Arc<Vec<u8>>,
}

impl Planned {
    /// Parts of the names of embeddings and heads, which bitsandbytes does not quantize.
    const UNQUANTIZED: [&str; 4] = ["embed", "wte", "wpe", "lm_head"];

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let is_bitsandbytes = matches!(self.dtype, DType::Nf4(_) | DType::Fp4(_));
        let is_whole = shape.last().is_some_and(|cols| cols.is_multiple_of(self.dtype.block().0));
        let is_table = Self::UNQUANTIZED.iter().any(|part| name.contains(part));
        let dtype = match shape.len() {
            2 if is_bitsandbytes && (is_table || !is_whole) => self.dtype.unquantized(),
            2 => self.dtype,
            _ => DType::F32,
        };
        let size = dtype.bytes(shape.iter().product());
        if self.zeros.len() < size {
            self.zeros = Arc::new(vec![0; size]);
        }
        Ok(Tensor::from_bytes(self.zeros.clone(), 0..size, dtype, shape)?)
    }
}

impl Weights {
    pub fn open(model: &Path) -> Result<Self> {
        let (path, tensors) = checkpoint::read(model)?;
        let model = model.to_owned();
        Ok(Self::of(model, path, tensors, None))
    }

    /// Makes weights of a type for a model of which only config.json is needed. Their values are zeros.
    pub fn planned(model: &Path, dtype: DType) -> Self {
        let planned = Planned { dtype, zeros: Arc::default() };
        Self::of(model.to_owned(), model.to_owned(), BTreeMap::new(), Some(planned))
    }

    fn of(model: PathBuf, path: PathBuf, tensors: BTreeMap<String, Tensor>, planned: Option<Planned>) -> Self {
        Self { model, path, tensors, saved: BTreeMap::new(), prefix: "", prefixed: false, linears: 0, planned }
    }

    /// The folder or file that the weights were opened from.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Sets the tensors of an adapter that replace those of the checkpoint.
    pub fn with_saved(self, saved: BTreeMap<String, Tensor>) -> Self {
        Self { saved, ..self }
    }

    /// Whether the adapter saves the tensor of this full name and no module has taken it yet.
    pub fn awaits(&self, name: &str) -> bool {
        self.saved.contains_key(name)
    }

    /// Returns an error if the adapter saves a tensor that no module has taken.
    pub fn all_saved_taken(&self, model: &str) -> Result<()> {
        match self.saved.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::Value(format!("the adapter saves {name}, which {model} does not have"))),
        }
    }

    /// Sets the prefix that the encoder's names have in a task model.
    pub fn prefix(&mut self, prefix: &'static str) {
        self.prefix = prefix;
        self.prefixed = self.tensors.keys().any(|name| name.starts_with(prefix));
    }

    fn name(&self, name: &str) -> String {
        if self.prefixed { format!("{}{name}", self.prefix) } else { name.to_string() }
    }

    /// The name inside a task model, with or without a prefix in the checkpoint.
    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn has(&self, name: &str) -> bool {
        let has_new_names = || self.planned.is_some() && ![".gamma", ".beta"].iter().any(|old| name.ends_with(old));
        self.is_saved(name) || self.tensors.contains_key(&self.name(name)) || has_new_names()
    }

    fn is_saved(&self, name: &str) -> bool {
        self.saved.contains_key(&self.full_name(name))
    }

    /// Takes a tensor of the encoder. If the adapter replaces it, the tensor of the checkpoint stays.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let full_name = self.full_name(name);
        match self.saved.remove(&full_name) {
            Some(saved) => adapter_tensor(&full_name, saved, shape),
            None => self.take_stored(&self.name(name), shape),
        }
    }

    /// Takes a tensor by its full name.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.saved.remove(name) {
            Some(saved) => adapter_tensor(name, saved, shape),
            None => self.take_stored(name, shape),
        }
    }

    /// Takes a tensor that the adapter saves, by its full name.
    pub fn take_saved(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        self.saved.remove(name).map(|saved| adapter_tensor(name, saved, shape)).transpose()
    }

    /// The checkpoint's tensor of the encoder, if it stayed because the adapter replaces it.
    pub fn replaced(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(&self.name(name))
    }

    /// Whether the checkpoint has the tensor of this full name.
    pub fn stores(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn take_stored(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(planned) = &mut self.planned {
            return planned.tensor(name, shape);
        }
        match self.tensors.remove(name) {
            Some(t) if t.shape() == shape => Ok(t),
            Some(t) => {
                let problem = format!("tensor {name} has the shape {:?}; config.json asks for {shape:?}", t.shape());
                Err(Error::file(&self.path, problem))
            }
            None => Err(Error::file(&self.path, format!("tensor {name} {shape:?} is missing"))),
        }
    }

    /// Takes a tensor of any shape by its full name.
    pub fn take_any(&mut self, name: &str) -> Option<Tensor> {
        let stored = self.tensors.remove(name);
        self.saved.remove(name).or(stored)
    }

    pub fn linear(&mut self, name: &str, c_in: usize, c_out: usize) -> Result<Linear> {
        self.linear_with(name, c_in, c_out, true)
    }

    /// Takes a linear layer with or without a bias.
    pub fn linear_with(&mut self, name: &str, c_in: usize, c_out: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[c_out, c_in])?;
        self.assemble(name, weight, c_out, bias, false)
    }

    /// Takes a linear layer whose weight is stored as (C_in, C_out), as in GPT-2.
    pub fn transposed_linear(&mut self, name: &str, c_in: usize, c_out: usize) -> Result<Linear> {
        let stored = self.tensor(&format!("{name}.weight"), &[c_in, c_out])?;
        let weight = match self.planned {
            Some(_) => Tensor::zeros([c_out, c_in], &Device::Cpu)?.to_dtype(stored.dtype())?,
            None => transpose(&stored)?,
        };
        self.assemble(name, weight, c_out, true, true)
    }

    fn assemble(&mut self, name: &str, weight: Tensor, c_out: usize, bias: bool, transposed: bool) -> Result<Linear> {
        let weight = Weight::new(weight, DType::F32)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &[c_out])?.to_dtype(DType::F32)?),
            false => None,
        };
        let index = self.linears;
        self.linears += 1;
        Ok(Linear {
            name: format!("{}{name}", self.prefix),
            index,
            weight,
            bias,
            lora: None,
            squares: None,
            probe: None,
            transposed,
        })
    }

    /// Takes a layer norm. Old checkpoints name its parameters gamma and beta.
    pub fn layer_norm(&mut self, name: &str, c: usize, eps: f32) -> Result<Norm> {
        let mut parameter = |new: &str, old: &str| -> Result<Tensor> {
            let (new, old) = (format!("{name}.{new}"), format!("{name}.{old}"));
            let is_old = self.has(&old) && !self.is_saved(&new);
            Ok(self.tensor(if is_old { &old } else { &new }, &[c])?.to_dtype(DType::F32)?)
        };
        Ok(Norm::Layer { gamma: parameter("weight", "gamma")?, beta: parameter("bias", "beta")?, eps })
    }

    /// Takes an RMS norm that scales by its weight plus `offset`.
    pub fn rms_norm(&mut self, name: &str, c: usize, eps: f32, offset: f32) -> Result<Norm> {
        let mut gamma = self.tensor(&format!("{name}.weight"), &[c])?.to_vec()?;
        gamma.iter_mut().for_each(|v| *v += offset);
        Ok(Norm::Rms { gamma: Tensor::from_vec(gamma, [c])?, eps })
    }
}

/// Checks that a tensor of an adapter has the shape of the tensor that it replaces.
fn adapter_tensor(name: &str, saved: Tensor, shape: &[usize]) -> Result<Tensor> {
    if saved.shape() == shape {
        return Ok(saved);
    }
    let got = saved.shape();
    Err(Error::Value(format!("the adapter saves {name} with the shape {got:?}; the model has {shape:?}")))
}
