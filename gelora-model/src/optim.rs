//! AdamW over named parameters, the learning-rate schedule, and gradient clipping.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::ops::adamw::{AdamW, Factors, Group, Member, Moments};
use gelora_kernels::{Device, Tensor};
use gelora_lora::files;

use crate::{Error, Grads, Result};

/// Factor of the learning rate at `step`, counted from 0, of `total` steps. It rises linearly over `warmup` steps and
/// then falls linearly to 0 at `total`: min((step + 1) / warmup, (total - step) / (total - warmup)).
///
/// ```
/// use gelora_model::optim::linear_schedule;
/// assert_eq!(linear_schedule(0, 10, 2.0), 0.5);
/// assert_eq!(linear_schedule(1, 10, 2.0), 1.0);
/// assert_eq!(linear_schedule(6, 10, 2.0), 0.5);
/// ```
pub fn linear_schedule(step: usize, total: usize, warmup: f64) -> f64 {
    let (step, total) = (step as f64, total as f64);
    let rising = (step + 1.0) / warmup.max(1.0);
    let falling = ((total - step) / (total - warmup).max(1.0)).max(0.0);
    rising.min(falling)
}

/// Checks the gradient norm of `step`, counted from 1. `norm` is the value that [`Optimizer::step`] returned.
///
/// # Errors
/// Returns an error if the norm is not finite.
pub fn finite_norm(norm: f32, step: u64) -> Result<f64> {
    if norm.is_finite() {
        return Ok(f64::from(norm));
    }
    Err(Error::Diverged { step })
}

/// AdamW, with the state of all parameters.
#[derive(Debug, Default)]
pub struct Optimizer {
    /// Settings of AdamW. The learning rate is an argument of each step.
    pub settings: AdamW,
    /// Gradients with a larger global norm are scaled down to this norm. None disables clipping.
    pub clip: Option<f64>,
    /// LoRA+: how many times as high the learning rate of B is as that of A. Each B and each vector (a bias of a head)
    /// then has this multiple of the rate, and biases have no weight decay. None is plain AdamW.
    ///
    /// Source: Hayou, Ghosh and Yu, arXiv 2402.12354; PEFT 0.21.2, `create_loraplus_optimizer`.
    pub lora_plus: Option<f64>,
    t: u64,
    moments: BTreeMap<String, Moments>,
    group: Group,
}

impl Optimizer {
    /// Makes an optimizer that has taken no step.
    pub fn new(settings: AdamW, clip: Option<f64>) -> Self {
        Self { settings, clip, lora_plus: None, t: 0, moments: BTreeMap::new(), group: Group::default() }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.t
    }

