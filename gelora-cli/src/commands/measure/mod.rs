//! From texts to ranks: the pass over the model, the dimensions, the rank of every module. `rank` and `train` share it.

mod points;
mod policies;
mod stability;
mod states;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_id::Growth;
use gelora_kernels::{DType, Tensor};
use gelora_lora::ranks::{self, Policy, Server};
use gelora_lora::{AdapterConfig, files};
use gelora_model::{Granularity, Transformer};
use serde::{Deserialize, Serialize};

use super::understood::Understood;
use super::{check_not_input, open_tokenizer};
use crate::args::{GranularityArg, MeasureArgs, RankArgs, ScaleArg};
use crate::cache::Entry;
use crate::data::Dataset;
use crate::profile::mark;
use crate::tokenize::Encoded;
use crate::ui;

pub use policies::{ModuleRank, Outcome, Targets};
pub use stability::{OfSize, Stability};
pub use states::{State, constant};

/// ranks.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ranks {
    /// The model that was measured.
    pub model: String,
    /// The data it was measured on.
    pub data: String,
    /// How the tokens of an example became one point.
    pub pool: String,
    /// What was understood of that data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dataset: Option<Understood>,
    /// Number of examples.
    pub samples: usize,
    /// Type that the model's products were computed in.
    pub dtype: String,
    /// Seed of the draw of examples.
    pub seed: u64,
    /// Where hidden states were taken: "block" or "sublayer".
    pub granularity: String,
    /// The number of points that growths are of: all examples, or the scale of the common plateau.
    pub scale: usize,
    /// What became of near copies: "drop" or "keep".
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
    /// The ranks of resamples, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stability: Option<Stability>,
    /// What a server needs to be told, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// What speaks against trusting the ranks.
    pub warnings: Vec<String>,
}

/// A step from one hidden state to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// The layer, from 0.
    pub layer: usize,
    /// Its half, where the halves have steps of their own: "attention" or "mlp".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Growth of the dimension.
    pub delta: f64,
    /// Its standard error, by a jackknife over the examples.
    pub error: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// What it is below, one-sided, at the confidence of the interval.
    pub upper: f64,
    /// The rank of its modules.
    pub rank: usize,
    /// Their alpha.
    pub alpha: f64,
}

impl Layer {
    /// "layer 3", "layer 3 attention".
    pub fn name(&self) -> String {
        match &self.part {
            None => format!("layer {}", self.layer),
            Some(part) => format!("layer {} {part}", self.layer),
        }
    }
}

/// The policy with everything it used.
#[derive(Debug, Serialize, Deserialize)]
pub struct PolicyUsed {
    #[serde(flatten)]
    pub policy: Policy,
    pub min_rank: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_rank: Option<usize>,
    pub rank_multiple: usize,
    pub alpha_ratio: f64,
    /// The confidence of every interval, and of the upper bound.
    pub confidence: f64,
}

/// What to start a server with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Serve {
    pub server: String,
    pub max_lora_rank: usize,
}

/// The whole measurement; also writes the points if they are asked for.
pub fn ranks(args: &RankArgs, encoder: &Transformer, dataset: &Dataset) -> Result<Ranks> {
    let config = encoder.config();
    let (quiet, granularity) = (args.output.quiet, args.measure.granularity.into());
    let infos = encoder.linear_infos();
    let targets = Targets::new(&infos, config.layers, granularity, &args.targets)?;
    // What can be wrong with the options is said before the model runs.
    let limits = policies::limits(&args.measure);
    ranks::assign(&targets.flat(), &policies::chosen(args, &targets.flat())?, args.targets.alpha_ratio, &limits)?;
    if let Some(path) = &args.points {
        check_not_input(path, "--points", &[&args.model.path, &dataset.path])?;
    }
    let tokenizer = open_tokenizer(&args.model.path, args.data.max_length, config)?;
    mark("tokenizer loaded");
    let rows = points::sample(dataset.examples.len(), args.measure.samples, args.seed);
    if rows.len() < 3 {
        bail!("{}: {} rows; two nearest neighbours need at least 3", dataset.path.display(), rows.len());
    }
    let examples = || rows.iter().map(|&i| &dataset.examples[i]);
    let encoded = tokenizer.encode_all(examples()).with_context(|| {
        tokenizer.first_bad(examples()).map_or_else(|| dataset.path.display().to_string(), |i| dataset.place(rows[i]))
    })?;
    mark("tokenised");
    let points = pooled(args, encoder, &encoded)?;
    mark("hidden states");
    if let Some(path) = &args.points {
        files::write_tensors(path, points.iter().enumerate().map(|(l, t)| (format!("layer_{l}"), t)))?;
    }
    let points = points::to_device(points, encoder.device())?;
    let MeasureArgs { estimator, confidence, near_copies, .. } = args.measure;
    let how = states::How { estimator, confidence, near_copies, seed: args.seed };
    let names = points::state_names(config.layers, granularity);
    let states::Measured { states, summaries, near_copies } = states::states(&points, names, &how, quiet)?;
    let curves: Vec<_> = states.iter().map(|s| s.decimation.clone()).collect();
    let of_plateaus = gelora_id::scale::common(&curves);
    let scale = match args.scale {
        ScaleArg::All => rows.len(),
        ScaleArg::Plateau => of_plateaus
            .context("--scale plateau: the dimension of no state has a plateau; --scale all takes all examples")?,
    };
    let at = |scale: usize| match scale < rows.len() {
        true => states::at_scale(&points, &near_copies, scale, &how),
        false => Ok(summaries.clone()),
    };
    let summaries_at_scale = at(scale)?;
    mark("dimensions");

    let growths = states::growths(&summaries_at_scale, confidence);
    let steps = targets.steps(&growths);
    let policy = policies::chosen(args, &steps)?;
    let given = ranks::assign(&steps, &policy, args.targets.alpha_ratio, &limits)?;
    let layers: Vec<Layer> = given
        .iter()
        .zip(&growths)
        .enumerate()
        .map(|(s, (given, growth))| layer(s, granularity, given, growth))
        .collect();
    let of_steps: Vec<usize> = layers.iter().map(|l| l.rank).collect();
    let step_names: Vec<String> = layers.iter().map(Layer::name).collect();
    let stability = (args.stability > 0).then(|| {
        let (points, targets, policy, seed) = (&points[..], &targets, &policy, args.seed);
        let near_copies = &near_copies[..];
        let repeat =
            stability::Repeat { points, near_copies, targets, policy, limits, estimator, confidence, seed, quiet };
        // The scale that the ranks are not of: that of the plateaus, or all examples.
        let other = if scale < rows.len() { Some(rows.len()) } else { of_plateaus.filter(|s| *s < rows.len()) };
        let other = other.map(|scale| anyhow::Ok((scale, at(scale)?))).transpose()?;
        repeat.run(
            args.stability,
            &stability::Given { ranks: &of_steps, names: &step_names, states: &states, scale, other },
        )
    });
    let stability = stability.transpose()?;
    mark("stability");
    let serve = |server: Server| -> Result<Serve> {
        let max_lora_rank = ranks::max_lora_rank(server, of_steps.iter().copied()).context("--serve")?;
        Ok(Serve { server: server.to_string(), max_lora_rank })
    };
    Ok(Ranks {
        model: args.model.name.display().to_string(),
        data: dataset.path.display().to_string(),
        dataset: None,
        pool: format!("{:?}", args.measure.pool).to_lowercase(),
        samples: rows.len(),
        dtype: DType::from(args.compute.dtype).to_string(),
        seed: args.seed,
        granularity: format!("{granularity:?}").to_lowercase(),
        scale,
        warnings: words::warnings(&words::Facts {
            states: &states,
            layers: &layers,
            policy: &policy,
            stability: stability.as_ref(),
            model: args.model.name.display().to_string(),
            samples: rows.len(),
            examples: dataset.examples.len(),
            near_copies: args.measure.near_copies,
        }),
        near_copies: args.measure.near_copies.to_string(),
        policies: policies::compare(&steps, &policy, args),
        parameters: ranks::parameters(&steps, of_steps.iter().copied()),
        policy: PolicyUsed {
            policy,
            min_rank: args.measure.min_rank,
            max_rank: args.measure.max_rank,
            rank_multiple: args.measure.rank_multiple,
            alpha_ratio: args.targets.alpha_ratio,
            confidence,
        },
        states,
        layers,
        modules: targets.of_modules(&given),
        stability,
        serve: args.serve.map(serve).transpose()?,
    })
}

