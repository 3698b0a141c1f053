//! `gelora`: measures LoRA ranks from your data, trains, evaluates and merges.
//!
//! The program is [`main`]; `src/bin/gelora.rs` calls it. It is a library so that the fuzz targets in `fuzz/` reach the
//! readers.

mod args;
mod cache;
mod card;
mod chat;
mod commands;
mod compare;
mod contained;
mod data;
mod distinct;
mod fingerprint;
mod history;
mod hub;
mod launch;
mod memory;
mod options_file;
mod output;
mod plot;
mod points;
mod profile;
mod report;
mod signals;
mod stop_strings;
mod tensorboard;
mod tokenize;
mod ui;
mod understood;
#[doc(hidden)]
pub mod untrusted;

use std::process::ExitCode;
use std::time::Duration;

use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use gelora_kernels::cpu::Level;
use launch::{Group, Launch};
use signals::Interrupted;

/// Pause before a process other than the first reports an error, and what it is longer for each further process.
const FIRST_SPEAKS: Duration = Duration::from_secs(2);
const NEXT_SPEAKS: Duration = Duration::from_millis(200);
/// Number of further processes whose pauses differ.
const MOST_PAUSES: u32 = 60;
/// Exit code if another process does not answer or differs: EX_TEMPFAIL of sysexits.h, so that a script may try again.
const TRY_AGAIN: u8 = 75;
/// Time for the signal of a launcher that ends this process to arrive.
const LAST_WORD: Duration = Duration::from_millis(300);
/// Longest --dist-timeout, in seconds: a year.
const MOST_SECONDS: f64 = 3.2e7;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    silence_mesa();
    signals::let_writes_fail();
    let launch = match Launch::of_environment() {
        Ok(launch) => launch,
        Err(error) => return failed(None, &in_one_line(&error), ExitCode::FAILURE),
    };
    if let Some(launch) = &launch {
        launch.share_the_machine();
        ui::set_launched(launch.rank);
    }
    let mut cli = match command_line(launch.as_ref()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Err(problem) = Level::asked_for() {
        return failed(launch.as_ref(), &problem, ExitCode::from(2));
    }
    if let Some(threads) = cli.threads.or_else(|| launch.and_then(|launch| launch.threads())) {
        // The pool of threads is made once, and nothing has asked for it before.
        if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
            return failed(launch.as_ref(), &format!("--threads {threads}: {error}"), ExitCode::FAILURE);
        }
    }
    let group = match group(launch, &cli) {
        Ok(group) => group,
        Err(error) => return failed(launch.as_ref(), &in_one_line(&error), ExitCode::FAILURE),
    };
    let done = locate(&mut cli.command, &group).and_then(|()| run(&cli.command, &group));
    let Err(error) = done else { return ExitCode::SUCCESS };
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        ui::note(false, interrupted.to_string());
        // All processes stopped together, and the first one says why.
        return if group.processes.is_first() { interrupted.exit_code() } else { ExitCode::SUCCESS };
    }
    let text = format!("{}{}", in_one_line(&error), hint(&error, &cli.command));
    // A process that hung for a while may find out late that the others have ended because of it.
    let is_late = || {
        std::thread::sleep(LAST_WORD);
        signals::is_terminated()
    };
    let code = match is_of_processes(&error) {
        true if is_late() => ExitCode::from(TRY_AGAIN),
        true => failed(launch.as_ref(), &text, ExitCode::from(TRY_AGAIN)),
        false => failed(launch.as_ref(), &text, ExitCode::FAILURE),
    };
    if !group.processes.is_alone() {
        group.processes.abort();
        // The engine may wait for processes that are gone, so it is not closed.
        std::mem::forget(group);
    }
    code
}

/// Reports an error and returns the exit code. Of several processes, which may all have the same error, the first one
/// speaks at once; its end ends the others. What only another process has to say comes a moment later.
fn failed(launch: Option<&Launch>, text: &str, code: ExitCode) -> ExitCode {
    match launch.filter(|launch| launch.rank > 0) {
        None => ui::error(text),
        Some(Launch { rank, world, .. }) => {
            let before = u32::try_from(rank - 1).unwrap_or(u32::MAX);
            std::thread::sleep(FIRST_SPEAKS + NEXT_SPEAKS * before.min(MOST_PAUSES));
            if signals::is_terminated() {
                return code; // the launcher ends this process because of another
            }
            ui::error(format!("process {rank} of {world}: {text}"));
        }
    }
    code
}

/// Whether the error is that another process does not answer or differs.
fn is_of_processes(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(gelora_model::Error::Process(_))))
}

