//! The memory that a training takes, from the sizes in config.json alone.
//!
//! Nothing is estimated by formula: a step of the training itself runs on a planned device
//! ([`gelora_kernels::plan`]), which counts every buffer and computes nothing.

use std::path::Path;

use gelora_kernels::ops::adamw::AdamW;
use gelora_kernels::plan::{forget_peak, held};
use gelora_kernels::{DType, Device, DeviceKind, Error as KernelError, Rounding};
use serde_json::Value;

use crate::bitsandbytes::stored_type;
use crate::config::Json;
use crate::optim::Optimizer;
use crate::train::Rehearsal;
use crate::{Error, Result, Rows, TaskModel, TrainOptions, Trainer};

/// The most tokens of a step that [`Planner::largest`] tries: it would take minutes to count more.
const MOST_TOKENS: usize = 1 << 19;

/// The most rows of a step that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Number of rows; 0 if one row does not fit.
    pub rows: usize,
    /// Whether even more rows may fit, because the search ended at its limit.
    pub is_limit: bool,
}

/// Bytes that a step holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Live tensors and buffers.
    pub tensors: u64,
    /// Pages of the GPU's memory management. Without a meaning for the CPU.
    pub reserved: u64,
}

/// Plans the steps of one training.
#[derive(Debug)]
pub struct Planner<'a> {
    trainer: Trainer<'a>,
    optimizer: Optimizer,
    device: Device,
    weights: u64,
}

impl<'a> Planner<'a> {
    /// Makes a planner of a model on a planned device. `rows` has at least one row, whose label every row of a planned
    /// step has. `tokens` is the length of the rows.
    ///
    /// # Errors
    /// Returns an error if the device is not planned, [`Trainer::new`] fails, or a step of one row does not fit.
    pub fn new(model: &'a mut TaskModel, rows: &'a dyn Rows, options: TrainOptions, tokens: usize) -> Result<Self> {
        let device = model.transformer().device().clone();
        if device.kind() != DeviceKind::Plan {
            return Err(Error::Value(format!("expected a model on a planned device, got one on {}", device.kind())));
        }
        let weights = held(&device)?.tensors;
        let clip = (options.clip > 0.0).then_some(options.clip);
        let mut trainer = Trainer::new(model, rows, options)?;
        let mut optimizer = Optimizer::new(AdamW::default(), clip);
        // The first steps make the moments, and the CPU keeps packed weights from the second product on.
        let first = Rehearsal { rows: 1, tokens, accumulate: 1, checkpoint_activations: true };
        trainer.rehearse(first, 2, &mut optimizer)?;
        Ok(Self { trainer, optimizer, device, weights })
    }

    /// Bytes of the weights as they are uploaded, or as the file has them on the CPU.
    pub fn weights(&self) -> u64 {
        self.weights
    }

    /// Bytes that stay between steps: weights, parameters, moments, and copies of any of them.
    ///
    /// # Errors
    /// Returns the errors of the device.
    pub fn between_steps(&mut self) -> Result<u64> {
        forget_peak(&self.device)?;
        Ok(held(&self.device)?.tensors)
    }

    /// Number of parameters of the adapters.
    pub fn parameters(&self) -> usize {
        self.trainer.parameters()
    }

    /// Number of all trained parameters: the adapters and the head.
    pub fn trained(&self) -> usize {
        let adapter = self.trainer.adapter();
        let head: usize = adapter.saved.values().map(gelora_kernels::Tensor::len).sum();
        self.trainer.parameters() + head
    }

    /// Bytes that a step holds at most; None if one of its tensors is larger than the device allows.
    ///
    /// # Errors
    /// Returns an error if a row is longer than the model allows.
    pub fn peak(&mut self, rehearsal: Rehearsal) -> Result<Option<Peak>> {
        forget_peak(&self.device)?;
        match self.trainer.rehearse(rehearsal, 1, &mut self.optimizer) {
            Ok(()) => {}
            Err(Error::Kernel(
                KernelError::OutOfMemory { .. } | KernelError::TooLarge { .. } | KernelError::Unsupported { .. },
            )) => return Ok(None),
            Err(other) => return Err(other),
        }
        let held = held(&self.device)?;
        Ok(Some(Peak { tensors: held.most_tensors, reserved: held.most_reserved }))
    }

    /// Bytes that a step takes for each of its tokens: the difference of two peaks. None if neither fits.
    ///
    /// # Errors
    /// Returns the errors of [`Planner::peak`].
    pub fn bytes_per_token(&mut self, rehearsal: Rehearsal) -> Result<Option<f64>> {
        let mut rows = rehearsal.rows.max(2).next_multiple_of(2);
        loop {
            let (half, whole) = (Rehearsal { rows: rows / 2, ..rehearsal }, Rehearsal { rows, ..rehearsal });
            if let (Some(half_peak), Some(peak)) = (self.peak(half)?, self.peak(whole)?) {
                let tokens = (rows / 2 * rehearsal.tokens / rehearsal.accumulate.max(1)).max(1);
                return Ok(Some((peak.tensors as f64 - half_peak.tensors as f64) / tokens as f64));
            }
            if rows == 2 {
                return Ok(None);
            }
            rows = (rows / 4 * 2).max(2);
        }
    }

    /// The most rows of a step whose peak fits. Above 64 rows the number is at most 2 % too small. The search ends at
    /// 524,288 tokens.
    ///
    /// # Errors
    /// Returns the errors of [`Planner::peak`].
    pub fn largest(&mut self, rehearsal: Rehearsal, fits: impl Fn(Peak) -> bool) -> Result<Largest> {
        let mut fits_with = |rows| Ok::<_, Error>(self.peak(Rehearsal { rows, ..rehearsal })?.is_some_and(&fits));
        let most = (MOST_TOKENS / rehearsal.tokens.max(1)).max(1);
        let (mut fitting, mut rows) = (0, 1);
        while fits_with(rows)? {
            if rows == most {
                return Ok(Largest { rows, is_limit: true });
            }
            (fitting, rows) = (rows, (2 * rows).min(most));
        }
        while rows - fitting > 1 + fitting / 64 {
            let middle = fitting.midpoint(rows);
            if fits_with(middle)? { fitting = middle } else { rows = middle }
        }
        Ok(Largest { rows: fitting, is_limit: false })
    }
}

/// The type in which a model's matrices are stored, as its config.json says; f32 if it does not.
///
/// # Errors
/// Returns an error if config.json cannot be read.
pub fn stored_dtype(model: &Path) -> Result<DType> {
    let json = Json::load(model)?;
    let named = |key| json.map.get(key).and_then(Value::as_str);
    let (dtype, rounding) = match named("dtype").or_else(|| named("torch_dtype")) {
        Some("bfloat16") => (DType::Bf16, Rounding::Bf16),
        Some("float16") => (DType::F16, Rounding::F16),
        _ => (DType::F32, Rounding::F32),
    };
    Ok(stored_type(&json, rounding).unwrap_or(dtype))
}
