//! Options of `gelora train`.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gelora_model::TrainOptions;
use gelora_model::train::{AdaLora, Init, Length, Schedule};

use super::parse::{at_least_one, at_least_whole, not_negative, positive, share, warmup};
use super::{
    ComputeArgs, DataArgs, EvaluationArgs, LossArgs, MeasureArgs, ModelArgs, OutputArgs, PolicyArgs, ProfileArgs,
    TargetArgs, TaskArg,
};

/// Options of new adapters, which conflict with an adapter that is trained on.
const NEW_ADAPTERS: [&str; 9] =
    ["ranks", "rank", "target_modules", "alpha_ratio", "lora_alpha", "rslora", "dora", "adalora", "init"];

/// Options of the measurement, which conflict with given ranks.
const MEASURING: [&str; 10] = [
    "samples",
    "pool",
    "estimator",
    "near_copies",
    "granularity",
    "confidence",
    "rounding",
    "min_rank",
    "max_rank",
    "rank_multiple",
];

/// Options of the policy. With given ranks there is none but uniform.
const POLICY: [&str; 4] = ["policy", "budget", "budget_rank", "scale"];

/// When to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResumeArg {
    #[value(hide = true)]
    Always,
    Auto,
}

/// Values of the adapters before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitArg {
    /// A is random and B is 0
    Lora,
    /// A and B are singular triplets of the weight
    Pissa,
    /// A is the directions in which the inputs vary the most
    Eva,
}

impl From<InitArg> for Init {
    fn from(init: InitArg) -> Self {
        match init {
            InitArg::Lora => Self::Lora,
            InitArg::Pissa => Self::Pissa,
            // A is set module by module.
            InitArg::Eva => Self::Lora,
        }
    }
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleArg {
    /// It falls linearly to 0
    Linear,
    /// It falls to 0 as half a cosine
    Cosine,
    /// It stays
    Constant,
}

impl From<ScheduleArg> for Schedule {
    fn from(schedule: ScheduleArg) -> Self {
        match schedule {
            ScheduleArg::Linear => Self::Linear,
            ScheduleArg::Cosine => Self::Cosine,
            ScheduleArg::Constant => Self::Constant,
        }
    }
}

/// The peak learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// The rate of short trainings.
    Auto,
    Fixed(f64),
}

impl Rate {
    /// The rate, or the default of `--lr` where it is chosen later.
    pub fn or_usual(self) -> f64 {
        match self {
            Self::Auto => 1e-3,
            Self::Fixed(rate) => rate,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(rate) => rate.fmt(f),
        }
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "auto" => Ok(Rate::Auto),
        text => positive(text).map(Rate::Fixed).map_err(|problem| format!("{problem}, or auto")),
    }
}

/// Options of AdaLoRA.
#[derive(Clone, Debug, Args)]
pub struct AdaLoraArgs {
    /// AdaLoRA: ranks at the start, as a multiple of those to train [default: 1.5]
    #[arg(long, value_name = "RATIO", value_parser = at_least_whole, requires = "adalora")]
    pub adalora_start: Option<f64>,
    /// AdaLoRA: steps before ranks are given up; below 1 a share of all steps, from 1 on a whole number of steps
    /// [default: 0.1]
    #[arg(long, value_name = "SHARE|N", value_parser = warmup, requires = "adalora")]
    pub adalora_t_init: Option<f64>,
    /// AdaLoRA: last steps, in which the ranks stay; below 1 a share of all steps, from 1 on a whole number of steps
    /// [default: 0.3]
    #[arg(long, value_name = "SHARE|N", value_parser = warmup, requires = "adalora")]
    pub adalora_t_final: Option<f64>,
    /// AdaLoRA: steps from a choice of ranks to the next [default: 1]
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "adalora")]
    pub adalora_interval: Option<usize>,
    /// AdaLoRA: weight of the penalty in the loss that keeps A and B orthogonal [default: 0.5]
    #[arg(long, value_name = "WEIGHT", value_parser = not_negative, requires = "adalora")]
    pub adalora_orthogonality: Option<f64>,
}

