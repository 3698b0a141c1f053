//! `--config FILE.toml`: options of a command from a file, and the file that repeats a run.
//!
//! Keys are the long names of options, aliases included, and `model` for the model. A list is an option's values
//! between commas. An option of the command line wins over the file.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::args::Rate;
use crate::ui;

/// Id of the option that names the file.
const CONFIG: &str = "config";
/// Key of the positional argument MODEL.
const MODEL: &str = "model";
/// Options that a file which repeats a run leaves out: where the file is, and what to do with an earlier run.
const NOT_REPEATED: [&str; 3] = [CONFIG, "resume", "overwrite"];

/// Arguments of a command line to which those of its configuration file were added.
#[derive(Debug)]
pub struct Expanded {
    pub arguments: Vec<OsString>,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
}

/// Adds the options of the file that `--config` names, except those that the command line has.
///
/// # Errors
/// Returns an error if the file cannot be read, is not TOML, has a key that is no option of the command, or a value of
/// the wrong type.
pub fn expand(command: &Command, arguments: Vec<OsString>) -> Result<Expanded> {
    // Required arguments may be in the file, so errors are left to the second parse.
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(&arguments);
    let Some((command, given, file)) = lenient.as_ref().ok().and_then(|matches| {
        let (name, given) = matches.subcommand()?;
        let file = given.get_one::<PathBuf>(CONFIG)?;
        Some((command.find_subcommand(name)?, given, file.clone()))
    }) else {
        return Ok(Expanded { arguments, file: None });
    };
    let place = || file.display().to_string();
    if !file.exists() {
        bail!(
            "{}: no such file; --config names a file of options, and --data-config the config of a dataset",
            file.display()
        );
    }
    let text = std::fs::read_to_string(&file).with_context(place)?;
    let table: Table = text.parse().with_context(place)?;
    let is_given = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let (mut added, mut left_out) = (Added::default(), Vec::new());
    for (key, value) in &table {
        let arg = find(command, key).with_context(place)?;
        let arguments = to_arguments(arg, key, value).with_context(place)?;
        if is_given(arg) {
            continue;
        }
        match command.get_arguments().find(|other| is_given(other) && conflict(command, arg, other)) {
            Some(other) => left_out.push(format!("{key} (beside --{})", other.get_long().unwrap_or_default())),
            None => added.extend(arguments),
        }
    }
    if !left_out.is_empty() {
        ui::note(false, format!("note: {}: left out: {}", place(), left_out.join(", ")));
    }
    // They stand between the name of the command and what follows it. Options whose value may be missing come last, so
    // that what follows is not taken for their value.
    let at = arguments.iter().position(|argument| argument == command.get_name()).map_or(1, |at| at + 1);
    let mut all = arguments;
    all.splice(at..at, added.first);
    all.extend(added.last);
    Ok(Expanded { arguments: all, file: Some(file) })
}

/// Returns the option with a key, or an error with the nearest key.
fn find<'a>(command: &'a Command, key: &str) -> Result<&'a Arg> {
    let mut names: Vec<(&Arg, String)> = Vec::new();
    for arg in command.get_arguments() {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        names.extend(arg.get_long().into_iter().chain(aliases).map(|name| (arg, name.to_owned())));
        if arg.is_positional() && arg.get_id() == "name" {
            names.push((arg, MODEL.into()));
        }
    }
    names.retain(|(arg, _)| !["config", "help", "version"].contains(&arg.get_id().as_str()));
    if let Some((arg, _)) = names.iter().find(|(_, name)| name == key) {
        return Ok(arg);
    }
    let nearest = names
        .iter()
        .map(|(_, name)| (strsim::jaro_winkler(key, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .filter(|(likeness, _)| *likeness > 0.7);
    let hint = nearest.map(|(_, name)| format!("; did you mean {name}?")).unwrap_or_default();
    bail!("{key} is not an option of gelora {}{hint}", command.get_name())
}

/// Whether two options exclude each other.
fn conflict(command: &Command, one: &Arg, other: &Arg) -> bool {
    let excludes =
        |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|excluded| excluded.get_id() == b.get_id());
    excludes(one, other) || excludes(other, one)
}

/// Arguments that come before and after those of the command line.
#[derive(Debug, Default)]
struct Added {
    first: Vec<OsString>,
    last: Vec<OsString>,
}

impl Added {
    fn extend(&mut self, other: Added) {
        self.first.extend(other.first);
        self.last.extend(other.last);
    }
}

/// Returns the command-line arguments for a key and its value.
fn to_arguments(arg: &Arg, key: &str, value: &Value) -> Result<Added> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let takes_nothing = matches!(arg.get_action(), ArgAction::SetTrue);
    let may_take_nothing = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    let text = match value {
        Value::Boolean(on) if takes_nothing || may_take_nothing => {
            let flag = on.then(|| OsString::from(format!("--{key}")));
            if takes_nothing {
                first.extend(flag)
            } else {
                last.extend(flag)
            }
            return Ok(Added { first, last });
        }
        _ if takes_nothing => bail!("{key} = {value}: expected true or false"),
        Value::Array(values)
            if matches!(arg.get_action(), ArgAction::Append) && arg.get_value_delimiter().is_none() =>
        {
            for value in values {
                first.push(format!("--{key}={}", scalar(key, value)?).into());
            }
            return Ok(Added { first, last });
        }
        Value::Array(values) => {
            if arg.get_value_delimiter() != Some(',') {
                bail!("{key} = {value}: expected one value, not a list");
            }
            let texts: Result<Vec<String>> = values.iter().map(|value| scalar(key, value)).collect();
            texts?.join(",")
        }
        value => scalar(key, value)?,
    };
    first.push(if arg.is_positional() { text.into() } else { format!("--{key}={text}").into() });
    Ok(Added { first, last })
}

