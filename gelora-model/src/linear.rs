use std::collections::BTreeMap;
use std::sync::Arc;

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{adalora, add, dora, lora_linear};
use gelora_kernels::{DType, Device, DeviceKind, Tensor};
use gelora_lora::LoraLayer;

use crate::mode::{DropoutSite, Mode};
use crate::probe::Probe;
use crate::{Error, Result};

/// Gradients by parameter name: `MODULE.lora_A.weight`, `MODULE.lora_B.weight`, `classifier.weight`, ...
pub type Grads = BTreeMap<String, Tensor>;

/// Adds to a gradient, or inserts it if there is none of that name.
pub(crate) fn accumulate(grads: &mut Grads, name: String, gradient: Tensor) -> Result<()> {
    match grads.get_mut(&name) {
        Some(sum) => add::accumulate(sum, &gradient)?,
        None => {
            grads.insert(name, gradient);
        }
    }
    Ok(())
}

/// Returns the transpose of a matrix, in the same element type.
pub(crate) fn transpose(t: &Tensor) -> Result<Tensor> {
    let (rows, cols, values) = (t.rows(), t.cols(), t.to_f32()?);
    let value = |i: usize| values[i % rows * cols + i / rows];
    Ok(Tensor::from_vec((0..rows * cols).map(value).collect(), [cols, rows])?.to_dtype(t.dtype())?)
}

/// Copies a frozen weight to a device. Its type becomes f32 if the device does not support it.
pub(crate) fn stored_on(t: &Tensor, device: &Device) -> Result<Tensor> {
    match t.to_device_for_good(device) {
        Err(gelora_kernels::Error::Unsupported { .. }) => Ok(t.to_dtype(DType::F32)?.to_device_for_good(device)?),
        other => Ok(other?),
    }
}

/// Names the weight in the error of a weight that is larger than a buffer of the device.
pub(crate) fn naming(name: &str, moved: Result<Tensor>) -> Result<Tensor> {
    moved.map_err(|error| match error {
        Error::Kernel(too_large @ gelora_kernels::Error::TooLarge { .. }) => Error::Value(format!(
            "{name}: {too_large}; a model of fewer bits (a .gguf file, or 4 bits of bitsandbytes) may fit, and \
             --device cpu has no such limit"
        )),
        other => other,
    })
}

/// Copies the tensor of a frozen weight to a device, as [`stored_on`] does. It becomes bf16 if the device's products
/// round it to bf16 anyway and the original type takes more memory.
pub(crate) fn weight_on(weight: &Weight, device: &Device) -> Result<Tensor> {
    let tensor = weight.tensor();
    let rounds = weight.compute() == DType::Bf16 && device.kind() != DeviceKind::Cpu && device.multiplies_bf16();
    match rounds && !tensor.dtype().is_quantized() {
        true => stored_on(&tensor.to_dtype(DType::Bf16)?, device),
        false => stored_on(tensor, device),
    }
}

/// A frozen linear layer, with or without a LoRA adapter.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Full name of the module inside the task model, such as `bert.encoder.layer.0.attention.self.query`.
    pub name: String,
    /// Number that distinguishes the dropout masks of this module from others.
    pub(crate) index: usize,
    /// Weight W (C_out, C_in), frozen.
    pub weight: Weight,
    /// Bias b (C_out), frozen.
    pub bias: Option<Tensor>,
    /// The adapter.
    pub lora: Option<LoraLayer>,
    /// Squared norms of the rows of W (C_out), if the adapter has magnitudes.
    pub(crate) squares: Option<Tensor>,
    /// What sees the inputs, while they are measured.
    pub(crate) probe: Option<Arc<dyn Probe>>,
    /// Whether the checkpoint stores W as (C_in, C_out).
    pub(crate) transposed: bool,
}

/// Values that [`Linear::backward`] needs. None are needed without an adapter.
#[derive(Debug)]
pub(crate) struct Saved {
    lora: Option<(Tensor, Option<[u32; 2]>, lora_linear::Saved)>,
    /// With magnitudes: z = x W^T + s x A^T B^T, and the norms of the rows of W + s B A.
    directed: Option<(Tensor, Tensor)>,
}

