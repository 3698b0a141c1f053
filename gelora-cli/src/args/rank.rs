//! Options of `gelora rank`, and what `gelora train` shares with it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gelora_id::{Estimator, NearCopies};
use gelora_lora::ranks::{Rounding, Server};

use super::parse::{at_least_one, at_least_three, inside_unit, positive};
use super::{ComputeArgs, DataArgs, ModelArgs, OutputArgs, ProfileArgs};

/// How the tokens of an example become one point.
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
    /// A budget (--budget or --budget-rank) spent in proportion to the published rule's ranks, never below them
    Budget,
    /// The same rank everywhere (--rank)
    #[value(alias = "fixed")]
    Uniform,
    /// A control: the same number of parameters, or --budget, handed out at random
    Random,
    /// A control: the published rule's ranks, dealt to the wrong layers
    Shuffled,
}

/// How many points growths are measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScaleArg {
    /// All examples
    All,
    /// The finest scale that lies in the plateau of most states, averaged over draws
    Plateau,
}

/// Where hidden states are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GranularityArg {
    /// Before the first block and after each
    Block,
    /// Also between attention and MLP, so that the two have ranks of their own
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

/// How ranks are measured: shared by `rank`, and by `train` when it measures them itself.
#[derive(Clone, Debug, Args)]
pub struct MeasureArgs {
    /// Examples to measure on, drawn at random from the seed; all if there are fewer
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = at_least_three)]
    pub samples: usize,
    /// How the tokens of an example become one point
    #[arg(long, value_enum, default_value_t = PoolArg::Mean)]
    pub pool: PoolArg,
    /// Estimator of the intrinsic dimension, as of `gelora id`
    #[arg(long, default_value_t = Estimator::default())]
    pub estimator: Estimator,
    /// What becomes of examples that are almost the same as another, which is seen from their points: drop (one of each group
    /// stays) or keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Where hidden states are taken
    #[arg(long, value_enum, default_value_t = GranularityArg::Block)]
    pub granularity: GranularityArg,
    /// Confidence of the intervals, and of the bound of --policy gelora-upper
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Rounding of the growth of the dimension
    #[arg(long, value_enum, default_value_t = RoundingArg::Ceil)]
    pub rounding: RoundingArg,
    /// The least rank
    #[arg(long, default_value_t = 1, value_name = "R", value_parser = at_least_one)]
    pub min_rank: usize,
    /// The greatest rank
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub max_rank: Option<usize>,
    /// Round ranks up to a multiple of this
    #[arg(long, default_value_t = 1, value_name = "M", value_parser = at_least_one)]
    pub rank_multiple: usize,
}

/// Which modules get adapters, and how strong.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Modules to adapt: ends of their names, or all-linear [default: query, key, value and output of attention]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub target_modules: Vec<String>,
    /// alpha / rank, the same in every layer
    #[arg(long, default_value_t = 2.0, value_name = "C", value_parser = positive)]
    pub alpha_ratio: f64,
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
    /// How dimensions become ranks [default: gelora, or uniform if --rank, budget if a budget is given]
    #[arg(long, value_enum)]
    pub policy: Option<PolicyArg>,
    /// The rank of the policy uniform
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub rank: Option<usize>,
    /// Parameters of all adapters together, for the policies budget and random
    #[arg(long, value_name = "PARAMETERS", value_parser = at_least_one)]
    pub budget: Option<usize>,
    /// The same as the parameters of one rank everywhere
    #[arg(long, value_name = "R", conflicts_with = "budget", value_parser = at_least_one)]
    pub budget_rank: Option<usize>,
    /// The number of points that growths are measured at
    #[arg(long, value_enum, default_value_t = ScaleArg::All)]
    pub scale: ScaleArg,
    /// Repeat on S random halves and S quarters of the examples, and show how the ranks move
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub stability: usize,
    /// Say what rank a server must be started with for this adapter: vllm
    #[arg(long, value_name = "SERVER")]
    pub serve: Option<Server>,
    /// Run the model even if it was run on the same texts before. Pooled states are kept in the folder GELORA_CACHE, or in the
    /// user's cache folder, 4 GiB at most
    #[arg(long)]
    pub no_cache: bool,
    /// Also write the pooled points, layer_0 .. layer_L of shape (n, D) each
    #[arg(long, value_name = "FILE.safetensors")]
    pub points: Option<PathBuf>,
    /// Examples in one pass through the model
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Seed of everything random
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
