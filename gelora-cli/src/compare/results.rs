//! results.jsonl: the finished runs of a study, a line each.
//!
//! A line is written at once when its run is finished, so a compare that is killed loses only the runs in flight. A
//! last line that was cut off is dropped, and its run is made again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gelora_model::distributed::Processes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{fingerprint, output};

/// Name of the file with the runs.
pub const RESULTS_NAME: &str = "results.jsonl";
/// Names of the files with the runs that processes other than the first have finished.
pub const OF_OTHERS: &str = "results-*.jsonl";
/// Name of the file with the settings of the study.
pub const STUDY_NAME: &str = "study.json";

/// What a run was scored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A part cut from the training rows, to choose the learning rate.
    Choose,
    /// The held-out rows.
    Final,
}

/// What tells one run of a study from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub part: Part,
    pub seed: u64,
    pub arm: String,
    /// Bits of the learning rate.
    lr: u64,
}

impl Key {
    /// The key of a run.
    pub fn new(part: Part, arm: &str, lr: f64, seed: u64) -> Self {
        Self { part, seed, arm: arm.to_owned(), lr: lr.to_bits() }
    }
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`Study::id`].
    pub study: String,
    pub part: Part,
    pub arm: String,
    /// Peak learning rate.
    pub lr: f64,
    pub seed: u64,
    /// The mean rank of the modules of every step through the model, from the input up; 0 where there is no adapter.
    pub ranks: Vec<f64>,
    /// Parameters of the adapters.
    pub parameters: usize,
    /// Metrics by name; none if the training diverged.
    pub metrics: BTreeMap<String, f64>,
    /// Mean loss of the last pass over the training rows; None if the training diverged.
    pub train_loss: Option<f64>,
    /// Seconds of the training.
    pub train_seconds: f64,
    /// Seconds of the measurement behind the ranks; 0 without one.
    pub measure_seconds: f64,
}

impl RunResult {
    pub fn key(&self) -> Key {
        Key::new(self.part, &self.arm, self.lr, self.seed)
    }

    /// The run with ten digits of every measured number: so many come back from JSON as they were, and more may not.
    fn rounded(mut self) -> Self {
        let seconds = [&mut self.train_seconds, &mut self.measure_seconds];
        let measured = self.metrics.values_mut().chain(&mut self.train_loss).chain(&mut self.ranks);
        for value in measured.chain(seconds) {
            *value = format!("{value:.9e}").parse().unwrap_or(*value);
        }
        self
    }
}

/// What is the same in all runs of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    settings: BTreeMap<String, Value>,
    id: String,
}

impl Study {
    /// The study with these settings.
    pub fn new(settings: BTreeMap<String, Value>) -> Self {
        let json = serde_json::to_string(&settings).unwrap_or_default();
        let [high, low] = fingerprint::of([Some(json.as_bytes())]);
        Self { settings, id: format!("{high:08x}{low:08x}") }
    }

    /// A hash of the settings.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn settings(&self) -> &BTreeMap<String, Value> {
        &self.settings
    }

    /// Why a line of `file` with another id is not of this study: the first setting that differs, if its study.json is
    /// beside it.
    fn difference(&self, file: &Path) -> String {
        let other = fs::read_to_string(file.with_file_name(STUDY_NAME)).ok();
        let other: Option<BTreeMap<String, Value>> = other.and_then(|text| serde_json::from_str(&text).ok());
        let differs = |other: &BTreeMap<String, Value>| {
            let name =
                self.settings.keys().chain(other.keys()).find(|name| self.settings.get(*name) != other.get(*name))?;
            let shown = |settings: &BTreeMap<String, Value>| settings.get(name).unwrap_or(&Value::Null).to_string();
            Some(format!("{name} is {} there and {} here", shown(other), shown(&self.settings)))
        };
        other.as_ref().and_then(differs).unwrap_or_else(|| {
            format!(
                "expected the study {}, with the same {}",
                self.id,
                self.settings.keys().cloned().collect::<Vec<_>>().join(", ")
            )
        })
    }

    /// The runs in a file, and the bytes of its whole lines.
    ///
    /// # Errors
    /// If the file cannot be read, a line before the last is broken, or a line is of another study.
    fn read(&self, path: &Path) -> Result<(Vec<RunResult>, u64)> {
        let shown = path.display();
        let bytes = fs::read(path).with_context(|| format!("{shown}"))?;
        let (mut runs, mut whole) = (Vec::new(), 0);
        for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if !line.ends_with(b"\n") {
                break; // the line was cut off when the program was killed
            }
            whole += line.len() as u64;
            let run: RunResult = serde_json::from_slice(line)
                .map_err(|e| anyhow::anyhow!("{shown}: line {} is not a finished run: {e}", number + 1))?;
            if run.study != self.id {
                bail!("{shown}: line {} is of another study ({}): {}", number + 1, run.study, self.difference(path));
            }
            runs.push(run);
        }
        Ok((runs, whole))
    }
}

