//! Options of `gelora compare`.

use std::path::PathBuf;

use clap::Args;

use super::parse::{at_least_one, positive};
use super::{ComputeArgs, DataArgs, MeasureArgs, ModelArgs, OutputArgs, TargetArgs, TaskArg};

#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Data that final runs are scored on [default: the validation split of --data]
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// Task to train
    #[arg(long, value_enum, default_value_t = TaskArg::Auto)]
    pub task: TaskArg,
    /// Arms to train: head (no adapters), uniform-1, uniform (at --budget-rank), rslora, lora-plus, pissa, dora,
    /// adalora, eva, gelora, gelora-upper, plateau (gelora at the plateau scale), budget, gradient and signal (the
    /// budget by the directions of gradients), prune (four times the budget, cut); controls: shuffled-budget,
    /// ascending-budget, random, repeat (uniform with another seed), leaked (uniform, trained on the scored rows too)
    #[arg(long, value_name = "ARM,...", value_delimiter = ',')]
    #[arg(default_value = "head,uniform-1,uniform,gelora,budget,shuffled-budget")]
    pub arms: Vec<String>,
    /// Arm that the others are compared with
    #[arg(long, value_name = "ARM", default_value = "uniform")]
    pub reference: String,
    /// Learning rates to choose from: a range with a number of rates, or a list
    #[arg(long, value_name = "LOW..HIGH:N|A,B,...", default_value = "1e-4..3e-2:6")]
    pub lrs: String,
    /// Seeds of the final runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seeds: u64,
    /// Seeds that choose the learning rate of each arm, on 20 % of the training rows
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub choose_seeds: u64,
    /// Budget of the arms that have one: the parameters of this rank everywhere
    #[arg(long, value_name = "R", default_value_t = 4, value_parser = at_least_one)]
    pub budget_rank: usize,
    /// Training rows, drawn by each seed [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub train_rows: Option<usize>,
    /// What runs are scored by [default: accuracy of classes, micro_f1 of rows with several, pearson of
    /// scores, loss of a language model]
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// Passes over the training rows
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    pub epochs: f64,
    /// Steps, instead of --epochs
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// Examples of one optimizer step
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub targets: TargetArgs,
    /// Runs at a time, each with cores / N threads [default: one for each core, at most 8; on a GPU 1]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub jobs: Option<usize>,
    /// Also train this uniform rank on --choose-seeds seeds, at the rate of the arm uniform, and relate the
    /// updates to what was measured before: mechanism.jsonl
    #[arg(long, value_name = "R", value_parser = at_least_one)]
    pub mechanism: Option<usize>,
    /// Resume from results.jsonl in --out; an error if there is none [default: resume if there is one]
    #[arg(long)]
    pub resume: bool,
    /// Take over the runs of other results.jsonl files of the same study
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub join: Vec<PathBuf>,
    /// Train nothing: show what the finished runs say
    #[arg(long)]
    pub table: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Folder for results.jsonl, study.json, compare.json, mechanism.jsonl and report.html
    #[arg(long, default_value = "gelora-compare", value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}