impl From<&AdaLoraArgs> for AdaLora {
    fn from(args: &AdaLoraArgs) -> Self {
        let usual = Self::default();
        Self {
            start: args.adalora_start.unwrap_or(usual.start),
            t_init: args.adalora_t_init.unwrap_or(usual.t_init),
            t_final: args.adalora_t_final.unwrap_or(usual.t_final),
            interval: args.adalora_interval.unwrap_or(usual.interval),
            orthogonality: args.adalora_orthogonality.unwrap_or(usual.orthogonality),
            ..usual
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Data to evaluate on [default: the validation split, if --data is a folder that has one]
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    /// Task to train
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Ranks from `gelora rank` [default without --rank: measure the ranks first, on the training data]
    #[arg(long, value_name = "ranks.json")]
    #[arg(conflicts_with_all = ["rank", "target_modules", "alpha_ratio", "lora_alpha"])]
    #[arg(conflicts_with_all = MEASURING, conflicts_with_all = POLICY)]
    pub ranks: Option<PathBuf>,
    /// The same rank for every module
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    #[arg(conflicts_with_all = MEASURING, conflicts_with_all = &POLICY[1..])]
    pub rank: Option<usize>,
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub targets: TargetArgs,
    /// Adapter folder (of gelora or PEFT) to train on from. Ranks, alphas, modules and the head are its own; a head
    /// must be of the same classes
    #[arg(long, value_name = "DIR", conflicts_with_all = NEW_ADAPTERS, conflicts_with_all = MEASURING)]
    #[arg(conflicts_with_all = POLICY)]
    pub init_adapter: Option<PathBuf>,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank
    #[arg(long)]
    pub rslora: bool,
    /// DoRA: train a magnitude for every output of an adapted module too. The folder needs PEFT or `gelora merge`;
    /// GGUF adapters cannot hold it
    #[arg(long, conflicts_with = "init")]
    pub dora: bool,
    /// LoRA+: learning rate of matrix B as a multiple of that of A (16 is common); 1 turns it off. Biases of the head
    /// have B's rate and no weight decay
    #[arg(long, default_value_t = 1.0, value_name = "RATIO", value_parser = positive)]
    pub lora_plus: f64,
    /// AdaLoRA: begin with more ranks than those asked for, and give up the least important. The folder holds a plain
    /// LoRA of the ranks that are left; their sum is the one asked for
    #[arg(long, conflicts_with_all = ["dora", "rslora", "init"])]
    pub adalora: bool,
    #[command(flatten)]
    pub triplets: AdaLoraArgs,
    /// Values of the adapters before the first step. pissa: the leading singular triplets of each weight, which the
    /// frozen weight then lacks; the folder holds a plain LoRA of twice the rank, for the unmodified base model. eva:
    /// the directions in which the inputs of each module vary the most, on up to 1,000 rows; the sum of the ranks is
    /// spent on those that explain the most variance
    #[arg(long, value_enum, default_value_t = InitArg::Lora)]
    pub init: InitArg,
    /// Dropout probability on the input of matrix A [default: 0, or that of --init-adapter]
    #[arg(long, value_name = "P", value_parser = share)]
    pub lora_dropout: Option<f64>,
    /// Peak learning rate; auto takes it from six short trainings, scored on a fifth of the training rows
    #[arg(long, default_value_t = Rate::Fixed(1e-3), value_name = "RATE|auto", visible_alias = "learning-rate")]
    #[arg(value_parser = rate)]
    pub lr: Rate,
    /// Number of passes over the training data. It sets the number of steps: rows / batch size x epochs, rounded up
    #[arg(long, default_value_t = 3.0, value_parser = positive, visible_alias = "num-train-epochs")]
    pub epochs: f64,
    /// Number of optimizer steps, instead of --epochs
    #[arg(long, value_name = "N", value_parser = at_least_one, visible_alias = "max-steps")]
    pub steps: Option<usize>,
    /// Number of examples in one optimizer step
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    /// Number of examples in one part of a step, as transformers counts them: a step has this number times --accumulate
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "batch_size")]
    pub per_device_train_batch_size: Option<usize>,
    /// Number of parts that the examples of a step are run in, to save memory
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    #[arg(visible_alias = "gradient-accumulation-steps")]
    pub accumulate: usize,
    /// Keep only the input of each block for the backward pass and recompute the rest: less memory, a third more time
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Make batches of rows of similar length (in characters), as group_by_length of transformers does. Batches are
    /// never padded here, so this saves no time, and steps differ more in time and memory
    #[arg(long)]
    pub group_by_length: bool,
    /// How the learning rate goes on after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear, visible_alias = "lr-scheduler-type")]
    pub schedule: ScheduleArg,
    /// Steps over which the learning rate rises: below 1 a share of all steps, from 1 on a whole number of steps
    #[arg(long, default_value_t = 0.06, value_name = "SHARE|N", value_parser = warmup)]
    #[arg(visible_aliases = ["warmup-ratio", "warmup-steps"])]
    pub warmup: f64,
    #[command(flatten)]
    pub loss: LossArgs,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.01, value_parser = not_negative)]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = not_negative)]
    #[arg(visible_alias = "max-grad-norm")]
    pub clip: f64,
    /// Also write the curves of metrics.jsonl as event files for TensorBoard
    #[arg(long)]
    pub tensorboard: bool,
    /// Number of steps between checkpoints [default: an epoch]
    #[arg(long, value_name = "N", value_parser = at_least_one, visible_alias = "save-steps")]
    pub checkpoint_every: Option<usize>,
    /// Number of checkpoints to keep, the last ones; with more than 1 they also stay after the training
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = at_least_one, visible_alias = "save-total-limit")]
    pub keep_checkpoints: usize,
    /// Resume from the newest checkpoint in --out that is whole; with auto, start anew if there is none
    #[arg(long, value_enum, value_name = "auto", num_args = 0..=1, default_missing_value = "always")]
    pub resume: Option<ResumeArg>,
    /// Run a few steps, print what the training would take, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace a finished adapter in --out
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Seed of all random choices
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Folder for the adapter
    #[arg(long, default_value = "gelora-adapter", value_name = "DIR", visible_alias = "output-dir")]
    pub out: PathBuf,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// File for --config that repeats the run, made from the command line.
    #[arg(skip)]
    pub repeating: String,
}