/// The finished runs of a study, in memory and in its file.
#[derive(Debug)]
pub struct Results {
    runs: BTreeMap<Key, RunResult>,
    path: PathBuf,
    /// None where nothing is written.
    file: Option<File>,
}

impl Results {
    /// The runs in a file, which need not be there.
    ///
    /// # Errors
    /// If the file cannot be read, a line before the last is broken, or a line is of another study.
    pub fn read(path: &Path, study: &Study) -> Result<Self> {
        let runs = if path.is_file() { study.read(path)?.0 } else { Vec::new() };
        // Of two lines with one key the first counts.
        let runs = runs.into_iter().rev().map(|run| (run.key(), run)).collect();
        Ok(Self { runs, path: path.to_owned(), file: None })
    }

    /// As [`Results::read`], and makes the file ready for more lines.
    ///
    /// # Errors
    /// As there, and if the file cannot be written or another process writes to it.
    pub fn open(path: &Path, study: &Study) -> Result<Self> {
        let shown = path.display();
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("{shown}"))?;
        if file.try_lock().is_err() {
            bail!("{shown}: another compare writes to it; choose another folder with --out, or wait");
        }
        let whole = study.read(path)?.1;
        file.set_len(whole).with_context(|| format!("{shown}"))?;
        Ok(Self { file: Some(file), ..Self::read(path, study)? })
    }

    /// Takes over the runs of another file.
    ///
    /// # Errors
    /// As [`Results::read`]; if there is no such file, or the own file cannot be written.
    pub fn join(&mut self, path: &Path, study: &Study) -> Result<()> {
        study.read(path)?.0.into_iter().try_for_each(|run| self.add(run))
    }

    /// Adds a finished run, in memory and as a line of the file, unless it is there.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, run: RunResult) -> Result<()> {
        if self.runs.contains_key(&run.key()) {
            return Ok(());
        }
        let run = run.rounded();
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&run)?;
            line.push(b'\n');
            // One call writes the whole line, so that lines of several threads cannot mix.
            let written = file.write_all(&line).and_then(|()| file.sync_data());
            written.with_context(|| format!("{}", self.path.display()))?;
        }
        self.runs.insert(run.key(), run);
        Ok(())
    }

    /// Opens the results of one of several processes. The first one has the file of the study, and takes over what
    /// processes of an earlier run left in theirs; each other has a file of its own until [`exchange`](Self::exchange).
    ///
    /// # Errors
    /// As [`Results::open`] and [`Results::join`]; if a process does not answer in time.
    pub fn open_shared(path: &Path, joined: &[PathBuf], study: &Study, processes: &Processes) -> Result<Self> {
        let lines = |results: &Self| -> Result<Vec<u8>> { to_lines(results.runs.values()) };
        if processes.is_first() {
            let mut results = Self::open(path, study)?;
            joined.iter().try_for_each(|path| results.join(path, study)).context("--join")?;
            for left in of_others(path) {
                results.join(&left, study)?;
                fs::remove_file(&left).with_context(|| format!("{}", left.display()))?;
            }
            processes.broadcast(lines(&results)?)?;
            return Ok(results);
        }
        let all = processes.broadcast(Vec::new())?;
        let own = path.with_file_name(OF_OTHERS.replace('*', &processes.rank().to_string()));
        let mut results = Self::open(&own, study)?;
        results.keep(&all)?;
        Ok(results)
    }

    /// Gives the results of each process to all. The first process writes them to the file of the study, and the others
    /// then empty theirs.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time, or the file cannot be written.
    pub fn exchange(&mut self, processes: &Processes) -> Result<()> {
        if processes.is_alone() {
            return Ok(());
        }
        let mine = to_lines(self.runs.values())?;
        // Every process is one part.
        for lines in processes.collect(processes.world(), vec![mine])? {
            match processes.is_first() {
                true => from_lines(&lines)?.into_iter().try_for_each(|run| self.add(run))?,
                false => self.keep(&lines)?,
            }
        }
        processes.barrier()?;
        if let Some(file) = self.file.as_ref().filter(|_| !processes.is_first()) {
            file.set_len(0).with_context(|| format!("{}", self.path.display()))?;
        }
        Ok(())
    }

    /// Removes the file of a process other than the first, whose runs the first one has.
    pub fn close(self, processes: &Processes) {
        if !processes.is_first() {
            // An empty file that stays does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Adds runs in memory alone.
    fn keep(&mut self, lines: &[u8]) -> Result<()> {
        for run in from_lines(lines)? {
            self.runs.entry(run.key()).or_insert(run);
        }
        Ok(())
    }

    /// A finished run.
    pub fn get(&self, key: &Key) -> Option<&RunResult> {
        self.runs.get(key)
    }
}

/// Runs as lines of a file.
fn to_lines<'a>(runs: impl IntoIterator<Item = &'a RunResult>) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for run in runs {
        lines.extend(serde_json::to_vec(run)?);
        lines.push(b'\n');
    }
    Ok(lines)
}

