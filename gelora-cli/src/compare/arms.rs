//! The arms of a study: the ranks that each gives to the steps through the model, and what else tells it from others.
//!
//! A new arm is a variant here with its name, a sentence, and its ranks.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use gelora_kernels::random::Stream;
use gelora_lora::cut::trained_rank;
use gelora_lora::ranks::{self, Alpha, Limits, Policy, Rounding, Step, StepRank, uniform_parameters};
use gelora_model::measure::ModuleRank;
use gelora_model::needs::{self, Need};
use gelora_model::train::Init;

/// A way to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arm {
    Head,
    UniformOne,
    Uniform,
    RsLora,
    LoraPlus,
    Pissa,
    Dora,
    AdaLora,
    Eva,
    Gelora,
    GeloraUpper,
    Plateau,
    Budget,
    ShuffledBudget,
    AscendingBudget,
    Gradient,
    Signal,
    Prune,
    Random,
    Repeat,
    Leaked,
}

/// What an arm needs to know of the model's hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Growths of the dimension at all rows of the sample.
    Growths,
    /// Growths at the scale of the common plateau.
    PlateauGrowths,
    /// Directions of the gradient of every module.
    Gradient,
    /// Directions of the inputs of every module.
    Inputs,
}

/// The ranks of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Ranks {
    /// No adapters.
    None,
    /// One for each step through the model.
    Steps(Vec<StepRank>),
    /// One for each module.
    Modules(BTreeMap<String, ModuleRank>),
}

/// What all arms share.
#[derive(Clone, Debug)]
pub struct RankSettings {
    /// The uniform rank whose parameters are the budget.
    pub budget_rank: usize,
    pub rounding: Rounding,
    pub limits: Limits,
    pub alpha: Alpha,
}

impl Arm {
    pub const ALL: [Self; 21] = [
        Self::Head,
        Self::UniformOne,
        Self::Uniform,
        Self::RsLora,
        Self::LoraPlus,
        Self::Pissa,
        Self::Dora,
        Self::AdaLora,
        Self::Eva,
        Self::Gelora,
        Self::GeloraUpper,
        Self::Plateau,
        Self::Budget,
        Self::ShuffledBudget,
        Self::AscendingBudget,
        Self::Gradient,
        Self::Signal,
        Self::Prune,
        Self::Random,
        Self::Repeat,
        Self::Leaked,
    ];

