//! The result of a measurement, and the PEFT config made from it.

use std::collections::BTreeMap;

use gelora_lora::AdapterConfig;
use gelora_lora::ranks::Policy;
use serde::{Deserialize, Serialize};

use super::layer::Layer;
use super::modules::MeasuredModule;
use super::options::Pool;
use super::stability::Stability;
use super::states::State;
use super::steps::{ModuleRank, PolicyOutcome};
use super::warnings::Warning;
use crate::{AdapterTask, Granularity, Result, Transformer};

/// The rank of every module, with the measurements behind it. Serialized, this is most of ranks.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ranks {
    /// Name of the measured model: [`Transformer::name`].
    pub model: String,
    /// How the hidden states of an example's tokens became one point.
    pub pool: Pool,
    /// Number of examples, n.
    pub samples: usize,
    /// Type in which products with frozen weights were computed.
    pub dtype: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// Points of the network at which hidden states were taken.
    pub granularity: Granularity,
    /// Number of points at which growths were measured: n, or the scale of the common plateau.
    pub scale: usize,
    /// Treatment of near copies: "drop" or "keep".
    #[serde(default)]
    pub near_copies: String,
    /// Policy that gave the ranks.
    pub policy: PolicyUsed,
    /// The hidden states, in order from the input to the output.
    pub states: Vec<State>,
    /// Growth, rank and alpha of each step from one state to the next.
    pub layers: Vec<Layer>,
    /// Rank and alpha of each adapted module, by its full name, with what was measured of it.
    pub modules: BTreeMap<String, MeasuredModule>,
    /// Number of parameters of all adapters together.
    pub parameters: usize,
    /// Ranks that each policy would assign.
    pub policies: Vec<PolicyOutcome>,
    /// Ranks of resamples, if [`MeasureOptions::resamples`](super::MeasureOptions::resamples) is above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stability: Option<Stability>,
    /// Reasons not to trust the ranks.
    pub warnings: Vec<Warning>,
}

/// A policy with all settings that affect the ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PolicyUsed {
    /// The policy with its settings.
    #[serde(flatten)]
    pub policy: Policy,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_rank: Option<usize>,
    /// All ranks are multiples of this number.
    pub rank_multiple: usize,
    /// Ratio of alpha to rank, if it is the same everywhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub alpha_ratio: Option<f64>,
    /// Alpha, if it is the same everywhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub alpha: Option<f64>,
    /// Confidence level of all intervals and of the upper bound.
    pub confidence: f64,
}

impl Ranks {
    /// Returns the PEFT config of a sequence classifier that gives the modules of `model` these ranks.
    ///
    /// # Errors
    /// Returns the errors of [`adapter_config`].
    pub fn adapter_config(&self, model: &Transformer) -> Result<AdapterConfig> {
        adapter_config(model, &self.module_ranks(), AdapterTask::SequenceClassification)
    }

    /// Returns rank and alpha of each adapted module, by its full name.
    pub fn module_ranks(&self) -> BTreeMap<String, ModuleRank> {
        self.modules.iter().map(|(name, module)| (name.clone(), module.rank.clone())).collect()
    }
}

/// Returns the PEFT config that gives the modules of `model` these ranks.
///
/// # Errors
/// Returns an error if PEFT's patterns cannot tell a module from the others.
pub fn adapter_config(
    model: &Transformer,
    modules: &BTreeMap<String, ModuleRank>,
    task: AdapterTask,
) -> Result<AdapterConfig> {
    let infos = model.linear_infos();
    // The order of the model, so that the file lists modules from the input to the output.
    let adapted: Vec<(String, usize, f64)> =
        infos.iter().filter_map(|i| modules.get(&i.name).map(|m| (i.name.clone(), m.rank, m.alpha))).collect();
    let all: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    let saves_head = task == AdapterTask::SequenceClassification;
    Ok(AdapterConfig {
        task_type: Some(task.name().into()),
        base_model_name_or_path: Some(model.name().to_owned()),
        modules_to_save: saves_head.then(|| model.head_modules()),
        ..AdapterConfig::for_modules(&adapted, model.prefix(), &all)?
    })
}