fn from_lines(lines: &[u8]) -> Result<Vec<RunResult>> {
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| Ok(serde_json::from_slice(line)?))
        .collect()
}

/// The files of other processes beside that of the study.
fn of_others(path: &Path) -> Vec<PathBuf> {
    let folder = path.parent().into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let is_one =
        |path: &PathBuf| path.file_name().is_some_and(|name| output::matches(OF_OTHERS, &name.to_string_lossy()));
    folder.map(|entry| entry.path()).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn study(batch_size: usize) -> Study {
        Study::new([("batch-size", json!(batch_size)), ("data", json!([1, 2]))].map(|(k, v)| (k.into(), v)).into())
    }

    fn run(study: &Study, seed: u64, lr: f64) -> RunResult {
        RunResult {
            study: study.id().into(),
            part: Part::Final,
            arm: "uniform".into(),
            lr,
            seed,
            ranks: vec![4.0, 4.0],
            parameters: 1024,
            metrics: [("accuracy".into(), 2.0 / 3.0)].into(),
            train_loss: Some(0.5),
            train_seconds: 1.5,
            measure_seconds: 0.0,
        }
    }

    #[test]
    fn runs_come_back_as_they_were_and_duplicates_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, study) = (dir.path().join(RESULTS_NAME), study(32));
        let mut results = Results::open(&path, &study).unwrap();
        for seed in [0, 1, 0] {
            results.add(run(&study, seed, 3.1e-4)).unwrap();
        }
        assert!(Results::open(&path, &study).unwrap_err().to_string().contains("another compare"));
        drop(results);
        let again = Results::open(&path, &study).unwrap();
        assert_eq!(again.runs.len(), 2);
        let wanted = run(&study, 1, 3.1e-4).rounded();
        assert_eq!(wanted.metrics["accuracy"], 0.6666666667);
        assert_eq!(again.get(&wanted.key()), Some(&wanted));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_a_broken_line_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (path, study) = (dir.path().join(RESULTS_NAME), study(32));
        let line = |seed| serde_json::to_string(&run(&study, seed, 1e-3).rounded()).unwrap() + "\n";
        fs::write(&path, line(0) + &line(1)[..40]).unwrap();
        let mut results = Results::open(&path, &study).unwrap();
        assert_eq!(results.runs.len(), 1);
        results.add(run(&study, 2, 1e-3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line(0) + &line(2));
        fs::write(&path, line(0) + "{\n" + &line(1)).unwrap();
        let error = Results::read(&path, &study).unwrap_err().to_string();
        assert!(error.contains("results.jsonl: line 2 is not a finished run"), "{error}");
    }

    #[test]
    fn files_of_one_study_are_joined_and_those_of_another_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).join(RESULTS_NAME);
        for (name, batch_size, seeds) in [("a", 32, 0..3), ("b", 32, 2..5), ("c", 16, 0..1)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let study = study(batch_size);
            let mut results = Results::open(&at(name), &study).unwrap();
            seeds.into_iter().for_each(|seed| results.add(run(&study, seed, 1e-3)).unwrap());
        }
        let mine = study(32);
        let mut results = Results::open(&at("a"), &mine).unwrap();
        results.join(&at("b"), &mine).unwrap();
        assert_eq!(results.runs.len(), 5);
        drop(results);
        assert_eq!(Results::read(&at("a"), &mine).unwrap().runs.len(), 5);

        let refused = || Results::open(&at("a"), &mine).unwrap().join(&at("c"), &mine).unwrap_err().to_string();
        assert!(refused().contains("line 1 is of another study") && refused().contains("same batch-size, data"));
        let other = serde_json::to_string(study(16).settings()).unwrap();
        fs::write(at("c").with_file_name(STUDY_NAME), other).unwrap();
        assert!(refused().contains("batch-size is 16 there and 32 here"), "{}", refused());
    }
}
