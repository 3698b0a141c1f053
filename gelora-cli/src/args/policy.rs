//! Converts the flags of a measurement to its options.

use anyhow::{Context, Result, bail};
use gelora_lora::ranks::Limits;
use gelora_model::measure::{Budget, Cache, PolicyChoice, Pool, Scale};
use gelora_model::{Granularity, MeasureOptions};

use super::{GranularityArg, MeasureArgs, PolicyArg, PolicyArgs, PoolArg, RankArgs, ScaleArg, TargetArgs};
use crate::cache;

impl From<PoolArg> for Pool {
    fn from(pool: PoolArg) -> Self {
        match pool {
            PoolArg::Mean => Pool::Mean,
            PoolArg::Last => Pool::Last,
            PoolArg::First => Pool::First,
            PoolArg::Token => Pool::Token,
        }
    }
}

impl From<GranularityArg> for Granularity {
    fn from(granularity: GranularityArg) -> Self {
        match granularity {
            GranularityArg::Block => Granularity::Block,
            GranularityArg::Sublayer => Granularity::Sublayer,
        }
    }
}

impl From<ScaleArg> for Scale {
    fn from(scale: ScaleArg) -> Self {
        match scale {
            ScaleArg::All => Scale::All,
            ScaleArg::Plateau => Scale::Plateau,
        }
    }
}

/// Returns the measurement options from the flags that `rank` and `train` share.
pub fn measure_options(measure: &MeasureArgs, targets: &TargetArgs, batch_size: usize, seed: u64) -> MeasureOptions {
    let max = measure.max_rank.unwrap_or(usize::MAX);
    MeasureOptions {
        pool: measure.pool.into(),
        granularity: measure.granularity.into(),
        estimator: measure.estimator,
        confidence: measure.confidence,
        near_copies: measure.near_copies,
        target_modules: targets.target_modules.clone(),
        rounding: measure.rounding.into(),
        limits: Limits { min: measure.min_rank, max, multiple: measure.rank_multiple },
        alpha: targets.alpha(),
        batch_size,
        seed,
        cache: cache::folder().map(Cache::new),
        ..MeasureOptions::default()
    }
}

impl RankArgs {
    /// Returns the policy.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other.
    pub fn choice(&self) -> Result<PolicyChoice> {
        let choice = self.policy.choice(self.rank)?;
        if self.stability > 0 && choice.ranks_modules() {
            bail!(
                "--stability {}: repeats the measurement of dimensions, which the ranks of --policy {} do not follow; \
                 leave it out",
                self.stability,
                self.policy.policy.map_or(String::new(), PolicyArg::name)
            );
        }
        Ok(choice)
    }

    /// Returns the options of the measurement.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other.
    pub fn options(&self) -> Result<MeasureOptions> {
        let options = measure_options(&self.measure, &self.targets, self.batch_size, self.seed);
        Ok(MeasureOptions {
            scale: self.policy.scale(),
            policy: self.choice()?,
            resamples: self.stability,
            cache: options.cache.clone().filter(|_| !self.no_cache),
            ..options
        })
    }
}

impl PolicyArgs {
    /// Returns the number of points that growths are measured at.
    pub fn scale(&self) -> Scale {
        self.scale.map_or_else(Scale::default, Scale::from)
    }

    /// Returns the policy; `rank` is that of the policy uniform.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other.
    pub fn choice(&self, rank: Option<usize>) -> Result<PolicyChoice> {
        let budget = match (self.budget, self.budget_rank) {
            (Some(parameters), _) => Some(Budget::Parameters(parameters)),
            (None, rank) => rank.map(Budget::UniformRank),
        };
        let policy = self.policy.unwrap_or(match (rank, budget) {
            (Some(_), None) => PolicyArg::Uniform,
            (None, Some(_)) => PolicyArg::Budget,
            _ => PolicyArg::Gelora,
        });
        if rank.is_some() && policy != PolicyArg::Uniform {
            bail!("--rank is the rank of --policy uniform; expected only one of the two");
        }
        let takes_budget = match policy {
            PolicyArg::Budget
            | PolicyArg::Random
            | PolicyArg::Gradient
            | PolicyArg::Signal
            | PolicyArg::Eva
            | PolicyArg::Prune => true,
            PolicyArg::Gelora
            | PolicyArg::GeloraUpper
            | PolicyArg::Plateau
            | PolicyArg::Uniform
            | PolicyArg::Shuffled => false,
        };
        if budget.is_some() && !takes_budget {
            bail!("--budget and --budget-rank are for --policy budget, random, gradient, signal, eva and prune");
        }
        if policy == PolicyArg::Plateau && self.scale == Some(ScaleArg::All) {
            bail!("--policy plateau measures growths at the scale of the plateau; expected no --scale all");
        }
        let needed = || {
            budget.with_context(|| format!("--policy {} needs --budget PARAMETERS or --budget-rank R", policy.name()))
        };
        Ok(match policy {
            PolicyArg::Gelora => PolicyChoice::Gelora,
            PolicyArg::GeloraUpper => PolicyChoice::GeloraUpper,
            PolicyArg::Plateau => PolicyChoice::Plateau,
            PolicyArg::Budget => PolicyChoice::Budget(needed()?),
            PolicyArg::Uniform => PolicyChoice::Uniform(rank.context("--policy uniform needs --rank R")?),
            PolicyArg::Random => PolicyChoice::Random(budget),
            PolicyArg::Shuffled => PolicyChoice::Shuffled,
            PolicyArg::Gradient => PolicyChoice::Gradient(needed()?),
            PolicyArg::Signal => PolicyChoice::Signal(needed()?),
            PolicyArg::Eva => PolicyChoice::Eva(needed()?),
            PolicyArg::Prune => PolicyChoice::Prune(needed()?),
        })
    }
}
