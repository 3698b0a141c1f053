//! From texts to ranks: the pass over the model, the dimensions, the rank of every module. `rank` and `train` share it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_id::{Estimate, Estimator, Neighbourhood, Options};
use gelora_kernels::ops::pool;
use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::AdapterConfig;
use gelora_lora::ranks::{self, LayerRank, Limits, Policy};
use gelora_model::{Batch, Encoder, LinearInfo};
use serde::{Deserialize, Serialize};

use crate::args::{MeasureArgs, PoolArg, TargetArgs};
use crate::tokenize::Encoded;
use crate::ui::Progress;

/// ranks.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ranks {
    /// The model that was measured.
    pub model: String,
    /// The data it was measured on.
    pub data: String,
    /// How the tokens of an example became one point.
    pub pool: String,
    /// Number of examples.
    pub samples: usize,
    /// Type that the model's products were computed in.
    #[serde(default = "f32_name")]
    pub dtype: String,
    /// Seed of the draw of examples.
    pub seed: u64,
    /// How dimensions became ranks.
    pub policy: PolicyUsed,
    /// The intrinsic dimension of each of the L + 1 hidden states.
    pub states: Vec<Estimate>,
    /// Growth, rank and alpha of each layer.
    pub layers: Vec<LayerRank>,
    /// Rank and alpha of each adapted module, by its full name.
    pub modules: BTreeMap<String, ModuleRank>,
    /// Parameters of all adapters together.
    pub parameters: usize,
}

/// Files from before there was a choice.
fn f32_name() -> String {
    DType::F32.to_string()
}

/// The policy with everything it used.
#[derive(Debug, Serialize, Deserialize)]
pub struct PolicyUsed {
    #[serde(flatten)]
    pub policy: Policy,
    #[serde(flatten)]
    pub limits: LimitsUsed,
    pub alpha_ratio: f64,
}

/// The limits by the names of their options.
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitsUsed {
    pub min_rank: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_rank: Option<usize>,
}

/// Rank and alpha of one module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleRank {
    pub rank: usize,
    pub alpha: f64,
}

/// Indices of the examples to measure on, ascending: all, or `samples` of them drawn from the seed.
pub fn sample(n: usize, samples: usize, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    if samples < n {
        Stream::at(seed, &[0x7361_6d70]).shuffle(&mut rows); // "samp"
        rows.truncate(samples);
        rows.sort_unstable();
    }
    rows
}

/// One point for each example and hidden state: L + 1 tensors (n, D).
pub fn points(
    encoder: &Encoder,
    examples: &[&Encoded],
    pool: PoolArg,
    batch_size: usize,
    seed: u64,
    quiet: bool,
) -> Result<Vec<Tensor>> {
    let d = encoder.config().hidden;
    let mut states: Vec<Vec<f32>> = vec![Vec::with_capacity(examples.len() * d); encoder.config().layers + 1];
    let mut stream = Stream::at(seed, &[0x746f_6b65]); // "toke"
    let progress = Progress::new(quiet, "hidden states", examples.len() as u64);
    for chunk in examples.chunks(batch_size) {
        let batch = super::batch(chunk.iter().copied())?;
        let rows = chosen_rows(&batch, pool, &mut stream);
        let mut pooled = Vec::new();
        encoder.hidden_states(&batch, |_, tokens| {
            pooled.push(match &rows {
                None => pool::mean(tokens, batch.sequences())?,
                Some(rows) => pool::rows(tokens, rows)?,
            });
            Ok(())
        })?;
        // Read when the whole pass is on its way, so that a GPU is waited for once.
        for (state, points) in states.iter_mut().zip(&pooled) {
            state.extend(points.to_vec()?);
        }
        progress.inc(chunk.len() as u64);
    }
    progress.finish();
    states.into_iter().map(|s| Ok(Tensor::from_vec(s, [examples.len(), d])?)).collect()
}

/// The row of each sequence that stands for it, or None for the mean of all.
fn chosen_rows(batch: &Batch, pool: PoolArg, stream: &mut Stream) -> Option<Vec<usize>> {
    let ranges = batch.sequences().ranges();
    match pool {
        PoolArg::Mean => None,
        PoolArg::First => Some(ranges.map(|r| r.start).collect()),
        PoolArg::Last => Some(ranges.map(|r| r.end - 1).collect()),
        PoolArg::Token => Some(ranges.map(|r| r.start + stream.below(r.len())).collect()),
    }
}

