//! One case: an operator at one shape, and its check on a device.
//!
//! A case has the inputs of an operator, the call of the operator, the same computation in f64 by the reference, and a
//! bound on the error. The error of an output is the largest of |got - want| / (|want| + scale), where scale is the
//! largest |want| ([`Metric::Norm`]) or the smallest normal number ([`Metric::Relative`]).
//!
//! A check makes four tests: every value was written and is finite (outputs start as NaN), the error is within the
//! bound, the guard values around the outputs are intact, and a second run gives the same bits.

use std::fmt;

use crate::{DType, Device, Error, Result, Tensor, guard};

/// The scale of an output's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// Relative to the largest value of the output.
    Norm,
    /// Relative to each value itself: a large neighbor hides nothing.
    Relative,
}

/// The call of an operator.
type Run = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;
/// The computation of the reference.
type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + Send + Sync>;

/// One operator at one shape.
///
/// ```
/// use gelora_kernels::verify::{Case, random};
/// use gelora_kernels::ops::linear::Weight;
/// use gelora_kernels::{DType, Device, ops};
///
/// let case = Case::new("linear", "3x2->1")
///     .inputs([random([3, 2], 1), random([1, 2], 2)])
///     .run(|t| Ok(vec![ops::linear::forward(&t[0], &Weight::new(t[1].clone(), DType::F32)?, None)?]))
///     .reference(|v| vec![ops::linear::reference::forward(&v[0], &v[1], None, 2)])
///     .bound(1e-6)
///     .work(2.0 * 3.0 * 2.0, 4.0 * (6.0 + 2.0 + 3.0));
/// assert!(case.check(&Device::Cpu, false).passed());
/// ```
pub struct Case {
    /// The operator: `module` or `module.function`.
    pub op: &'static str,
    /// The shape, and other settings that tell this case from others.
    pub shape: String,
    /// The type of the weights or points; activations are f32.
    pub dtype: DType,
    /// The largest error that passes.
    pub bound: f64,
    /// The scale of the error.
    pub metric: Metric,
    /// Floating-point operations of one run.
    pub flops: f64,
    /// Bytes that one run must read and write at least.
    pub bytes: f64,
    /// Whether the case tests the limits of GPUs, and is too large to be run often.
    pub near_limit: bool,
    /// The shape that a GPU launcher must take, as an index into the launcher's list.
    forced: Option<usize>,
    inputs: Vec<Tensor>,
    run: Run,
    reference: Reference,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.op, self.shape, self.dtype)
    }
}

impl Case {
    /// A case without inputs, in f32, with [`Metric::Norm`].
    pub fn new(op: &'static str, shape: impl Into<String>) -> Self {
        Self {
            op,
            shape: shape.into(),
            dtype: DType::F32,
            bound: 1e-5,
            metric: Metric::Norm,
            flops: 0.0,
            bytes: 0.0,
            near_limit: false,
            forced: None,
            inputs: Vec::new(),
            run: Box::new(|_| Ok(Vec::new())),
            reference: Box::new(|_| Vec::new()),
        }
    }

    /// Sets the inputs, on the CPU. A run copies them to the device; the reference gets them in f64.
    pub fn inputs(mut self, inputs: impl Into<Vec<Tensor>>) -> Self {
        self.inputs = inputs.into();
        self
    }

    /// Sets the call of the operator, with inputs on the device.
    pub fn run(mut self, f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static) -> Self {
        self.run = Box::new(f);
        self
    }

    /// Sets the computation of the reference, from the same inputs in f64.
    pub fn reference(mut self, f: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + Send + Sync + 'static) -> Self {
        self.reference = Box::new(f);
        self
    }

    /// Sets the largest error that passes.
    pub fn bound(mut self, bound: f64) -> Self {
        self.bound = bound;
        self
    }

    /// Sets the scale of the error.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Sets the element type that tables show.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the operations and bytes of one run, for rates.
    pub fn work(mut self, flops: f64, bytes: f64) -> Self {
        self.flops = flops;
        self.bytes = bytes;
        self
    }

    /// Marks a case that tests the limits of GPUs. It is skipped on devices with smaller buffers.
    pub fn near_limit(mut self) -> Self {
        self.near_limit = true;
        self
    }

    /// Makes GPU launchers take the shape at this index of their list. The case is skipped on a device that cannot run
    /// the shape.
    pub fn forced(mut self, shape: usize) -> Self {
        self.forced = Some(shape);
        self.shape = format!("{} (shape {shape})", self.shape);
        self
    }

