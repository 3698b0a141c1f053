//! `gelora`: measure LoRA ranks from your data, train, evaluate, merge.

mod args;
mod commands;
mod contained;
mod data;
mod metrics;
mod output;
mod plot;
mod points;
mod tokenize;
mod ui;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse(); // wrong usage ends here, with exit code 2
    let done = match &cli.command {
        Command::Rank(args) => commands::rank::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Merge(args) => commands::merge::run(args),
        Command::Id(args) => commands::id::run(args),
        Command::Devices(args) => commands::devices::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::note(false, format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
