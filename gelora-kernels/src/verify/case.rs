//! One case: an operator at one shape, and its check on one device.
//!
//! A case is an operator at one shape: its inputs, how to run it, the same computed in f64 by the reference, and the bound
//! that the error must stay under. The error of an output is the largest of
//! |got - want| / (|want| + scale), where scale is the largest |want| ([`Metric::Norm`]) or the smallest normal number
//! ([`Metric::Relative`]).
//!
//! A run is checked four ways: every value is finite and was written (outputs start as NaN), errors are below the bound,
//! guard values around the outputs are intact, and a second run gives the same bits.

use std::fmt;

use crate::{DType, Device, Error, Result, Tensor, guard};

/// How an output's error is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Relative to the largest value of the output.
    Norm,
    /// Relative to each value itself: nothing hides behind a large neighbour.
    Relative,
}

type Run = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;
type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + Send + Sync>;

/// One operator at one shape. Build it like this:
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
    /// The operator, `room` or `room.function`.
    pub op: &'static str,
    /// The shape and whatever else tells this case from its siblings.
    pub shape: String,
    /// The type of the weights or points; activations are f32.
    pub dtype: DType,
    /// What the error must not exceed.
    pub bound: f64,
    /// How the error is measured.
    pub metric: Metric,
    /// Floating-point operations of one run.
    pub flops: f64,
    /// Bytes that one run must at least read and write.
    pub bytes: f64,
    /// Whether it is there for the limits of GPUs, and too large to be run often.
    pub near_limit: bool,
    /// The shape that a GPU launcher must take, as its place in the launcher's list.
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
    /// A case without inputs yet, in f32, measured by [`Metric::Norm`].
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

    /// The inputs, on the CPU; they are moved to the device for a run and widened to f64 for the reference.
    pub fn inputs(mut self, inputs: impl Into<Vec<Tensor>>) -> Self {
        self.inputs = inputs.into();
        self
    }

    /// How to run the operator on inputs that are on the device.
    pub fn run(mut self, f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static) -> Self {
        self.run = Box::new(f);
        self
    }

    /// What the outputs should be, from the same inputs in f64.
    pub fn reference(mut self, f: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + Send + Sync + 'static) -> Self {
        self.reference = Box::new(f);
        self
    }

    /// The largest error that passes.
    pub fn bound(mut self, bound: f64) -> Self {
        self.bound = bound;
        self
    }

    /// How the error is measured.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// The element type that the table shows.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Operations and bytes of one run, for rates.
    pub fn work(mut self, flops: f64, bytes: f64) -> Self {
        self.flops = flops;
        self.bytes = bytes;
        self
    }

    /// Marks a case that is there for the limits of GPUs; it is skipped where buffers are smaller.
    pub fn near_limit(mut self) -> Self {
        self.near_limit = true;
        self
    }

    /// Makes GPU launchers take the shape at this place of their list, whatever they would choose. The case is skipped on a
    /// device that cannot run that shape.
    pub fn forced(mut self, shape: usize) -> Self {
        self.forced = Some(shape);
        self.shape = format!("{} (shape {shape})", self.shape);
        self
    }

    /// The inputs on a device, for [`Case::launch`].
    ///
    /// # Errors
    /// If the device fails or lacks the element type.
    pub fn prepare(&self, device: &Device) -> Result<Vec<Tensor>> {
        self.inputs.iter().map(|t| t.to_device(device)).collect()
    }

    /// One run on prepared inputs.
    ///
    /// # Errors
    /// Whatever the operator returns.
    pub fn launch(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        guard::with_forced_shape(self.forced, || (self.run)(inputs))
    }

    /// Whether GPU launchers must take one shape.
    #[cfg(test)]
    pub(crate) fn is_forced(&self) -> bool {
        self.forced.is_some()
    }

    /// Runs the case on a device and compares. With `inject_fault` the first output is perturbed by a hundred bounds before
    /// the comparison, which a working check must notice.
    pub fn check(&self, device: &Device, inject_fault: bool) -> Outcome {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        crate::gpu::forget_failures();
        let verdict = match self.compare(device, inject_fault) {
            Ok((error, None)) => Verdict::Passed { error },
            Ok((error, Some(reason))) => Verdict::Failed { error: Some(error), reason },
            Err(Error::Unsupported { what, .. }) => Verdict::Skipped { reason: what.to_string() },
            Err(e @ Error::OutOfMemory { .. }) if self.near_limit => Verdict::Skipped { reason: e.to_string() },
            Err(e) => Verdict::Failed { error: None, reason: e.to_string() },
        };
        Outcome { verdict }
    }

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
            for (at, (g, w)) in got.iter().zip(want).enumerate() {
                let error = if g == w { 0.0 } else { (g - w).abs() / (w.abs() + scale) };
                if !error.is_finite() {
                    return Ok((f64::NAN, Some(format!("output {index}, value {at}: got {g}, expected {w}"))));
                }
                worst = worst.max(error);
            }
        }
        let reason = (worst > self.bound).then(|| format!("error {worst:.1e} above the bound {:.1e}", self.bound));
        Ok((worst, reason))
    }
}

/// The result of checking one case on one device.
#[derive(Clone, Debug)]
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

/// What a check found.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The error stayed below the bound.
    Passed {
        /// The largest error of any output value.
        error: f64,
    },
    /// It did not, or the run failed.
    Failed {
        /// The largest error, if it came to a comparison.
        error: Option<f64>,
        /// What went wrong.
        reason: String,
    },
    /// The device has no kernel for this operator or lacks a type it needs.
    Skipped {
        /// What is missing.
        reason: String,
    },
}
