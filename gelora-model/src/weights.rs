use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gelora_kernels::ops::linear::Weight;
use gelora_kernels::{DType, Tensor};

use crate::linear::Linear;
use crate::norm::Norm;
use crate::{Error, Result, checkpoint};

/// The tensors of a model folder, single file or sharded, taken out one by one as modules are built.
pub(crate) struct Weights {
    /// The file that error messages name.
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// Prefix of the encoder's names inside a task model, and whether this checkpoint uses it.
    prefix: &'static str,
    prefixed: bool,
    linears: usize,
}

impl Weights {
    pub fn open(model: &Path) -> Result<Self> {
        let (path, tensors) = checkpoint::read(model)?;
        Ok(Self { path, tensors, prefix: "", prefixed: false, linears: 0 })
    }

    /// The encoder's names may begin with `prefix`, as they do in a task model.
    pub fn prefix(&mut self, prefix: &'static str) {
        self.prefix = prefix;
        self.prefixed = self.tensors.keys().any(|name| name.starts_with(prefix));
    }

    fn name(&self, name: &str) -> String {
        if self.prefixed { format!("{}{name}", self.prefix) } else { name.to_string() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.name(name))
    }

    /// Takes a tensor of the encoder.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.take(&self.name(name), shape)
    }

    /// Takes a tensor by its full name.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.tensors.remove(name) {
            Some(t) if t.shape() == shape => Ok(t),
            Some(t) => {
                let problem = format!("tensor {name} has the shape {:?}; config.json asks for {shape:?}", t.shape());
                Err(Error::file(&self.path, problem))
            }
            None => Err(Error::file(&self.path, format!("tensor {name} {shape:?} is missing"))),
        }
    }

    /// Takes a tensor by its full name, whatever its shape.
    pub fn take_any(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    pub fn linear(&mut self, name: &str, c_in: usize, c_out: usize) -> Result<Linear> {
        self.linear_with(name, c_in, c_out, true)
    }

    /// A linear map with a bias or without.
    pub fn linear_with(&mut self, name: &str, c_in: usize, c_out: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[c_out, c_in])?;
        self.assemble(name, weight, c_out, bias, false)
    }

    /// A linear map whose weight is stored as (C_in, C_out), as GPT-2's are.
    pub fn transposed_linear(&mut self, name: &str, c_in: usize, c_out: usize) -> Result<Linear> {
        let weight = transpose(&self.tensor(&format!("{name}.weight"), &[c_in, c_out])?)?;
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
        Ok(Linear { name: format!("{}{name}", self.prefix), index, weight, bias, lora: None, transposed })
    }

    /// A layer norm; old checkpoints call its parameters gamma and beta.
    pub fn layer_norm(&mut self, name: &str, c: usize, eps: f32) -> Result<Norm> {
        let old = self.has(&format!("{name}.gamma"));
        let (gamma, beta) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let gamma = self.tensor(&format!("{name}.{gamma}"), &[c])?.to_dtype(DType::F32)?;
        Ok(Norm::Layer { gamma, beta: self.tensor(&format!("{name}.{beta}"), &[c])?.to_dtype(DType::F32)?, eps })
    }

    /// An RMS norm that scales by its weight plus `offset`.
    pub fn rms_norm(&mut self, name: &str, c: usize, eps: f32, offset: f32) -> Result<Norm> {
        let mut gamma = self.tensor(&format!("{name}.weight"), &[c])?.to_vec()?;
        gamma.iter_mut().for_each(|v| *v += offset);
        Ok(Norm::Rms { gamma: Tensor::from_vec(gamma, [c])?, eps })
    }
}

/// The transpose of a matrix, in its own type.
pub(crate) fn transpose(t: &Tensor) -> Result<Tensor> {
    let (rows, cols, values) = (t.rows(), t.cols(), t.to_f32()?);
    let at = |i: usize| values[i % rows * cols + i / rows];
    Ok(Tensor::from_vec((0..rows * cols).map(at).collect(), [cols, rows])?.to_dtype(t.dtype())?)
}