    /// Copies the inputs to a device, for [`Case::launch`].
    ///
    /// # Errors
    /// If the device fails or lacks the element type.
    pub fn prepare(&self, device: &Device) -> Result<Vec<Tensor>> {
        self.inputs.iter().map(|t| t.to_device(device)).collect()
    }

    /// Runs the operator once, on inputs from [`Case::prepare`].
    ///
    /// # Errors
    /// The errors of the operator.
    pub fn launch(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        guard::with_forced_shape(self.forced, || (self.run)(inputs))
    }

    /// Whether GPU launchers must take one shape.
    #[cfg(test)]
    pub(crate) fn is_forced(&self) -> bool {
        self.forced.is_some()
    }

    /// Runs the case on a device and compares the outputs with the reference. With `inject_fault`, the first output is
    /// changed by a hundred bounds before the comparison; a working check must fail.
    pub fn check(&self, device: &Device, inject_fault: bool) -> Outcome {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        crate::gpu::forget_failures();
        let verdict = match self.compare(device, inject_fault) {
            Ok((error, None)) => Verdict::Passed { error },
            Ok((error, Some(reason))) => Verdict::Failed { error: Some(error), reason },
            Err(Error::Unsupported { what, .. }) => Verdict::Skipped { reason: what.to_string() },
            Err(e @ (Error::OutOfMemory { .. } | Error::TooLarge { .. })) if self.near_limit => {
                Verdict::Skipped { reason: e.to_string() }
            }
            Err(e) => Verdict::Failed { error: None, reason: e.to_string() },
        };
        Outcome { verdict }
    }

    /// The largest error, and the reason of a failure.
    fn compare(&self, device: &Device, inject_fault: bool) -> Result<(f64, Option<String>)> {
        let inputs = self.prepare(device)?;
        let outputs = guard::guarded(|| self.launch(&inputs))?;
        let mut got = outputs.iter().map(Tensor::to_vec_f64).collect::<Result<Vec<_>>>()?;
        for output in &outputs {
            if !output.guards_hold()? {
                return Ok((f64::NAN, Some("a value beside an output was overwritten".into())));
            }
        }
        let again = self.launch(&inputs)?;
        for (first, second) in got.iter().zip(&again) {
            if first.iter().zip(second.to_vec_f64()?).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Ok((f64::NAN, Some("a second run gave other bits".into())));
            }
        }
        let widened = self.inputs.iter().map(Tensor::to_vec_f64).collect::<Result<Vec<_>>>()?;
        let want = (self.reference)(&widened);
        if want.len() != got.len() || want.is_empty() {
            return Ok((f64::NAN, Some(format!("{} outputs, the reference has {}", got.len(), want.len()))));
        }
        if inject_fault {
            let peak = want[0].iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
            got[0][0] += 100.0 * self.bound * (peak + want[0][0].abs());
        }
        let mut worst = 0.0_f64;
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            if got.len() != want.len() {
                return Ok((
                    f64::NAN,
                    Some(format!("output {index}: {} values, the reference has {}", got.len(), want.len())),
                ));
            }
            let scale = match self.metric {
                Metric::Norm => want.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs())),
                Metric::Relative => f64::MIN_POSITIVE,
            };
            for (position, (g, w)) in got.iter().zip(want).enumerate() {
                let error = if g == w { 0.0 } else { (g - w).abs() / (w.abs() + scale) };
                if !error.is_finite() {
                    return Ok((f64::NAN, Some(format!("output {index}, value {position}: got {g}, expected {w}"))));
                }
                worst = worst.max(error);
            }
        }
        let reason = (worst > self.bound).then(|| format!("error {worst:.1e} above the bound {:.1e}", self.bound));
        Ok((worst, reason))
    }
}

/// The result of checking a case on a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Passed, failed or skipped.
    pub verdict: Verdict,
}

impl Outcome {
    /// Whether the case passed.
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Passed { .. })
    }
}

/// The verdict of a check.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The errors are within the bound.
    Passed {
        /// The largest error of any output value.
        error: f64,
    },
    /// An error is above the bound, or the run failed.
    Failed {
        /// The largest error, if outputs were compared.
        error: Option<f64>,
        /// The reason.
        reason: String,
    },
    /// The device has no kernel for this operator or lacks a type it needs.
    Skipped {
        /// What is missing.
        reason: String,
    },
}