/// The pooled points, out of the cache if they are there.
fn pooled(args: &RankArgs, encoder: &Transformer, encoded: &[Encoded]) -> Result<Vec<Tensor>> {
    let MeasureArgs { pool, granularity, .. } = args.measure;
    let (granularity, quiet) = (granularity.into(), args.output.quiet);
    let passes = points::Passes { pool, granularity, batch_size: args.batch_size, seed: args.seed, quiet };
    if args.no_cache {
        return points::points(encoder, encoded, passes);
    }
    // The seed counts where a token is drawn with it, and there the batches are drawn from in their order.
    let drawn = (pool == crate::args::PoolArg::Token).then_some((args.seed, args.batch_size));
    let device = encoder.device().kind();
    let settings = format!("{pool:?} {granularity:?} {drawn:?} {} {device:?}", DType::from(args.compute.dtype));
    let entry = Entry::of(&args.model.path, encoded, &settings)?;
    let states = points::state_names(encoder.config().layers, granularity).len();
    if let Some(points) = entry.as_ref().and_then(|entry| entry.read(states)) {
        ui::note(quiet, "hidden states: as measured before (--no-cache runs the model again)");
        return Ok(points);
    }
    let points = points::points(encoder, encoded, passes)?;
    if let Some(Err(problem)) = entry.map(|entry| entry.write(&points)) {
        ui::note(quiet, format!("the points could not be kept for another run: {problem:#}"));
    }
    Ok(points)
}

fn layer(step: usize, granularity: Granularity, given: &ranks::StepRank, growth: &Growth) -> Layer {
    let halves = granularity.steps_per_block();
    let part = (halves > 1).then(|| if step.is_multiple_of(2) { "attention" } else { "mlp" }.to_owned());
    let &Growth { delta, error, interval, upper } = growth;
    Layer { layer: step / halves, part, delta, error, interval, upper, rank: given.rank, alpha: given.alpha }
}

impl From<GranularityArg> for Granularity {
    fn from(g: GranularityArg) -> Self {
        match g {
            GranularityArg::Block => Granularity::Block,
            GranularityArg::Sublayer => Granularity::Sublayer,
        }
    }
}

/// The PEFT config that gives the modules these ranks.
pub fn peft_config(
    encoder: &Transformer,
    model: &Path,
    modules: &BTreeMap<String, ModuleRank>,
) -> Result<AdapterConfig> {
    let infos = encoder.linear_infos();
    // In the model's order, so that the file reads from the input up.
    let wanted: Vec<(String, usize, f64)> =
        infos.iter().filter_map(|i| modules.get(&i.name).map(|m| (i.name.clone(), m.rank, m.alpha))).collect();
    let all: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    Ok(AdapterConfig {
        task_type: Some("SEQ_CLS".into()),
        base_model_name_or_path: Some(model.display().to_string()),
        modules_to_save: Some(encoder.head_modules()),
        ..AdapterConfig::for_modules(&wanted, encoder.prefix(), &all)?
    })
}
