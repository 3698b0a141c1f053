//! AdaLoRA: adapters that train at more ranks than they keep, and give up the least important.
//!
//! Every module begins with `start` times its rank, in the form B diag(e) A ([`gelora_lora::adalora`]). With T steps,
//! b_0 the sum of the ranks at the start and b_T that of the ranks to keep, after step t:
//!
//! ```text
//! b_t = b_0                                                            t <= t_init
//!     = b_T + (b_0 - b_T) (1 - (t - t_init) / (T - t_final - t_init))^3, rounded down
//! ```
//!
//! Every `interval` steps, the b_0 - b_t triplets of all modules with the lowest importance get the singular value 0;
//! they may grow again. From step T - t_final on, those that are 0 stay 0. The loss has `orthogonality` times the mean
//! of |A A^T - I|_F and |B^T B - I|_F over all factors, and the importance is that of
//! [`gelora_kernels::ops::adalora`].
//!
//! Source: Zhang et al. (arXiv 2303.10512), section 3; PEFT 0.21.2, `AdaLoraModel` and `RankAllocator`.

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::ops::adalora::{self, Decay, Importance, Vectors};
use gelora_kernels::ops::adamw::Clip;
use gelora_kernels::ops::scale;
use gelora_kernels::{Device, Pending, Tensor};
use gelora_lora::adalora::scaling_factor;
use gelora_lora::{LoraLayer, files};
use serde_json::{Value, json};

use crate::linear::accumulate;
use crate::measure::ModuleRank;
use crate::{Error, Grads, Result};

/// Options of AdaLoRA.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLora {
    /// How many times as high the ranks at the start are as those to keep, at least 1. They are rounded up, and no
    /// higher than the module allows.
    pub start: f64,
    /// Steps before ranks are given up: below 1 a share of all steps, else a whole number.
    pub t_init: f64,
    /// Last steps, after the ranks are settled: below 1 a share of all steps, else a whole number.
    pub t_final: f64,
    /// Steps from a choice of ranks to the next.
    pub interval: usize,
    /// Decay rate of the sensitivity, strictly between 0 and 1.
    pub beta1: f64,
    /// Decay rate of its uncertainty, strictly between 0 and 1.
    pub beta2: f64,
    /// Weight of the penalty in the loss, at least 0.
    pub orthogonality: f64,
}

impl Default for AdaLora {
    fn default() -> Self {
        Self { start: 1.5, t_init: 0.1, t_final: 0.3, interval: 1, beta1: 0.85, beta2: 0.85, orthogonality: 0.5 }
    }
}

impl AdaLora {
    /// The settings that a resumed training must share.
    pub(crate) fn settings(&self) -> Value {
        let &Self { start, t_init, t_final, interval, beta1, beta2, orthogonality } = self;
        json!([start, t_init, t_final, interval, beta1, beta2, orthogonality])
    }

    /// What is out of range, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let is_inside = |value: f64| value > 0.0 && value < 1.0;
        let is_steps = |value: f64| (0.0..1.0).contains(&value) || (value >= 1.0 && value.fract() == 0.0);
        let wrong = [
            ("AdaLoRA: start is below 1", !(self.start.is_finite() && self.start >= 1.0)),
            ("AdaLoRA: t_init is neither from 0 to below 1 nor a whole number of steps", !is_steps(self.t_init)),
            ("AdaLoRA: t_final is neither from 0 to below 1 nor a whole number of steps", !is_steps(self.t_final)),
            ("AdaLoRA: interval is 0", self.interval == 0),
            ("AdaLoRA: beta1 is not between 0 and 1", !is_inside(self.beta1)),
            ("AdaLoRA: beta2 is not between 0 and 1", !is_inside(self.beta2)),
            ("AdaLoRA: orthogonality is below 0", !(self.orthogonality.is_finite() && self.orthogonality >= 0.0)),
        ];
        wrong.into_iter().find(|(_, is_wrong)| *is_wrong).map(|(problem, _)| problem)
    }

    /// The steps before ranks are given up, and the step after which they are settled, of a training of so many steps.
    ///
    /// # Errors
    /// If no step is left between the first and the last ones, or only the first step, after which nothing is known of
    /// the importance.
    pub(crate) fn schedule(&self, steps: usize) -> Result<(usize, usize)> {
        let whole = |value: f64| if value < 1.0 { (value * steps as f64).round() as usize } else { value as usize };
        let (t_init, t_final) = (whole(self.t_init), whole(self.t_final));
        if t_init.saturating_add(t_final) >= steps || steps - t_final < 2 {
            return Err(Error::Value(format!(
                "AdaLoRA: t_init of {t_init} steps and t_final of {t_final} leave none of {steps} steps to give up \
                 ranks in; expected more steps, or a smaller t_init or t_final"
            )));
        }
        Ok((t_init, steps - t_final))
    }

    /// The ranks that a training begins with, for modules with these ranks to keep and these largest ranks. The scaling
    /// is PEFT's.
    pub(crate) fn at_start(
        &self,
        ranks: &BTreeMap<String, ModuleRank>,
        most: impl Fn(&str) -> usize,
    ) -> BTreeMap<String, ModuleRank> {
        let of = |(name, module): (&String, &ModuleRank)| {
            let rank =
                ((module.rank as f64 * self.start).ceil() as usize).clamp(module.rank, most(name).max(module.rank));
            let ratio = module.alpha / module.rank as f64;
            (name.clone(), ModuleRank { rank, alpha: ratio * scaling_factor(rank) * rank as f64 })
        };
        ranks.iter().map(of).collect()
    }
}