fn scalar(key: &str, value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        // With its decimal point, which makes the value of --eval-every a share.
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(on) => on.to_string(),
        Value::Table(_) => bail!("{key} is a table; expected options without a table"),
        Value::Array(_) | Value::Datetime(_) => bail!("{key} = {value}: expected text or a number"),
    })
}

/// Returns a file for `--config` that repeats a run: all options of a command that have a value, but for defaults that
/// conflict with what was given.
pub fn repeating(command: &Command, matches: &ArgMatches) -> String {
    let name = command.get_name();
    let mut text = format!(
        "# What this run of gelora {} was told, and the defaults of everything else.\n\
         # gelora {name} --config THIS_FILE --out ANOTHER_FOLDER repeats it, in the folder in which it was started.\n",
        env!("CARGO_PKG_VERSION")
    );
    let source = |arg: &Arg| matches.value_source(arg.get_id().as_str());
    let given: Vec<&Arg> =
        command.get_arguments().filter(|arg| source(arg) == Some(ValueSource::CommandLine)).collect();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        let Some(key) = arg.get_long().or_else(|| (id == "name").then_some(MODEL)) else { continue };
        let conflicts = || given.iter().any(|other| conflict(command, arg, other));
        let is_default = source(arg) == Some(ValueSource::DefaultValue);
        if NOT_REPEATED.contains(&id) || is_default && conflicts() {
            continue;
        }
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            if matches.get_flag(id) {
                let _ = writeln!(text, "{key} = true");
            }
        } else if let Some(values) = matches.get_raw(id) {
            let _ = writeln!(text, "{}", line(key, &values.collect::<Vec<_>>(), arg));
        }
    }
    text
}

/// `key = value`, or a comment where a value cannot be written.
fn line(key: &str, values: &[&OsStr], arg: &Arg) -> String {
    let parsed = arg.get_value_parser().type_id();
    let is_float = parsed == TypeId::of::<f64>() || parsed == TypeId::of::<Rate>();
    let texts: Option<Vec<Value>> = values.iter().map(|value| Some(typed(value.to_str()?, is_float))).collect();
    match (texts.as_deref(), arg.get_value_delimiter()) {
        (None, _) => format!("# {key} is not Unicode and cannot be written here"),
        (Some([]), _) => format!("{key} = true"),
        (Some([one]), None) => format!("{key} = {one}"),
        (Some(all), _) => format!("{key} = {}", Value::Array(all.to_vec())),
    }
}

/// A value as a number, if the option takes one or the number is written in the same way.
fn typed(text: &str, is_float: bool) -> Value {
    if let Some(number) = text.parse::<f64>().ok().filter(|number| is_float && number.is_finite()) {
        return Value::Float(number);
    }
    if let Some(number) = text.parse::<i64>().ok().filter(|n| n.to_string() == text) {
        return Value::Integer(number);
    }
    match text.parse::<f64>().ok().filter(|n| n.is_finite() && n.to_string() == text) {
        Some(number) => Value::Float(number),
        None => Value::String(text.to_owned()),
    }
}