impl Linear {
    /// Sets the type of products with W: f32 or bf16.
    pub(crate) fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.weight = Weight::new(self.weight.tensor().clone(), dtype)?;
        Ok(())
    }

    /// Moves weight, bias and adapter to a device.
    pub(crate) fn move_to(&mut self, device: &Device) -> Result<()> {
        let weight = naming(&format!("{}.weight", self.name), weight_on(&self.weight, device))?;
        self.weight = Weight::new(weight, self.weight.compute())?;
        if let Some(bias) = &mut self.bias {
            *bias = bias.to_device(device)?;
        }
        if let Some(layer) = &mut self.lora {
            layer.move_to(device)?;
        }
        self.squares = self.squares.as_ref().map(|squares| squares.to_device(device)).transpose()?;
        Ok(())
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: &Mode) -> Result<(Tensor, Saved)> {
        if let Some(probe) = self.probe.as_ref().filter(|_| !mode.is_for_distances()) {
            probe.see(&self.name, x);
        }
        let Some(layer) = &self.lora else {
            return Ok((linear::forward(x, &self.weight, self.bias.as_ref())?, Saved { lora: None, directed: None }));
        };
        let (key, a) = (mode.key(DropoutSite::Lora, self.index), layer.factor_a()?);
        let (Some(magnitude), Some(squares)) = (&layer.magnitude, &self.squares) else {
            let (y, saved) = layer.bind(&a, &self.weight, self.bias.as_ref(), key).forward(x)?;
            return Ok((y, Saved { lora: Some((x.clone(), key, saved)), directed: None }));
        };
        let (z, saved) = layer.bind(&a, &self.weight, None, key).forward(x)?;
        let norms = dora::norms(&self.weight, squares, &layer.a, &layer.b, layer.scaling)?;
        let y = dora::forward(&z, magnitude, &norms, self.bias.as_ref())?;
        Ok((y, Saved { lora: Some((x.clone(), key, saved)), directed: Some((z, norms)) }))
    }

    /// Returns dx and adds the adapter's gradients to `grads`.
    pub(crate) fn backward(&self, dy: &Tensor, saved: Saved, grads: &mut Grads) -> Result<Tensor> {
        let dz = self.backward_magnitude(dy, saved.directed, grads)?;
        let dy = dz.as_ref().unwrap_or(dy);
        let (Some(layer), Some((x, key, saved))) = (&self.lora, saved.lora) else {
            return Ok(linear::backward_input(dy, &self.weight)?);
        };
        let a = layer.factor_a()?;
        let g = layer.bind(&a, &self.weight, self.bias.as_ref(), key).backward(&x, dy, saved)?;
        self.keep(layer, grads, g.da, g.db)?;
        Ok(g.dx)
    }

    /// Adds the adapter's gradients to `grads` without computing dx.
    pub(crate) fn backward_parameters(&self, dy: &Tensor, saved: Saved, grads: &mut Grads) -> Result<()> {
        let dz = self.backward_magnitude(dy, saved.directed, grads)?;
        let dy = dz.as_ref().unwrap_or(dy);
        let (Some(layer), Some((x, key, saved))) = (&self.lora, saved.lora) else {
            return Ok(());
        };
        let a = layer.factor_a()?;
        let (da, db) = layer.bind(&a, &self.weight, self.bias.as_ref(), key).backward_parameters(&x, dy, saved)?;
        self.keep(layer, grads, da, db)
    }

    /// With magnitudes, returns dz and adds their gradient to `grads`.
    fn backward_magnitude(
        &self,
        dy: &Tensor,
        directed: Option<(Tensor, Tensor)>,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let magnitude = self.lora.as_ref().and_then(|layer| layer.magnitude.as_ref());
        let (Some(magnitude), Some((z, norms))) = (magnitude, directed) else { return Ok(None) };
        let (dz, dm) = dora::backward(dy, &z, magnitude, &norms)?;
        accumulate(grads, format!("{}.lora_magnitude_vector", self.name), dm)?;
        Ok(Some(dz))
    }

    /// Adds the gradients of the factors: that of A from that of diag(e) A, if there are singular values.
    fn keep(&self, layer: &LoraLayer, grads: &mut Grads, da: Tensor, db: Tensor) -> Result<()> {
        let da = match &layer.singular {
            Some(e) => {
                let (da, de) = adalora::backward(&da, e, &layer.a)?;
                accumulate(grads, format!("{}.lora_E", self.name), de)?;
                da
            }
            None => da,
        };
        accumulate(grads, format!("{}.lora_A.weight", self.name), da)?;
        accumulate(grads, format!("{}.lora_B.weight", self.name), db)
    }
}