/// What is done to the triplets after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Nothing,
    /// This many triplets are kept for now.
    Keep(usize),
    /// This many are kept to the end.
    Settle(usize),
    /// Those that were given up stay 0.
    Hold,
}

/// Gives up triplets while a training runs. Parameters are those of [`Classifier::parameters_mut`] and
/// [`CausalLm::parameters_mut`], with adapters of AdaLoRA.
///
/// [`Classifier::parameters_mut`]: crate::Classifier::parameters_mut
/// [`CausalLm::parameters_mut`]: crate::CausalLm::parameters_mut
#[derive(Debug)]
pub struct RankAllocator {
    options: AdaLora,
    /// Steps before ranks are given up.
    t_init: usize,
    /// Step after which the ranks are settled.
    settled: usize,
    /// Sums of the ranks at the start, and of those to keep.
    budget: (usize, usize),
    /// Importance of the values of every factor, by its name.
    importance: BTreeMap<String, Importance>,
    /// The triplets that are kept to the end, by the names of the singular values: 1 for each, 0 for the others. A
    /// module that keeps all has none.
    kept: BTreeMap<String, Tensor>,
}

/// Parameters with their names.
type Parameters<'a> = Vec<(String, &'a mut Tensor)>;

/// Ends of the names of the three factors.
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const E: &str = ".lora_E";

/// Where a factor has its vectors, if the parameter is one.
fn vectors(name: &str) -> Option<Vectors> {
    match name {
        name if name.ends_with(A) || name.ends_with(E) => Some(Vectors::Rows),
        name if name.ends_with(B) => Some(Vectors::Columns),
        _ => None,
    }
}