/// The intrinsic dimension of each state. A state that is one and the same point for every example (the first token before
/// block 0) has none; it is given as 0, that of a single point.
pub fn dimensions(points: &[Tensor], device: &Device, args: &MeasureArgs, quiet: bool) -> Result<Vec<Estimate>> {
    let options = Options { estimator: args.estimator, confidence: args.confidence };
    let progress = Progress::new(quiet, "intrinsic dimension", points.len() as u64);
    let mut estimates = Vec::new();
    for (l, state) in points.iter().enumerate() {
        let found = match Neighbourhood::of(&state.to_device(device)?).and_then(|n| n.estimate(&options)) {
            Err(gelora_id::Error::Identical { points, .. }) if l == 0 => {
                constant(args.estimator, args.confidence, points)
            }
            other => other.with_context(|| format!("hidden state {l}"))?,
        };
        estimates.push(found);
        progress.inc(1);
    }
    progress.finish();
    Ok(estimates)
}

/// What is said of a cloud that is one and the same point: the dimension 0 of a single point.
pub fn constant(estimator: Estimator, confidence: f64, points: usize) -> Estimate {
    let (estimator, interval) = (estimator.to_string(), [0.0, 0.0]);
    Estimate { estimator, id: 0.0, interval, confidence, n: 1, duplicates: points - 1 }
}

/// The modules that --target-modules means, with their layers.
pub fn targets<'a>(infos: &'a [LinearInfo], args: &TargetArgs) -> Result<Vec<(&'a LinearInfo, usize)>> {
    let wanted = &args.target_modules;
    let all = wanted.iter().any(|t| t == "all-linear");
    let is_target = |info: &LinearInfo| {
        if wanted.is_empty() { info.attention } else { all || wanted.iter().any(|t| names(t, &info.name)) }
    };
    if let Some(unknown) = wanted.iter().find(|t| *t != "all-linear" && !infos.iter().any(|i| names(t, &i.name))) {
        let known: Vec<&str> = infos.iter().filter(|i| i.layer == Some(0)).map(|i| i.name.as_str()).collect();
        bail!(
            "--target-modules: no linear module is called {unknown}; those of the first layer are {}",
            known.join(", ")
        );
    }
    Ok(infos.iter().filter(|i| is_target(i)).filter_map(|i| Some((i, i.layer?))).collect())
}

fn names(target: &str, module: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// The limits that the options mean.
pub fn limits(args: &MeasureArgs) -> Limits {
    Limits { min: args.min_rank, max: args.max_rank.unwrap_or(usize::MAX) }
}

/// Ranks of layers and modules from the dimensions.
pub fn assign(
    encoder: &Encoder,
    ids: &[Estimate],
    policy: &Policy,
    measure: &MeasureArgs,
    target: &TargetArgs,
) -> Result<(Vec<LayerRank>, BTreeMap<String, ModuleRank>, usize)> {
    let dimensions: Vec<f64> = ids.iter().map(|e| e.id).collect();
    let layers = ranks::assign(&dimensions, policy, target.alpha_ratio, limits(measure))?;
    let infos = encoder.linear_infos();
    let (mut modules, mut parameters) = (BTreeMap::new(), 0);
    for (info, layer) in targets(&infos, target)? {
        let LayerRank { rank, alpha, .. } = layers[layer];
        ranks::check_rank(&info.name, rank, info.c_in, info.c_out)?;
        parameters += rank * (info.c_in + info.c_out);
        modules.insert(info.name.clone(), ModuleRank { rank, alpha });
    }
    Ok((layers, modules, parameters))
}

/// The PEFT config that gives the modules these ranks.
pub fn peft_config(encoder: &Encoder, model: &Path, modules: &BTreeMap<String, ModuleRank>) -> Result<AdapterConfig> {
    let infos = encoder.linear_infos();
    // In the model's order, so that the file reads from the input up.
    let wanted: Vec<(String, usize, f64)> =
        infos.iter().filter_map(|i| modules.get(&i.name).map(|m| (i.name.clone(), m.rank, m.alpha))).collect();
    let all: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    Ok(AdapterConfig {
        task_type: Some("SEQ_CLS".into()),
        base_model_name_or_path: Some(model.display().to_string()),
        modules_to_save: Some(vec!["classifier".into(), "score".into()]),
        ..AdapterConfig::for_modules(&wanted, encoder.prefix(), &all)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_sorted_subset_that_depends_on_the_seed() {
        assert_eq!(sample(5, 9, 1), [0, 1, 2, 3, 4]);
        let s = sample(1000, 100, 1);
        assert!(s.len() == 100 && s.windows(2).all(|w| w[0] < w[1]) && s[99] < 1000);
        assert_eq!(s, sample(1000, 100, 1));
        assert_ne!(s, sample(1000, 100, 2));
    }

    #[test]
    fn a_target_is_an_end_of_a_name_from_a_dot_on() {
        assert!(names("query", "encoder.layer.1.attention.self.query"));
        assert!(names("attention.output.dense", "encoder.layer.1.attention.output.dense"));
        assert!(!names("output.dense", "encoder.layer.1.attention.soutput.dense"));
        assert!(!names("uery", "encoder.query"));
    }
}