    /// The name in results.jsonl and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::UniformOne => "uniform-1",
            Self::Uniform => "uniform",
            Self::RsLora => "rslora",
            Self::LoraPlus => "lora-plus",
            Self::Pissa => "pissa",
            Self::Dora => "dora",
            Self::AdaLora => "adalora",
            Self::Eva => "eva",
            Self::Gelora => "gelora",
            Self::GeloraUpper => "gelora-upper",
            Self::Plateau => "plateau",
            Self::Budget => "budget",
            Self::ShuffledBudget => "shuffled-budget",
            Self::AscendingBudget => "ascending-budget",
            Self::Gradient => "gradient",
            Self::Signal => "signal",
            Self::Prune => "prune",
            Self::Random => "random",
            Self::Repeat => "repeat",
            Self::Leaked => "leaked",
        }
    }

    /// The arm in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::Head => "No adapters: the task head is trained alone.",
            Self::UniformOne => "Rank 1 everywhere.",
            Self::Uniform => "The budget rank everywhere.",
            Self::RsLora => "The budget rank everywhere, scaled by alpha / sqrt(r).",
            Self::Pissa => "The budget rank everywhere, begun as the leading singular triplets of each weight (PiSSA).",
            Self::Dora => "The budget rank everywhere, and a trained magnitude for every output (DoRA).",
            Self::AdaLora => {
                "Begun at 1.5 times the budget rank, and the least important ranks given up to the budget (AdaLoRA)."
            }
            Self::Eva => {
                "The budget in ranks, spent on the directions that explain the most variance of the inputs, which A \
                 begins as (EVA)."
            }
            Self::LoraPlus => "The budget rank everywhere, with LoRA+: B learns 16 times as fast as A.",
            Self::Gelora => "The published rule: the growth of the dimension, rounded up, and one more.",
            Self::GeloraUpper => "The rule on the upper confidence bound of the growth.",
            Self::Plateau => {
                "The rule on growths at the scale of the common plateau, or at all rows where there is none."
            }
            Self::Budget => "The budget, spent in proportion to the rule's ranks.",
            Self::ShuffledBudget => "A control: the ranks of budget, assigned to the wrong layers.",
            Self::AscendingBudget => {
                "A control: the ranks of budget in ascending order, the greatest in the last layers."
            }
            Self::Gradient => {
                "The budget, spent in proportion to the number of gradient directions of each module that replicate."
            }
            Self::Signal => "The budget, spent on the gradient directions with the most replicated energy a parameter.",
            Self::Prune => {
                "Trained at four times the budget rank, then cut to the budget by the singular values of the updates."
            }
            Self::Random => "A control: the budget, assigned at random.",
            Self::Repeat => {
                "A control: uniform again, with another seed for adapters, head and batches. It must not differ."
            }
            Self::Leaked => "A control: uniform, trained on the scored rows too. It must be better.",
        }
    }

    /// The arms of these names.
    ///
    /// # Errors
    /// If a name is unknown or there twice, or there is only one.
    pub fn parse(names: &[String]) -> Result<Vec<Self>> {
        let mut arms = Vec::new();
        for name in names {
            let Some(arm) = Self::ALL.into_iter().find(|arm| arm.name() == name.trim()) else {
                bail!("--arms: {name:?} is not an arm; expected some of {}", Self::ALL.map(Self::name).join(", "));
            };
            if arms.contains(&arm) {
                bail!("--arms: {name} is given twice");
            }
            arms.push(arm);
        }
        match arms[..] {
            [] | [_] => bail!("--arms: {} to compare; expected at least two arms", names.join("")),
            _ => Ok(arms),
        }
    }

    pub fn needs(self) -> Needs {
        match self {
            Self::Gelora | Self::GeloraUpper | Self::Budget | Self::ShuffledBudget | Self::AscendingBudget => {
                Needs::Growths
            }
            Self::Plateau => Needs::PlateauGrowths,
            Self::Gradient | Self::Signal => Needs::Gradient,
            Self::Eva => Needs::Inputs,
            _ => Needs::Nothing,
        }
    }

    /// Whether B A is scaled by alpha / sqrt(r).
    pub fn is_rslora(self) -> bool {
        self == Self::RsLora
    }

    /// Learning rate of B as a multiple of that of A. The paper on LoRA+ recommends 16.
    pub fn lora_plus(self) -> f64 {
        if self == Self::LoraPlus { 16.0 } else { 1.0 }
    }

    /// Values of the adapters before the first step.
    pub fn init(self) -> Init {
        if self == Self::Pissa { Init::Pissa } else { Init::Lora }
    }

    /// The seed of adapters, head and batches in a run of `seed`.
    pub fn training_seed(self, seed: u64) -> u64 {
        // Far from the seeds of other runs.
        if self == Self::Repeat { seed + (1 << 32) } else { seed }
    }

    /// Whether the trained adapters are cut to the budget.
    pub fn is_cut(self) -> bool {
        self == Self::Prune
    }

    /// Rank and alpha of every step, or of every module if they were measured one by one. Before its gradients are
    /// measured, an arm that needs them has uniform ranks here, for a check of the budget.
    ///
    /// # Errors
    /// If the budget does not hold the arm's least ranks, or the budget rank is too high for the model.
    pub fn ranks(self, steps: &[Step], needs: Option<&[Need]>, settings: &RankSettings, seed: u64) -> Result<Ranks> {
        let &RankSettings { budget_rank, rounding, ref limits, alpha } = settings;
        let parameters = uniform_parameters(steps, budget_rank);
        let of_arm = || format!("--budget-rank {budget_rank}: arm {}, seed {seed}", self.name());
        let policy = match self {
            Self::Head => return Ok(Ranks::None),
            Self::Gradient | Self::Signal => match needs {
                Some(needs) => {
                    let policy = match self {
                        Self::Gradient => Policy::Gradient { parameters },
                        _ => Policy::Signal { parameters },
                    };
                    let ranks = needs::ranks(needs, &policy, limits, alpha).map_err(anyhow::Error::from);
                    return ranks.map(Ranks::Modules).with_context(of_arm);
                }
                None => Policy::Uniform { rank: budget_rank },
            },
            // A budget rank that is too high for the model is an error.
            Self::Prune => Policy::Uniform { rank: trained_rank(steps, budget_rank, limits).max(budget_rank) },
            Self::UniformOne => Policy::Uniform { rank: 1 },
            Self::Uniform
            | Self::RsLora
            | Self::LoraPlus
            | Self::Pissa
            | Self::Dora
            | Self::AdaLora
            | Self::Eva
            | Self::Repeat
            | Self::Leaked => Policy::Uniform { rank: budget_rank },
            Self::Gelora => Policy::Gelora { rounding },
            Self::Plateau => Policy::Plateau { rounding },
            Self::GeloraUpper => Policy::GeloraUpper { rounding },
            Self::Budget | Self::ShuffledBudget | Self::AscendingBudget => Policy::Budget { parameters, rounding },
            Self::Random => Policy::Random { parameters, seed },
        };
        let mut ranks = ranks::assign(steps, &policy, alpha, limits).with_context(of_arm)?;
        match self {
            Self::ShuffledBudget => shuffle(&mut ranks, steps, seed),
            Self::AscendingBudget => {
                among_equals(&mut ranks, steps, |ranks| ranks.sort_by_key(|step| step.rank));
            }
            _ => {}
        }
        Ok(Ranks::Steps(ranks))
    }
}

