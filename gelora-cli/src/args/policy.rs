//! Converts the flags of a measurement to its options.

use anyhow::{Result, bail};
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
    /// Returns the options of the measurement.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other.
    pub fn options(&self) -> Result<MeasureOptions> {
        let options = measure_options(&self.measure, &self.targets, self.batch_size, self.seed);
        Ok(MeasureOptions {
            scale: self.policy.scale.into(),
            policy: self.policy.choice(self.rank)?,
            resamples: self.stability,
            cache: options.cache.clone().filter(|_| !self.no_cache),
            ..options
        })
    }
}

impl PolicyArgs {
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
        if budget.is_some() && !matches!(policy, PolicyArg::Budget | PolicyArg::Random) {
            bail!("--budget and --budget-rank are for --policy budget and random");
        }
        Ok(match (policy, budget) {
            (PolicyArg::Gelora, _) => PolicyChoice::Gelora,
            (PolicyArg::GeloraUpper, _) => PolicyChoice::GeloraUpper,
            (PolicyArg::Budget, Some(budget)) => PolicyChoice::Budget(budget),
            (PolicyArg::Budget, None) => bail!("--policy budget needs --budget PARAMETERS or --budget-rank R"),
            (PolicyArg::Uniform, _) => match rank {
                Some(rank) => PolicyChoice::Uniform(rank),
                None => bail!("--policy uniform needs --rank R"),
            },
            (PolicyArg::Random, budget) => PolicyChoice::Random(budget),
            (PolicyArg::Shuffled, _) => PolicyChoice::Shuffled,
        })
    }
}
