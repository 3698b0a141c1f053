//! One program of the report, run with a limit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a running program is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// One program of the report.
pub struct Part {
    pub name: String,
    /// Seconds after which it is stopped.
    pub limit: u64,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Where it runs; made first. Programs side by side do not share a cache of kernels.
    pub folder: PathBuf,
    /// A part that is right if its program fails and says this on stderr.
    pub fails_with: Option<&'static str>,
}

/// What became of a part.
pub struct Outcome {
    pub seconds: f64,
    /// None if it was stopped at its limit.
    pub status: Option<ExitStatus>,
    pub out: String,
    pub err: String,
}

impl Part {
    /// What the report says of an outcome: "done", or why it is not.
    pub fn verdict(&self, outcome: &Outcome) -> String {
        match (outcome.status, self.fails_with) {
            (None, _) => format!("stopped at its limit of {} s", self.limit),
            (Some(status), None) if status.success() => "done".into(),
            (Some(status), None) => format!("FAILED ({status})"),
            (Some(status), Some(_)) if status.success() => "FAILED (it was expected to fail)".into(),
            (Some(status), Some(text)) if status.code() == Some(1) && outcome.err.contains(text) => "done".into(),
            (Some(status), Some(text)) => format!("FAILED ({status}; expected exit status 1 and \"{text}\")"),
        }
    }

    /// Runs the program to its end or its limit; only a program that cannot be started is an error.
    pub fn run(&self) -> Result<Outcome> {
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        let [out, err] =
            ["out", "err"].map(|end| self.folder.join(format!("{}.{end}", self.name.replace([' ', '/'], "-"))));
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.folder).env("NODEVICE_SELECT", "1").stdin(Stdio::null());
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if began.elapsed() >= Duration::from_secs(self.limit) {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(PAUSE);
        };
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Outcome { seconds: began.elapsed().as_secs_f64(), status, out: read(&out)?, err: read(&err)? })
    }
}