/// Permutes ranks by a permutation from the seed that changes at least one rank, if any does.
fn shuffle(ranks: &mut [StepRank], steps: &[Step], seed: u64) {
    let before = ranks.to_vec();
    for draw in 0..100 {
        let mut stream = Stream::at(seed, &[0x6465_616c, draw]); // "deal"
        ranks.clone_from_slice(&before);
        among_equals(ranks, steps, |ranks| stream.shuffle(ranks));
        if ranks != before {
            return;
        }
    }
}

/// Reorders ranks among steps whose ranks cost the same, so that the number of parameters stays.
fn among_equals(ranks: &mut [StepRank], steps: &[Step], mut reorder: impl FnMut(&mut [StepRank])) {
    let kinds: Vec<(usize, usize)> = steps.iter().map(|step| (step.cost, step.most)).collect();
    let mut distinct = kinds.clone();
    distinct.sort_unstable();
    distinct.dedup();
    for kind in distinct {
        let places: Vec<usize> = (0..steps.len()).filter(|step| kinds[*step] == kind).collect();
        let mut taken: Vec<StepRank> = places.iter().map(|step| ranks[*step]).collect();
        reorder(&mut taken);
        places.into_iter().zip(taken).for_each(|(step, rank)| ranks[step] = rank);
    }
}

#[cfg(test)]
mod tests {
    use gelora_lora::directions::Directions;

    use super::*;

    fn steps(deltas: &[f64]) -> Vec<Step> {
        deltas.iter().map(|&delta| Step { delta, upper: delta + 1.0, cost: 100, most: 64 }).collect()
    }

    fn settings(budget_rank: usize) -> RankSettings {
        RankSettings { budget_rank, rounding: Rounding::Ceil, limits: Limits::default(), alpha: Alpha::default() }
    }