/// Connects the processes of this run.
fn group(launch: Option<Launch>, cli: &Cli) -> anyhow::Result<Group> {
    let Some(found) = launch.filter(|_| !matches!(cli.command, Command::Devices(_))) else {
        return Ok(Group { launch, ..Group::default() });
    };
    if let Some(name) = cli.command.of_one_process() {
        anyhow::bail!(
            "{} started {} processes, and gelora {name} runs in one; expected to be started once, without the \
             variable {}",
            found.launcher.name(),
            found.world,
            found.launcher.variable()
        );
    }
    // Processes of a study train for as long as their runs take before they meet.
    let is_study = matches!(cli.command, Command::Compare(_));
    let seconds = if is_study { MOST_SECONDS } else { cli.dist_timeout.min(MOST_SECONDS) };
    let processes = found.connect(Duration::from_secs_f64(seconds))?;
    Ok(Group { processes, launch })
}

/// Finds models and data on the hub. The first process of a machine downloads what the others then find.
fn locate(command: &mut Command, group: &Group) -> anyhow::Result<()> {
    if group.is_first_of_machine() {
        command.locate()?;
    }
    group.processes.barrier()?;
    if !group.is_first_of_machine() {
        command.locate()?;
    }
    Ok(())
}

/// Returns the options of the command line and of its configuration file, or the exit code of wrong usage, which is
/// printed.
fn command_line(launch: Option<&Launch>) -> Result<Cli, ExitCode> {
    let mut command = Cli::command();
    command.build();
    let expanded = options_file::expand(&command, std::env::args_os().collect())
        .map_err(|error| failed(launch, &in_one_line(&error), ExitCode::from(2)))?;
    let parsed = command.try_get_matches_from_mut(expanded.arguments).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        if let (Command::Train(train), Some((name, matches))) = (&mut cli.command, matches.subcommand())
            && let Some(command) = command.find_subcommand(name)
        {
            train.repeating = options_file::repeating(command, matches);
        }
        Ok(cli)
    });
    parsed.map_err(|error| {
        // Help and the version are errors as well, and go to standard output.
        if launch.is_none_or(|launch| launch.rank == 0) {
            let _ = error.print();
        }
        if let Some(file) = expanded.file.filter(|_| error.use_stderr()) {
            ui::note(false, options_file::note(&file));
        }
        u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
    })
}

/// Tells Mesa's device-selection layer not to run. Without a display that layer asks Wayland for one and prints an
/// error that is harmless. Settings that the user made for it are kept.
fn silence_mesa() {
    let unset = |name| std::env::var_os(name).is_none();
    if ["XDG_RUNTIME_DIR", "MESA_VK_DEVICE_SELECT", "DRI_PRIME", "NODEVICE_SELECT"].into_iter().all(unset) {
        // SAFETY: no other thread has begun.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn run(command: &Command, group: &Group) -> anyhow::Result<()> {
    match command {
        Command::Rank(args) => profile::run(&args.profile, || commands::rank::run(args, group)),
        Command::Train(args) => profile::run(&args.profile, || commands::train::run(args, group)),
        Command::Plan(args) => commands::plan::run(args),
        Command::Compare(args) => commands::compare::run(args, group),
        Command::Eval(args) => commands::eval::run(args, group),
        Command::Predict(args) => commands::predict::run(args, group),
        Command::Generate(args) => profile::run(&args.profile, || commands::generate::run(args)),
        Command::Merge(args) => commands::merge::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Id(args) => commands::id::run(args),
        Command::Devices(args) => commands::devices::run(args, group.launch.as_ref()),
    }
}

/// Returns the options that help against the error, where they do not depend on the input.
fn hint(error: &anyhow::Error, command: &Command) -> &'static str {
    // Errors that only pass on another error are not separate causes in a chain, so unwrap them here.
    let kernel_error = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<gelora_model::Error>() {
        Some(gelora_model::Error::Kernel(e) | gelora_model::Error::Lora(gelora_lora::Error::Kernel(e))) => {
            Some(e.clone())
        }
        _ => cause.downcast_ref::<gelora_kernels::Error>().cloned(),
    };
    if error
        .chain()
        .filter_map(kernel_error)
        .any(|e| matches!(e, gelora_kernels::Error::OutOfMemory { .. } | gelora_kernels::Error::TooLarge { .. }))
    {
        return match command {
            Command::Train(_) => {
                "; a smaller --batch-size or --max-length, --accumulate, --checkpoint-activations or --dtype bf16 \
                 needs less"
            }
            Command::Rank(_) | Command::Compare(_) | Command::Eval(_) | Command::Predict(_) => {
                "; a smaller --batch-size or --max-length, or --dtype bf16, needs less"
            }
            _ => "",
        };
    }
    ""
}

/// Returns the error and its causes as one line, without causes that an outer error quotes already. A name in a file
/// may contain any character, so control characters are escaped and line ends become spaces.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn errors_are_one_line_and_control_characters_are_escaped() {
        let error = anyhow!("no column \"a\u{1b}[2J\"").context("f.csv: broken\nhere");
        assert_eq!(super::in_one_line(&error), "f.csv: broken here: no column \"a\\u{1b}[2J\"");
    }
}