/// Returns a note for the user who sees an error about an option that the file may have set.
pub fn note(file: &Path) -> String {
    format!("note: options may come from {}", file.display())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    /// The expanded arguments of `line`, which names FILE, with a file of this text.
    fn expanded(text: &str, line: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("run.toml");
        std::fs::write(&file, text)?;
        let line = line.replace("FILE", &file.display().to_string());
        let mut command = Cli::command();
        command.build();
        let all = expand(&command, words(&line))?;
        assert_eq!(all.file, Some(file));
        all.arguments.into_iter().map(|word| word.into_string().map_err(|_| anyhow::anyhow!("Unicode"))).collect()
    }

    #[test]
    fn options_come_from_the_file_unless_the_command_line_has_them() {
        let file = "model = \"m\"\nlr = 1e-3\nrank = 4\nrslora = true\ndora = false\ntarget-modules = [\"q\", \"v\"]\n";
        let all = expanded(file, "gelora train --config FILE --lr 0.5 --data d").unwrap();
        assert_eq!(all[..2], ["gelora", "train"]);
        let mut added = all[2..all.len() - 6].to_vec();
        added.sort();
        assert_eq!(added, ["--rank=4", "--rslora", "--target-modules=q,v", "m"]);
        assert_eq!(all[all.len() - 4..], ["--lr", "0.5", "--data", "d"]);
        // The model of the command line wins, and so does an alias.
        let all = expanded("model = \"m\"\nlearning-rate = 2", "gelora train other --config FILE --lr 1").unwrap();
        assert!(
            !all.contains(&"m".to_owned()) && !all.iter().any(|word| word.starts_with("--learning-rate")),
            "{all:?}"
        );
    }

    #[test]
    fn options_that_exclude_a_given_one_are_left_out_and_lists_are_repeated() {
        let all = expanded("samples = 5\ndora = true\nmodel = \"m\"", "gelora train --config FILE --rank 3").unwrap();
        assert!(!all.iter().any(|word| word.starts_with("--samples")) && all.contains(&"--dora".to_owned()), "{all:?}");
        let all = expanded("resume = true", "gelora train m --config FILE").unwrap();
        assert_eq!(all.last().map(String::as_str), Some("--resume"));
        let all = expanded("stop = [\"a,b\", \"END\"]", "gelora generate m --config FILE").unwrap();
        assert_eq!(all[2..4], ["--stop=a,b", "--stop=END"]);
    }

    #[test]
    fn what_is_no_option_is_an_error_with_the_nearest_one() {
        let fails = |file: &str| format!("{:#}", expanded(file, "gelora train m --config FILE").unwrap_err());
        assert!(
            fails("batchsize = 3")
                .contains("run.toml: batchsize is not an option of gelora train; did you mean batch-size?")
        );
        assert!(fails("zzz = 3").ends_with("zzz is not an option of gelora train"));
        assert!(fails("config = \"x\"").contains("config is not an option"));
        assert!(fails("rslora = 1").ends_with("rslora = 1: expected true or false"));
        assert!(fails("lr = [1, 2]").ends_with("expected one value, not a list"));
        assert!(fails("[train]\nlr = 1").contains("train is not an option"));
        assert!(fails("lr = {a = 1}").contains("lr is a table"));
        assert!(fails("lr = ").contains("run.toml"));
    }

    #[test]
    fn the_written_file_gives_the_same_options() {
        let lines = [
            "gelora train m --data d.csv --rank 4 --lr 2e-3 --target-modules query,value --label-column 007 --json",
            "gelora train m --data d.csv --samples 50 --profile --seed 3",
            "gelora rank m --data d.csv --budget-rank 2 --profile=p.json",
        ];
        for line in lines {
            let read = |arguments: &[OsString]| {
                let command = Cli::command();
                let matches = command.clone().try_get_matches_from(arguments).unwrap();
                let (name, matches) = matches.subcommand().unwrap();
                let mut command = command;
                command.build();
                repeating(command.find_subcommand(name).unwrap(), matches)
            };
            let text = read(&words(line));
            let name = line.split(' ').nth(1).unwrap();
            let again = expanded(&text, &format!("gelora {name} --config FILE")).unwrap();
            let again: Vec<OsString> = again.into_iter().map(OsString::from).collect();
            assert_eq!(read(&again), text, "{line}");
            assert!(text.contains("model = \"m\"\n") && text.contains("data = \"d.csv\"\n"), "{text}");
            assert!(!line.contains("2e-3") || text.contains("\nlr = 0.002\n"), "{text}");
            assert!(!line.contains("007") || text.contains("\nlabel-column = \"007\"\n"), "{text}");
        }
    }
}
