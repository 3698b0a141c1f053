//! `gelora predict`: classes and scores of rows without labels, from files or from standard input.

mod writer;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use gelora_model::distributed::{Processes, bytes_of, floats_of};
use gelora_model::{Batch, Classifier, Config};
use serde_json::json;

use self::writer::Writer;
use super::alike;
use super::rows::encode_rows;
use super::{
    CAUSAL_LM, check_base, check_max_length, check_not_input, eval, load_classifier, open_device, open_tokenizer,
    read_adapter,
};
use crate::args::{InputArg, PredictArgs};
use crate::data::{self, Aim, ColumnFlags, Dataset, ReadOptions, RowStream, StreamFormat};
use crate::launch::Group;
use crate::tokenize::Tokenizer;
use crate::ui::{self, Progress};
use crate::understood::{Understood, Use};

/// What stands for the path of standard input in messages.
const STDIN_NAME: &str = "standard input";

pub fn run(args: &PredictArgs, group: &Group) -> Result<()> {
    check_options(args, group)?;
    let device = open_device(args.compute.device)?;
    check_task(args)?;
    let options = read_options(args);
    // A file is read before the model is loaded: most mistakes are in the data.
    let dataset = match args.reads_stdin() {
        true => None,
        false => {
            let split = eval::split_to_evaluate(&args.data, args.split)?;
            let mut dataset = data::read(&args.data, split, &options)?;
            dataset.take_texts();
            Some(dataset)
        }
    };
    let mut classifier = load_classifier(&args.model.path, args.adapter.as_deref())?;
    eval::decide_task(args.task, &mut classifier, args.adapter.as_ref().unwrap_or(&args.model.name))?;
    classifier.compute_in(args.compute.dtype.into())?;
    classifier.move_to(&device)?;
    let config = classifier.transformer().config();
    check_max_length(args.max_length, config)?;
    let max_length = eval::trained_length(args.max_length, args.adapter.as_deref(), &args.model)?;
    let tokenizer = open_tokenizer(&args.model.path, max_length, config)?;
    if let Some(dataset) = &dataset {
        let model = (&*args.model.path, args.adapter.as_deref());
        let options = (args.batch_size, args.compute);
        alike::check_model_on_rows(group, model, dataset, &tokenizer, &device, options)?;
    }
    let processes = &group.processes;
    let mut predictor =
        Predictor { args, classifier: &classifier, tokenizer: &tokenizer, processes, writer: None, rows: 0 };
    let read = match &dataset {
        Some(dataset) => predictor.of_file(dataset),
        None => predictor.of_stdin(&options),
    };
    match read {
        // Whoever read the predictions wants no more of them.
        Err(error) if is_broken_pipe(&error) && processes.is_alone() => Ok(()),
        other => other,
    }
}

/// The model, and what was predicted so far.
struct Predictor<'a> {
    args: &'a PredictArgs,
    classifier: &'a Classifier,
    tokenizer: &'a Tokenizer,
    /// Those that share the rows of a file.
    processes: &'a Processes,
    /// Opened with the first rows, so that a run that fails before leaves an existing file as it was.
    writer: Option<Writer>,
    /// Number of predicted rows.
    rows: usize,
}