    /// Takes one step over all parameters that have a gradient. Returns the global norm of the gradients before
    /// clipping, as one value on their device, for [`finite_norm`]. If the norm is not finite, the step changes no
    /// parameter.
    ///
    /// # Errors
    /// Returns an error if there is no gradient, or a gradient has no parameter or does not fit it.
    pub fn step(&mut self, parameters: Vec<(String, &mut Tensor)>, grads: &Grads, lr: f32) -> Result<Tensor> {
        let mut parameters: BTreeMap<String, &mut Tensor> = parameters.into_iter().collect();
        // Pair each gradient with its parameter, and make zero moments at the first step.
        let mut stepping = Vec::with_capacity(grads.len());
        for (name, gradient) in grads {
            let parameter = parameters.remove(name);
            let parameter =
                parameter.ok_or_else(|| Error::Value(format!("a gradient of {name}, which is not a parameter")))?;
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), Moments::zeros(parameter)?);
            }
            stepping.push((parameter, gradient));
        }
        let moments = self.moments.iter_mut().filter(|(name, _)| grads.contains_key(*name));
        // Parameters, gradients and moments are all sorted by name.
        let mut members: Vec<Member<'_>> = stepping
            .into_iter()
            .zip(moments)
            .map(|((parameter, gradient), (name, moments))| {
                let factors = self.lora_plus.map_or_else(Factors::default, |ratio| loraplus(name, parameter, ratio));
                Member { parameter, gradient, moments, factors }
            })
            .collect();
        // Members with the same factors stand side by side; without LoRA+ the order stays.
        members.sort_by(|a, b| a.factors.lr.total_cmp(&b.factors.lr).then(by_decay(a, b)));
        let max_norm = self.clip.map_or(f32::INFINITY, |max| max as f32);
        self.t += 1;
        Ok(self.group.step(&AdamW { lr, ..self.settings }, self.t, max_norm, &mut members)?)
    }

    /// Writes the moments. The caller stores the number of steps.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let all = self.moments.iter().flat_map(|(name, s)| [(format!("{name}.m"), &s.m), (format!("{name}.v"), &s.v)]);
        Ok(files::write_tensors(path, all)?)
    }

    /// Reads the file that [`Optimizer::save`] wrote after `steps` steps, and puts the moments on a device.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or lacks one of a parameter's two moments.
    pub fn restore(&mut self, path: &Path, steps: u64, device: &Device) -> Result<()> {
        let mut tensors = files::read_tensors(path, |_| true)?;
        let names: Vec<String> = tensors.keys().filter_map(|n| Some(n.strip_suffix(".m")?.to_string())).collect();
        self.moments.clear();
        for name in names {
            let m = tensors.remove(&format!("{name}.m"));
            let (Some(m), Some(v)) = (m, tensors.remove(&format!("{name}.v"))) else {
                return Err(Error::file(path, format!("{name} needs both .m and .v")));
            };
            self.moments.insert(name, Moments { m: m.to_device(device)?, v: v.to_device(device)? });
        }
        self.t = steps;
        Ok(())
    }
}

/// The factors of LoRA+ on the settings of a parameter.
fn loraplus(name: &str, parameter: &Tensor, ratio: f64) -> Factors {
    let is_vector = parameter.shape().len() == 1;
    let is_fast = is_vector || name.ends_with(".lora_B.weight");
    Factors {
        lr: if is_fast { ratio as f32 } else { 1.0 },
        weight_decay: if is_vector && name.contains("bias") { 0.0 } else { 1.0 },
    }
}

fn by_decay(a: &Member<'_>, b: &Member<'_>) -> Ordering {
    a.factors.weight_decay.total_cmp(&b.factors.weight_decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lora_plus_has_three_groups_of_parameters() -> Result<()> {
        let of = |name: &str, shape: &[usize]| {
            let factors = loraplus(name, &Tensor::zeros(shape, &Device::Cpu)?, 16.0);
            Ok::<_, Error>((factors.lr, factors.weight_decay))
        };
        assert_eq!(of("l.0.query.lora_A.weight", &[2, 8])?, (1.0, 1.0));
        assert_eq!(of("l.0.query.lora_B.weight", &[8, 2])?, (16.0, 1.0));
        assert_eq!(of("classifier.weight", &[3, 8])?, (1.0, 1.0));
        assert_eq!(of("classifier.bias", &[3])?, (16.0, 0.0));
        Ok(())
    }

    /// Parameters without a gradient stay unchanged. An error names a gradient without a parameter.
    #[test]
    fn gradients_are_matched_to_parameters_by_name() -> Result<()> {
        let tensor = |value: f32| Tensor::from_vec(vec![value], [1]);
        let (mut a, mut b) = (tensor(1.0)?, tensor(1.0)?);
        let mut optimizer = Optimizer::new(AdamW { weight_decay: 0.0, ..AdamW::default() }, Some(1.0));
        let grads = Grads::from([("b".to_string(), tensor(3.0)?)]);
        let norm = optimizer.step(vec![("b".into(), &mut b), ("a".into(), &mut a)], &grads, 0.1)?;
        assert_eq!((norm.item()?, a.item()?), (3.0, 1.0));
        assert!((b.item()? - 0.9).abs() < 1e-6);
        let stray = optimizer.step(vec![("a".into(), &mut a)], &grads, 0.1).map(|_| ());
        assert!(stray.is_err_and(|e| e.to_string().contains("a gradient of b, which is not a parameter")));
        assert_eq!((optimizer.steps(), a.item()?), (1, 1.0));
        Ok(())
    }
}