    fn ranks(arm: Arm, steps: &[Step], budget_rank: usize, seed: u64) -> Vec<usize> {
        match arm.ranks(steps, None, &settings(budget_rank), seed).unwrap() {
            Ranks::Steps(ranks) => ranks.iter().map(|step| step.rank).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn each_arm_gives_its_ranks() {
        let steps = steps(&[1.5, -2.0, 0.0, 0.0]);
        assert!(ranks(Arm::Head, &steps, 3, 0).is_empty());
        assert_eq!(ranks(Arm::UniformOne, &steps, 3, 0), [1; 4]);
        let methods = [Arm::RsLora, Arm::LoraPlus, Arm::Pissa, Arm::Dora, Arm::AdaLora, Arm::Eva];
        for arm in methods.into_iter().chain([Arm::Uniform, Arm::Repeat, Arm::Leaked]) {
            assert_eq!(ranks(arm, &steps, 3, 0), [3; 4]);
        }
        assert_eq!(ranks(Arm::Gelora, &steps, 3, 0), [3, 1, 1, 1]);
        assert_eq!(ranks(Arm::GeloraUpper, &steps, 3, 0), [4, 1, 2, 2]);
        assert_eq!(ranks(Arm::Budget, &steps, 3, 0), [6, 2, 2, 2]);
        assert_eq!(ranks(Arm::Random, &steps, 3, 0).iter().sum::<usize>(), 12);
        assert_eq!(ranks(Arm::Prune, &steps, 3, 0), [12; 4]);
        assert_eq!(ranks(Arm::Prune, &steps, 30, 0), [64; 4], "no module has more");
        let error = Arm::Budget.ranks(&steps, None, &settings(1), 5).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("--budget-rank 1: arm budget, seed 5: ") && error.contains("budget is 400"), "{error}");
    }

    #[test]
    fn gradients_give_ranks_to_single_modules() {
        let need = |module: &str, values: &[f64], number: f64| {
            let directions = Directions { values: values.to_vec(), number, interval: [number; 2], with_noise: number };
            Need::new(module.to_owned(), directions, 50, 50)
        };
        let needs = [need("a", &[3.0, 2.9], 2.0), need("b", &[1.0], 1.0), need("c", &[], 0.0)];
        let of = |arm: Arm| match arm.ranks(&steps(&[0.0; 3]), Some(&needs), &settings(3), 0).unwrap() {
            Ranks::Modules(ranks) => ranks.values().map(|module| (module.rank, module.alpha)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        // 3 steps of rank 3 at 100 parameters, for modules of 100 a rank: 9 ranks. No direction counts as one.
        assert_eq!(of(Arm::Gradient), [(4, 8.0), (3, 6.0), (2, 4.0)]);
        assert_eq!(of(Arm::Signal), [(3, 6.0), (3, 6.0), (3, 6.0)]);
    }

    #[test]
    fn shuffled_ranks_are_the_same_numbers_in_other_places() {
        let mut steps = steps(&[1.5, -2.0, 0.0, 0.0, 0.0]);
        steps[4].cost = 300;
        let budget = ranks(Arm::Budget, &steps, 3, 0);
        for seed in 0..50 {
            let mut shuffled = ranks(Arm::ShuffledBudget, &steps, 3, seed);
            assert_ne!(shuffled, budget, "seed {seed}");
            assert_eq!(shuffled[4], budget[4], "a step of another cost keeps its rank");
            let mut budget = budget.clone();
            shuffled.sort_unstable();
            budget.sort_unstable();
            assert_eq!(shuffled, budget);
        }
        // Equal ranks have no wrong place.
        assert_eq!(ranks(Arm::ShuffledBudget, &steps[1..4], 3, 0), [3; 3]);
    }

    #[test]
    fn ascending_ranks_are_sorted_among_steps_of_one_cost() {
        let mut steps = steps(&[4.0, -2.0, 1.5, 0.0, 6.0]);
        steps[4].cost = 300;
        let (budget, ascending) = (ranks(Arm::Budget, &steps, 6, 0), ranks(Arm::AscendingBudget, &steps, 6, 0));
        let mut sorted = budget[..4].to_vec();
        sorted.sort_unstable();
        assert_ne!(sorted, budget[..4]);
        assert_eq!((&ascending[..4], ascending[4]), (&sorted[..], budget[4]));
    }

    #[test]
    fn arms_are_named() {
        let parse = |names: &[&str]| Arm::parse(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parse(&["uniform", "gelora"]).unwrap(), [Arm::Uniform, Arm::Gelora]);
        assert_eq!(parse(&Arm::ALL.map(Arm::name)).unwrap(), Arm::ALL);
        let fails = |names: &[&str], word: &str| {
            let error = parse(names).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        fails(&["uniform", "lora"], "\"lora\" is not an arm; expected some of head, uniform-1");
        fails(&["uniform", "uniform"], "twice");
        fails(&["uniform"], "at least two arms");
    }
}
