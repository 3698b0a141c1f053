//! Options of `gelora id`.

use std::path::PathBuf;

use clap::Args;
use gelora_id::{Estimator, NearCopies};

use super::parse::inside_unit;
use super::{DeviceArg, OutputArgs};

#[derive(Clone, Debug, Args)]
pub struct IdArgs {
    /// File with one (n, D) matrix of points, or with several
    pub points: PathBuf,
    /// Matrix to read from a file that has several
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Columns to take from a table [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub columns: Vec<String>,
    #[arg(help = format!("Estimators: {}", Estimator::names().join(", ")))]
    #[arg(long, value_delimiter = ',', default_value = Estimator::default().name(), value_name = "NAME,...")]
    pub estimator: Vec<Estimator>,
    /// What to do with points that are almost identical: drop (keep one of each group) or keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Confidence level of the intervals
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Device of the nearest-neighbor search
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub output: OutputArgs,
}
