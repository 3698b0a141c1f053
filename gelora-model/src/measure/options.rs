//! Options of a measurement.

use std::fmt;

use gelora_id::{Estimator, NearCopies};
use gelora_lora::ranks::spectra::greedy;
use gelora_lora::ranks::{self, Alpha, Limits, Policy, Rounding};
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::policy::{Assignment, PolicyChoice};
use super::states::Estimation;
use super::steps::TargetModules;
use crate::distributed::Processes;
use crate::{Error, Granularity, Result, Transformer};

/// How the hidden states of an example's tokens become one point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Pool {
    /// The mean over all tokens.
    #[default]
    Mean,
    /// The last token.
    Last,
    /// The first token (`[CLS]` in BERT).
    First,
    /// One token of each example, drawn at random from the seed.
    Token,
}

impl Pool {
    /// Name in ranks.json and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Last => "last",
            Self::First => "first",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The number of points at which growths are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scale {
    /// All examples.
    #[default]
    All,
    /// The finest scale that lies in the plateau of most states. Dimensions are averaged over draws of that many
    /// points.
    Plateau,
}

/// Options of [`measure`](super::measure).
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// How the hidden states of an example's tokens become one point.
    pub pool: Pool,
    /// Points of the network at which hidden states are taken.
    pub granularity: Granularity,
    /// Estimator of the intrinsic dimension.
    pub estimator: Estimator,
    /// Confidence level of the intervals, strictly between 0 and 1.
    pub confidence: f64,
    /// What to do with examples that are almost identical to another example.
    pub near_copies: NearCopies,
    /// The number of points at which growths are measured.
    pub scale: Scale,
    /// Modules to adapt, given by ends of their names or as "all-linear". If empty, the four projections of attention.
    pub target_modules: Vec<String>,
    /// Policy that turns growths, or what was measured of single modules, into ranks.
    pub policy: PolicyChoice,
    /// Rounding of the growths.
    pub rounding: Rounding,
    /// Smallest and largest rank.
    pub limits: Limits,
    /// How alpha follows from the rank of a module.
    pub alpha: Alpha,
    /// Number of random halves, and of random quarters, of the examples on which ranks are measured again. 0 for none.
    pub resamples: usize,
    /// Number of examples in one forward pass.
    pub batch_size: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// Where pooled hidden states are stored between runs. If None, every run computes them again.
    pub cache: Option<Cache>,
    /// The processes that share the forward pass. The result does not depend on their number.
    pub processes: Processes,
}

impl Default for MeasureOptions {
    fn default() -> Self {
        Self {
            pool: Pool::default(),
            granularity: Granularity::default(),
            estimator: Estimator::default(),
            confidence: 0.95,
            near_copies: NearCopies::Drop,
            scale: Scale::default(),
            target_modules: Vec::new(),
            policy: PolicyChoice::default(),
            rounding: Rounding::Ceil,
            limits: Limits::default(),
            alpha: Alpha::default(),
            resamples: 0,
            batch_size: 32,
            seed: 0,
            cache: None,
            processes: Processes::default(),
        }
    }
}

impl MeasureOptions {
    /// Returns an error if the options are invalid for this model. It is called before the model runs.
    pub(super) fn check(&self, model: &Transformer) -> Result<()> {
        if self.batch_size == 0 {
            return Err(Error::Value("batch_size is 0; expected at least 1".into()));
        }
        let infos = model.linear_infos();
        let targets = TargetModules::new(&infos, model.config().layers, self.granularity, &self.target_modules)?;
        // Every policy needs the fewest parameters if no dimension grows. If the budget is too small then, it always
        // is.
        let steps = targets.steps_without_growth();
        match self.policy.resolve(&steps, &self.assignment())? {
            Policy::Gradient { parameters }
            | Policy::Signal { parameters }
            | Policy::Eva { parameters, .. }
            | Policy::Prune { parameters, .. } => {
                if self.resamples > 0 {
                    let problem = "resamples are for policies that follow the dimension; expected resamples 0";
                    return Err(Error::Value(problem.into()));
                }
                greedy(&targets.spectra(), parameters, &self.limits)?;
                // A check of alpha.
                ranks::assign(&steps, &Policy::default(), self.alpha, &self.limits)?;
            }
            policy => {
                ranks::assign(&steps, &policy, self.alpha, &self.limits)?;
            }
        }
        Ok(())
    }

    /// Returns the policy with its budget in parameters, after a check of the options for this model. Budgets do not
    /// depend on growths.
    pub(crate) fn checked_policy(&self, model: &Transformer) -> Result<Policy> {
        self.check(model)?;
        let infos = model.linear_infos();
        let targets = TargetModules::new(&infos, model.config().layers, self.granularity, &self.target_modules)?;
        self.policy.resolve(&targets.steps_without_growth(), &self.assignment())
    }

    pub(super) fn assignment(&self) -> Assignment {
        Assignment { rounding: self.rounding, limits: self.limits, seed: self.seed }
    }

    pub(super) fn estimation(&self) -> Estimation {
        let &Self { estimator, confidence, near_copies, seed, .. } = self;
        Estimation { estimator, confidence, near_copies, seed }
    }
}