impl RankAllocator {
    /// For a training of `steps` steps that begins with `start` ranks and keeps `keep`.
    ///
    /// # Errors
    /// If no step is left between the first and the last ones.
    pub fn new(options: AdaLora, steps: usize, start: usize, keep: usize) -> Result<Self> {
        let (t_init, settled) = options.schedule(steps)?;
        let (importance, kept) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { options, t_init, settled, budget: (start, keep), importance, kept })
    }

    /// Whether the ranks are settled after step `t`, counted from 1.
    pub fn is_settled(&self, t: usize) -> bool {
        t >= self.settled
    }

    /// What is done after step `t`, counted from 1.
    fn choice(&self, t: usize) -> Choice {
        let (start, keep) = self.budget;
        if t > self.settled {
            return Choice::Hold;
        }
        if t == self.settled {
            return Choice::Settle(keep);
        }
        if t <= self.t_init || !t.is_multiple_of(self.options.interval) {
            return Choice::Nothing;
        }
        let left = 1.0 - (t - self.t_init) as f64 / (self.settled - self.t_init) as f64;
        Choice::Keep(((start - keep) as f64 * left.powi(3) + keep as f64) as usize)
    }

    /// Adds the gradient of the penalty. Returns the penalty of every factor, and what their sum is multiplied by in
    /// the loss.
    ///
    /// # Errors
    /// If a gradient does not fit its parameter, or the device fails.
    pub fn add_penalty(&self, parameters: Parameters<'_>, grads: &mut Grads) -> Result<(Vec<Tensor>, f64)> {
        let factors = parameters.into_iter().filter(|(name, _)| name.ends_with(A) || name.ends_with(B));
        let factors: Vec<(String, &mut Tensor)> = factors.collect();
        let weight = self.options.orthogonality / factors.len().max(1) as f64;
        let mut penalties = Vec::with_capacity(factors.len());
        for (name, factor) in factors {
            let vectors = vectors(&name).unwrap_or(Vectors::Rows);
            let (penalty, mut gradient) = adalora::orthogonality(factor, vectors)?;
            scale::in_place(weight as f32, &mut gradient)?;
            accumulate(grads, name, gradient)?;
            penalties.push(penalty);
        }
        Ok((penalties, weight))
    }

    /// Counts the importance after step `t`, counted from 1, and gives up triplets. The gradients are those of the
    /// step, before clipping.
    ///
    /// # Errors
    /// If a gradient does not fit its parameter, or the device fails.
    pub fn after_step(
        &mut self,
        t: usize,
        mut parameters: Parameters<'_>,
        grads: &Grads,
        clip: Clip<'_>,
    ) -> Result<()> {
        if t < self.settled {
            self.count(&parameters, grads, clip)?;
        }
        parameters.retain(|(name, _)| name.ends_with(E));
        match self.choice(t) {
            Choice::Nothing => Ok(()),
            Choice::Hold => mask(parameters, &self.kept),
            Choice::Keep(number) => {
                let kept = self.kept_among(&parameters, number)?;
                mask(parameters, &kept)
            }
            Choice::Settle(number) => {
                self.kept = self.kept_among(&parameters, number)?;
                self.importance.clear();
                mask(parameters, &self.kept)
            }
        }
    }

    fn count(&mut self, parameters: &Parameters<'_>, grads: &Grads, clip: Clip<'_>) -> Result<()> {
        let (beta1, beta2) = (self.options.beta1 as f32, self.options.beta2 as f32);
        let decay = Decay { sensitivity: beta1, uncertainty: beta2 };
        for (name, parameter) in parameters {
            let (Some(_), Some(gradient)) = (vectors(name), grads.get(name)) else { continue };
            if !self.importance.contains_key(name) {
                self.importance.insert(name.clone(), Importance::zeros(parameter)?);
            }
            let Some(importance) = self.importance.get_mut(name) else { continue };
            adalora::update(decay, parameter, gradient, clip, importance)?;
        }
        Ok(())
    }

    /// The masks of the `number` most important triplets, on the devices of their singular values.
    fn kept_among(&self, values: &Parameters<'_>, number: usize) -> Result<BTreeMap<String, Tensor>> {
        let chosen = self.most_important(number)?;
        let mut masks = BTreeMap::new();
        for (name, value) in values {
            let Some(kept) = chosen.get(name).filter(|kept| kept.contains(&false)) else { continue };
            let ones: Vec<f32> = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
            masks.insert(name.clone(), Tensor::from_vec(ones, [kept.len(), 1])?.to_device(value.device())?);
        }
        Ok(masks)
    }

    /// Which triplets of every module are among the `number` most important ones, by the names of the singular values.
    fn most_important(&self, number: usize) -> Result<BTreeMap<String, Vec<bool>>> {
        let of_factors = self.importance.iter().filter_map(|(name, importance)| Some((vectors(name)?, importance)));
        let scores: Vec<Tensor> =
            of_factors.map(|(vectors, importance)| adalora::scores(importance, vectors)).collect::<Result<_, _>>()?;
        let read = Pending::read(&scores.iter().collect::<Vec<_>>())?.wait()?;
        let mut triplets: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (name, scores) in self.importance.keys().zip(read) {
            let module = [A, B, E].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let sums = triplets.entry(format!("{module}{E}")).or_insert_with(|| vec![0.0; scores.len()]);
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
        let mut all: Vec<f32> = triplets.values().flatten().copied().collect();
        all.sort_by(f32::total_cmp);
        // Of equal importance, all are given up.
        let threshold = all.len().checked_sub(number + 1).map(|last| all[last]);
        let is_kept = |score: &f32| threshold.is_none_or(|threshold| *score > threshold);
        Ok(triplets.into_iter().map(|(name, scores)| (name, scores.iter().map(is_kept).collect())).collect())
    }

    /// Writes the factors as they train, the importance and the settled triplets.
    pub(crate) fn save(&self, path: &Path, layers: &BTreeMap<String, LoraLayer>) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (module, layer) in layers {
            let factors = [(A, Some(&layer.a)), (B, Some(&layer.b)), (E, layer.singular.as_ref())];
            for (end, factor) in factors {
                tensors.extend(factor.map(|factor| (format!("{module}{end}"), factor.clone())));
            }
        }
        for (name, importance) in &self.importance {
            tensors.insert(format!("{name}.s"), importance.sensitivity.clone());
            tensors.insert(format!("{name}.u"), importance.uncertainty.clone());
        }
        for (name, kept) in &self.kept {
            tensors.insert(format!("{name}.kept"), kept.clone());
        }
        let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
        Ok(files::write_tensors(path, tensors)?)
    }

    /// Reads what [`RankAllocator::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or does not fit the model.
    pub(crate) fn restore(&mut self, path: &Path, parameters: Parameters<'_>, device: &Device) -> Result<()> {
        let mut tensors = files::read_tensors(path, |_| true)?;
        let mut names = Vec::new();
        for (name, parameter) in parameters {
            if vectors(&name).is_none() {
                continue;
            }
            let stored = tensors.remove(&name).filter(|stored| stored.shape() == parameter.shape());
            let stored = stored.ok_or_else(|| Error::file(path, format!("has no {name} that fits the model")))?;
            *parameter = stored.to_device(device)?;
            names.push(name);
        }
        self.importance.clear();
        self.kept.clear();
        for name in names {
            if let (Some(s), Some(u)) = (tensors.remove(&format!("{name}.s")), tensors.remove(&format!("{name}.u"))) {
                let (sensitivity, uncertainty) = (s.to_device(device)?, u.to_device(device)?);
                self.importance.insert(name.clone(), Importance { sensitivity, uncertainty });
            }
            if let Some(kept) = tensors.remove(&format!("{name}.kept")) {
                self.kept.insert(name, kept.to_device(device)?);
            }
        }
        Ok(())
    }
}