impl Predictor<'_> {
    /// Predicts all rows of a file or folder.
    fn of_file(&mut self, dataset: &Dataset) -> Result<()> {
        if let Some(path) = &self.args.out {
            let mut inputs: Vec<&Path> = vec![&self.args.model.path];
            inputs.extend(self.args.adapter.as_deref());
            inputs.extend(dataset.files());
            check_not_input(path, "--out", &inputs)?;
        }
        let understood = Understood::of(dataset, &Use::Texts, self.tokenizer)?;
        understood.say(self.args.output.quiet);
        // Predictions on a terminal are progress enough.
        let is_shown = self.args.out.is_none() && io::stdout().is_terminal();
        let bar = Progress::new(self.args.output.quiet || is_shown, "predict", dataset.examples.len() as u64);
        let all: Vec<usize> = (0..dataset.examples.len()).collect();
        let batches: Vec<&[usize]> = all.chunks(self.args.batch_size).collect();
        // Each process predicts one batch of a round.
        for round in batches.chunks(self.processes.world()) {
            let mine = round.get(self.processes.rank()).map(|rows| self.logits(dataset, rows)).transpose()?;
            let found =
                self.processes.collect(round.len(), mine.map(|logits| bytes_of(&logits)).into_iter().collect())?;
            if self.processes.is_first() {
                round
                    .iter()
                    .zip(&found)
                    .try_for_each(|(rows, logits)| self.write(dataset, rows, &floats_of(logits)))?;
            }
            bar.inc(round.iter().map(|rows| rows.len() as u64).sum());
        }
        bar.finish();
        if !self.processes.is_first() {
            return Ok(());
        }
        self.finish(json!(understood))
    }

    /// Predicts the rows of standard input as they come.
    fn of_stdin(&mut self, options: &ReadOptions) -> Result<()> {
        if let Some(path) = &self.args.out {
            let inputs: Vec<&Path> = [&*self.args.model.path].into_iter().chain(self.args.adapter.as_deref()).collect();
            check_not_input(path, "--out", &inputs)?;
        }
        let quiet = self.args.output.quiet;
        let format = match self.args.input {
            Some(InputArg::Text) => StreamFormat::Text,
            Some(InputArg::Jsonl) | None => StreamFormat::Json,
        };
        let mut stream = RowStream::open(Path::new(STDIN_NAME), io::stdin(), format, options)?;
        let mut is_said = false;
        while let Some(mut batch) = stream.next_batch(self.args.batch_size)? {
            if let Some(columns) = stream.columns().filter(|_| !std::mem::replace(&mut is_said, true)) {
                let used: Vec<String> =
                    columns.used().into_iter().map(|(role, name)| format!("{role} \"{name}\"")).collect();
                ui::note(quiet, format!("{STDIN_NAME}: {}{}", used.join(", "), ignored(&columns.ignored())));
            }
            stream.take_notes().into_iter().for_each(ui::warn);
            batch.take_texts();
            let rows: Vec<usize> = (0..batch.examples.len()).collect();
            let logits = self.logits(&batch, &rows)?;
            self.write(&batch, &rows, &logits)?;
        }
        stream.take_notes().into_iter().for_each(ui::warn);
        let left_out = stream.left_out();
        if let Some(left_out) = &left_out {
            ui::warn(format!("{STDIN_NAME}: {} rows left out: {}", ui::count(left_out.rows as u64), left_out.why));
        }
        self.finish(json!({"data": STDIN_NAME, "left_out": left_out}))
    }

    /// Returns the logits of some rows, one after the other.
    fn logits(&self, dataset: &Dataset, rows: &[usize]) -> Result<Vec<f32>> {
        let tokens = encode_rows(self.tokenizer, dataset, rows)?;
        Ok(self.classifier.logits(&Batch::of_tokens(&tokens)?)?.to_vec()?)
    }

    /// Writes the predictions of some rows.
    fn write(&mut self, dataset: &Dataset, rows: &[usize], logits: &[f32]) -> Result<()> {
        let outputs = self.classifier.task().outputs();
        let columns = self.args.with_input.then_some(&dataset.columns);
        let writer = self.writer(columns.map(|columns| (columns.text.clone(), columns.pair.clone())))?;
        for (row, logits) in rows.iter().zip(logits.chunks(outputs)) {
            writer.row(dataset.row(*row), &dataset.examples[*row], logits)?;
        }
        writer.flush()?;
        self.rows += rows.len();
        Ok(())
    }

    /// Returns the writer. It is opened at the first call, with the names of the columns to repeat.
    fn writer(&mut self, columns: Option<(String, Option<String>)>) -> Result<&mut Writer> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::open(self.args.out.as_deref(), self.args.format, self.classifier.task(), columns)?,
        };
        Ok(self.writer.insert(writer))
    }

    /// Writes what is left to write, and the summary.
    fn finish(&mut self, dataset: serde_json::Value) -> Result<()> {
        // A table of no rows still has its header.
        self.writer(None)?.flush()?;
        let (args, rows) = (self.args, self.rows);
        let out: Option<&PathBuf> = args.out.as_ref();
        match out {
            Some(path) if args.output.json => {
                let summary = json!({"rows": rows, "out": path, "dataset": dataset});
                Ok(ui::result(ui::with_warnings(summary).to_string())?)
            }
            Some(path) => {
                Ok(ui::result(format!("the predictions of {} rows are in {}", ui::count(rows as u64), path.display()))?)
            }
            None => {
                ui::note(args.output.quiet, format!("{} rows predicted", ui::count(rows as u64)));
                Ok(())
            }
        }
    }
}

/// Returns an error if options do not go together.
fn check_options(args: &PredictArgs, group: &Group) -> Result<()> {
    if args.reads_stdin() && !group.processes.is_alone() {
        bail!("--data -: standard input has one reader; expected a file, which several processes share");
    }
    if args.output.json && args.out.is_none() {
        bail!("--json: standard output has the predictions; with --out FILE, --json prints a summary there");
    }
    if !args.reads_stdin() {
        if args.input.is_some() {
            bail!("--input: is of standard input (--data -); the name of a file says its format");
        }
        return Ok(());
    }
    if args.split.is_some() {
        bail!("--split: is of a folder; --data - is standard input");
    }
    if args.delimiter.is_some() {
        bail!("--delimiter: is of .csv and .tsv files; standard input has JSON lines, or texts with --input text");
    }
    Ok(())
}

/// Returns an error if the model is a language model.
fn check_task(args: &PredictArgs) -> Result<()> {
    let is_lm = match &args.adapter {
        Some(folder) => {
            let adapter = read_adapter(folder, &args.model.path)?;
            check_base(&adapter, folder, &args.model);
            adapter.config.task_type.as_deref() == Some(CAUSAL_LM)
        }
        None => eval::has_no_head(&args.model, &Config::load(&args.model.path)?)?,
    };
    if is_lm {
        let path = args.adapter.as_ref().unwrap_or(&args.model.name).display();
        bail!("{path}: is of a language model, which has no classes or scores; `gelora generate` continues a text");
    }
    Ok(())
}

fn read_options(args: &PredictArgs) -> ReadOptions {
    let columns = ColumnFlags {
        text: args.text_column.clone(),
        pair: args.pair_column.clone(),
        aim: Aim::Texts,
        ..ColumnFlags::default()
    };
    ReadOptions {
        columns,
        delimiter: args.delimiter,
        skip_bad_rows: args.skip_bad_rows,
        show_progress: !args.output.quiet,
        ..ReadOptions::default()
    }
}

fn ignored(columns: &[&str]) -> String {
    match columns.is_empty() {
        true => String::new(),
        false => {
            format!("; ignored: {}", data::list(&columns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
