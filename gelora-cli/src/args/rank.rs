//! Options of `gelora rank`, and the measurement options that `gelora train` shares with it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gelora_id::{Estimator, NearCopies};
use gelora_lora::ranks::{Alpha, Rounding, Server};

use super::parse::{at_least_one, at_least_three, inside_unit, positive};
use super::{ComputeArgs, DataArgs, ModelArgs, OutputArgs, ProfileArgs};

/// How the tokens of an example are pooled to one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PoolArg {
    /// The mean over all tokens
    Mean,
    /// The last token
    Last,
    /// The first token ([CLS] in BERT)
    First,
    /// One token of each example, drawn at random from the seed
    Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// The published rule: max(round(growth), 0) + 1
    Gelora,
    /// The rule on the upper confidence bound of the growth
    GeloraUpper,
    /// The rule on growths at the scale of the common plateau, as gelora with --scale plateau
    Plateau,
    /// Spend a budget (--budget or --budget-rank) in proportion to the published rule's ranks, never below them
    Budget,
    /// The same rank everywhere (--rank)
    #[value(alias = "fixed")]
    Uniform,
    /// A control: assign the same number of parameters, or --budget, at random
    Random,
    /// A control: assign the published rule's ranks to the wrong layers
    Shuffled,
    /// Spend a budget over single modules, in proportion to the directions of their gradients that replicate. Needs
    /// labels or a language model, and one to four forward and backward passes over the examples; a head is trained
    /// alone first
    Gradient,
    /// Spend a budget over single modules, on the directions with the most replicated energy a parameter; needs what
    /// gradient needs
    Signal,
    /// Spend a budget over single modules, on the directions that explain the most variance of their inputs, at most
    /// twice the budget's rank for each; needs no labels. train --init eva also begins with these directions
    Eva,
    /// Spend a budget over single modules: train four times its rank for three epochs on the examples, and keep the
    /// ranks that a cut by the singular values leaves. Costs that training; needs labels or a language model
    Prune,
}

impl PolicyArg {
    /// Returns the name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// Number of points that growths are measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScaleArg {
    /// All examples
    All,
    /// The finest scale that lies in the plateau of most states, averaged over random draws
    Plateau,
}

/// Positions in the model where hidden states are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GranularityArg {
    /// Before the first block and after each
    Block,
    /// Also between attention and MLP, so that each gets a separate rank
    Sublayer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoundingArg {
    Ceil,
    Nearest,
    Floor,
}

impl From<RoundingArg> for Rounding {
    fn from(r: RoundingArg) -> Self {
        match r {
            RoundingArg::Ceil => Rounding::Ceil,
            RoundingArg::Nearest => Rounding::Nearest,
            RoundingArg::Floor => Rounding::Floor,
        }
    }
}

/// Options of the measurement, shared by `rank` and by `train` when it measures the ranks.
#[derive(Clone, Debug, Args)]
pub struct MeasureArgs {
    /// Number of examples to measure on, drawn at random from the seed; all examples if there are fewer
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = at_least_three)]
    pub samples: usize,
    /// How the tokens of an example are pooled to one point
    #[arg(long, value_enum, default_value_t = PoolArg::Mean)]
    pub pool: PoolArg,
    /// Estimator of the intrinsic dimension, one of those of `gelora id`
    #[arg(long, default_value_t = Estimator::default())]
    pub estimator: Estimator,
    /// What to do with examples that are almost identical, judged by their points: drop (keep one of each group) or
    /// keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Positions in the model where hidden states are taken
    #[arg(long, value_enum, default_value_t = GranularityArg::Block)]
    pub granularity: GranularityArg,
    /// Confidence level of the intervals, and of the bound of --policy gelora-upper
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Rounding of the growth of the dimension
    #[arg(long, value_enum, default_value_t = RoundingArg::Ceil)]
    pub rounding: RoundingArg,
    /// Smallest rank
    #[arg(long, default_value_t = 1, value_name = "R", value_parser = at_least_one)]
    pub min_rank: usize,
    /// Largest rank
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub max_rank: Option<usize>,
    /// Round ranks up to a multiple of this
    #[arg(long, default_value_t = 1, value_name = "M", value_parser = at_least_one)]
    pub rank_multiple: usize,
}

/// Options of the modules to adapt and the strength of their adapters.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Modules to adapt: ends of their names, or all-linear [default: query, key, value and output of attention]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub target_modules: Vec<String>,
    /// Ratio alpha / rank, the same in every layer
    #[arg(long, default_value_t = 2.0, value_name = "C", value_parser = positive)]
    pub alpha_ratio: f64,
    /// The same alpha for every module, instead of the same ratio
    #[arg(long, value_name = "ALPHA", value_parser = positive, conflicts_with = "alpha_ratio")]
    pub lora_alpha: Option<f64>,
}

impl TargetArgs {
    /// Returns how alpha follows from the rank of a module.
    pub fn alpha(&self) -> Alpha {
        self.lora_alpha.map_or(Alpha::Ratio(self.alpha_ratio), Alpha::Fixed)
    }
}

/// Options of the policy that gives the ranks.
#[derive(Clone, Debug, Args)]
pub struct PolicyArgs {
    /// Policy that turns dimensions, or what single modules need, into ranks [default: gelora; uniform if --rank is
    /// given; budget if a budget is given]
    #[arg(long, value_enum)]
    pub policy: Option<PolicyArg>,
    /// Number of parameters of all adapters together, for the policies budget, random, gradient, signal, eva
    /// and prune
    #[arg(long, value_name = "PARAMETERS", value_parser = at_least_one)]
    pub budget: Option<usize>,
    /// Budget as a rank: the parameters that this rank would take in every module
    #[arg(long, value_name = "R", conflicts_with = "budget", value_parser = at_least_one)]
    pub budget_rank: Option<usize>,
    /// Number of points that growths are measured at [default: all; plateau for the policy plateau]
    #[arg(long, value_enum)]
    pub scale: Option<ScaleArg>,
}

#[derive(Clone, Debug, Args)]
pub struct RankArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub targets: TargetArgs,
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Rank of the policy uniform
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub rank: Option<usize>,
    /// Repeat the measurement on S random halves and S quarters of the examples, and show how the ranks vary
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub stability: usize,
    /// Report the rank that this server must be started with for the adapter: vllm
    #[arg(long, value_name = "SERVER")]
    pub serve: Option<Server>,
    /// Run the model even if it ran on the same texts before. Pooled states are kept in the folder GELORA_CACHE, or in
    /// the user's cache folder, 4 GiB at most
    #[arg(long)]
    pub no_cache: bool,
    /// Also write the pooled points: tensors layer_0 to layer_L, each of shape (n, D)
    #[arg(long, value_name = "FILE.safetensors")]
    pub points: Option<PathBuf>,
    /// Number of examples in one forward pass
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Seed of all random choices
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Folder for ranks.json, report.html, adapter_config.json and id_profile.svg
    #[arg(long, default_value = "gelora-ranks", value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