/// Sets the singular values of the triplets that are not kept to 0.
fn mask(parameters: Parameters<'_>, kept: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, value) in parameters {
        if let Some(kept) = kept.get(&name) {
            *value = adalora::forward(kept, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(options: AdaLora) -> Result<RankAllocator> {
        RankAllocator::new(options, 100, 36, 24)
    }

    #[test]
    fn the_budget_falls_as_a_cube_and_is_settled() -> Result<()> {
        let allocator = allocator(AdaLora { t_init: 10.0, t_final: 0.3, interval: 2, ..AdaLora::default() })?;
        assert_eq!((allocator.t_init, allocator.settled), (10, 70));
        assert_eq!(allocator.choice(10), Choice::Nothing);
        assert_eq!(allocator.choice(11), Choice::Nothing);
        // 12 (29 / 30)^3 + 24 and 12 / 8 + 24.
        assert_eq!(allocator.choice(12), Choice::Keep(34));
        assert_eq!(allocator.choice(40), Choice::Keep(25));
        assert_eq!(allocator.choice(69), Choice::Nothing);
        assert_eq!(allocator.choice(70), Choice::Settle(24));
        assert_eq!(allocator.choice(71), Choice::Hold);
        Ok(())
    }

    #[test]
    fn a_training_needs_steps_to_give_up_ranks_in() {
        let error = allocator(AdaLora { t_init: 60.0, t_final: 40.0, ..AdaLora::default() }).unwrap_err().to_string();
        assert!(error.contains("t_init of 60 steps and t_final of 40 leave none of 100 steps"), "{error}");
        assert!(allocator(AdaLora { t_init: 59.0, t_final: 40.0, ..AdaLora::default() }).is_ok());
    }

    #[test]
    fn the_least_important_triplets_are_given_up() -> Result<()> {
        let mut allocator = allocator(AdaLora::default())?;
        let importance = |values: &[f32]| -> Result<Importance> {
            let tensor = |values: Vec<f32>| Tensor::from_vec(values, [2, 1]);
            Ok(Importance { sensitivity: tensor(values.to_vec())?, uncertainty: tensor(vec![1.0; 2])? })
        };
        for (module, [a, e]) in [("q", [[1.0, 5.0], [1.0, 1.0]]), ("v", [[0.5, 0.5], [9.0, 0.0]])] {
            allocator.importance.insert(format!("{module}{A}"), importance(&a)?);
            allocator.importance.insert(format!("{module}{E}"), importance(&e)?);
        }
        // Sums 2, 6 and 9.5, 0.5.
        let kept = |number| -> Result<Vec<Vec<bool>>> { Ok(allocator.most_important(number)?.into_values().collect()) };
        assert_eq!(kept(2)?, [[false, true], [true, false]]);
        assert_eq!(kept(1)?, [[false, false], [true, false]]);
        assert_eq!(kept(4)?, [[true, true], [true, true]]);
        Ok(())
    }

    #[test]
    fn ranks_at_the_start_are_rounded_up_and_fit_the_module() {
        let ranks = [("q", 8), ("v", 3)].map(|(name, rank)| (name.to_owned(), ModuleRank { rank, alpha: 16.0 }));
        let start = AdaLora::default().at_start(&ranks.into(), |name| if name == "q" { 10 } else { 384 });
        assert_eq!((start["q"].rank, start["v"].rank), (10, 5));
        assert!((start["q"].alpha / 10.0 - 2.0 * 10.0 / (10.0 + 1e-5)).abs() < 1e-12);
    }
}