impl TrainArgs {
    /// Returns the number of examples in one optimizer step.
    pub fn batch_size(&self) -> usize {
        self.per_device_train_batch_size.map_or(self.batch_size, |part| part.saturating_mul(self.accumulate))
    }

    /// Returns the number of examples in one part of a step.
    pub fn part_size(&self) -> usize {
        self.batch_size().div_ceil(self.accumulate.max(1))
    }

    /// Returns the options of the training, without ranks, class weights, checkpoints and processes.
    pub fn options(&self) -> TrainOptions {
        TrainOptions {
            lora_dropout: self.lora_dropout.unwrap_or(0.0),
            rslora: self.rslora,
            lora_plus: self.lora_plus,
            init: self.init.into(),
            dora: self.dora,
            adalora: self.adalora.then(|| (&self.triplets).into()),
            lr: self.lr.or_usual(),
            length: self.steps.map_or(Length::Epochs(self.epochs), Length::Steps),
            batch_size: self.batch_size(),
            accumulate: self.accumulate,
            checkpoint_activations: self.checkpoint_activations,
            group_by_length: self.group_by_length,
            schedule: self.schedule.into(),
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            clip: self.clip,
            label_smoothing: self.loss.label_smoothing,
            eval_every: self.evaluation.eval_every,
            metric: self.evaluation.metric.clone(),
            keep: self.evaluation.keep(),
            patience: self.evaluation.patience,
            seed: self.seed,
            ..TrainOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_measurement_conflicts_with_given_ranks() {
        let command = MeasureArgs::augment_args(clap::Command::new("test"));
        let options: Vec<&str> = command.get_arguments().map(|option| option.get_id().as_str()).collect();
        assert_eq!(options, MEASURING);
        let command = PolicyArgs::augment_args(clap::Command::new("test"));
        let options: Vec<&str> = command.get_arguments().map(|option| option.get_id().as_str()).collect();
        assert_eq!(options, POLICY);
    }
}
