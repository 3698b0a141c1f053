//! Options of `gelora id`.

use std::path::PathBuf;

use clap::Args;
use gelora_id::{Estimator, NearCopies};

use super::parse::inside_unit;
use super::{DeviceArg, OutputArgs};

#[derive(Clone, Debug, Args)]
pub struct IdArgs {
    /// File with an (n, D) matrix of points, or several
    pub points: PathBuf,
    /// The one matrix to take from a file with several
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Columns to take from a table [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub columns: Vec<String>,
    /// Estimators: two-nn-fit, two-nn-trimmed, two-nn-mle, two-nn-bayes, gride, mle, corr-dim, local-pca
    #[arg(long, value_delimiter = ',', default_value = "two-nn-fit", value_name = "NAME,...")]
    pub estimator: Vec<Estimator>,
    /// What becomes of points that are almost the same as another: drop (one of each group stays) or keep
    #[arg(long, default_value_t = NearCopies::Drop, value_name = "drop|keep")]
    pub near_copies: NearCopies,
    /// Confidence of the intervals
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = inside_unit)]
    pub confidence: f64,
    /// Device of the neighbour search
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub output: OutputArgs,
}
