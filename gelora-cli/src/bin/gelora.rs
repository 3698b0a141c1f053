//! `gelora`: measure LoRA ranks from your data, train, evaluate, merge.

use std::process::ExitCode;

fn main() -> ExitCode {
    gelora_cli::main()
}
