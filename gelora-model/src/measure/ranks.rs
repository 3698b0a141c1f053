//! The result of a measurement, and the PEFT config that it leads to.

use std::collections::BTreeMap;

use gelora_lora::AdapterConfig;
use gelora_lora::ranks::Policy;
use serde::{Deserialize, Serialize};

use super::layer::Layer;
use super::options::Pool;
use super::stability::Stability;
use super::states::State;
use super::steps::{ModuleRank, Outcome};
use super::warnings::Warning;
use crate::{AdapterTask, Granularity, Result, Transformer};

/// The ranks of every module, with everything that they came from. Serialized, this is most of ranks.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ranks {
    /// The model that was measured: [`Transformer::name`].
    pub model: String,
    /// How the tokens of an example became one point.
    pub pool: Pool,
    /// Number of examples, n.
    pub samples: usize,
    /// Type that the model's products were computed in.
    pub dtype: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Where hidden states were taken.
    pub granularity: Granularity,
    /// Number of points that growths were measured at: n, or the scale of the common plateau.
    pub scale: usize,
    /// What happened to near copies: "drop" or "keep".
    #[serde(default)]
    pub near_copies: String,
    /// How growths became ranks.
    pub policy: PolicyUsed,
    /// The hidden states, from the input up.
    pub states: Vec<State>,
    /// Growth, rank and alpha of each step from state to state.
    pub layers: Vec<Layer>,
    /// Rank and alpha of each adapted module, by its full name.
    pub modules: BTreeMap<String, ModuleRank>,
    /// Parameters of all adapters together.
    pub parameters: usize,
    /// What each policy would do.
    pub policies: Vec<Outcome>,
    /// The ranks of resamples, if [`MeasureOptions::resamples`] is above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stability: Option<Stability>,
    /// Reasons not to trust the ranks.
    pub warnings: Vec<Warning>,
}

/// The policy with everything that it used.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PolicyUsed {
    /// The policy with its settings.
    #[serde(flatten)]
    pub policy: Policy,
    /// The least rank.
    pub min_rank: usize,
    /// The greatest rank, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_rank: Option<usize>,
    /// Ranks are multiples of this.
    pub rank_multiple: usize,
    /// alpha / rank.
    pub alpha_ratio: f64,
    /// Confidence of every interval, and of the upper bound.
    pub confidence: f64,
}

impl Ranks {
    /// The PEFT config that gives the modules of `model` these ranks, for a sequence classifier.
    ///
    /// # Errors
    /// As [`adapter_config`].
    pub fn adapter_config(&self, model: &Transformer) -> Result<AdapterConfig> {
        adapter_config(model, &self.modules, AdapterTask::SequenceClassification)
    }
}

/// The PEFT config that gives the modules of `model` these ranks.
///
/// # Errors
/// If a module cannot be told from others by PEFT's patterns.
pub fn adapter_config(
    model: &Transformer,
    modules: &BTreeMap<String, ModuleRank>,
    task: AdapterTask,
) -> Result<AdapterConfig> {
    let infos = model.linear_infos();
    // In the model's order, so that the file reads from the input up.
    let wanted: Vec<(String, usize, f64)> =
        infos.iter().filter_map(|i| modules.get(&i.name).map(|m| (i.name.clone(), m.rank, m.alpha))).collect();
    let all: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    let saves_head = task == AdapterTask::SequenceClassification;
    Ok(AdapterConfig {
        task_type: Some(task.name().into()),
        base_model_name_or_path: Some(model.name().to_owned()),
        modules_to_save: saves_head.then(|| model.head_modules()),
        ..AdapterConfig::for_modules(&wanted, model.prefix(), &all)?
    })
}
