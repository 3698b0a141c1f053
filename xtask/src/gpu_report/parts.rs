//! The report: the outcomes of its parts, written as the parts end.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::part::{Outcome, Part};
use super::plan::{LOSSES, Settings};
use crate::bench::losses;
use crate::say;

/// Lines of a part's output that the report quotes, if it printed no JSON.
const QUOTED: usize = 12;

/// The report's two files, written as parts end.
pub struct Report {
    markdown: File,
    lines: File,
    end: Instant,
    failed: Vec<String>,
}

impl Report {
    pub fn create(path: &Path, title: &str, end: Instant) -> Result<Self> {
        let create = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        let mut report =
            Self { markdown: create(path)?, lines: create(&path.with_extension("jsonl"))?, end, failed: Vec::new() };
        report.markdown.write_all(title.as_bytes())?;
        Ok(report)
    }

    /// Names of the parts that failed or were left out.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Runs parts at the same time: for checks, which need no quiet machine.
    pub fn side_by_side(&mut self, heading: &str, parts: Vec<Part>) -> Result<()> {
        writeln!(self.markdown, "## {heading}\n")?;
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for part in parts {
                let sender = sender.clone();
                scope.spawn(move || {
                    let outcome = part.run();
                    // The receiver outlives all senders.
                    let _ = sender.send((part, outcome));
                });
            }
            drop(sender);
            receiver.iter().try_for_each(|(part, outcome)| self.append(&part, outcome))
        })
    }

    /// Runs parts one after the other, as long as there is time.
    pub fn one_by_one(&mut self, heading: &str, parts: Vec<Part>) -> Result<()> {
        writeln!(self.markdown, "## {heading}\n")?;
        for part in parts {
            if Instant::now() >= self.end {
                writeln!(self.markdown, "- {}: left out, no time", part.name)?;
                self.failed.push(part.name);
                continue;
            }
            let outcome = part.run();
            self.append(&part, outcome)?;
        }
        Ok(())
    }

    fn append(&mut self, part: &Part, outcome: Result<Outcome>) -> Result<()> {
        let (verdict, seconds, text) = match outcome {
            Ok(outcome) => {
                let verdict = part.verdict(&outcome);
                let Outcome { seconds, out, err, .. } = outcome;
                let lines: Vec<&str> = out.lines().filter(|line| wanted(line)).collect();
                for line in &lines {
                    if let Ok(measured) = serde_json::from_str::<Value>(line) {
                        let line = json!({"part": part.name, "measured": measured});
                        writeln!(self.lines, "{line}")?;
                    }
                }
                let quoted = if lines.is_empty() { last(&err) } else { lines.join("\n") };
                (verdict, seconds, quoted)
            }
            Err(problem) => (format!("FAILED: {problem:#}"), 0.0, String::new()),
        };
        say(format!("{}: {verdict}, {seconds:.0} s", part.name));
        if verdict != "done" {
            self.failed.push(part.name.clone());
        }
        writeln!(self.lines, "{}", json!({"part": part.name, "verdict": verdict, "seconds": seconds}))?;
        writeln!(self.markdown, "### {}\n\n{verdict}, {seconds:.0} s\n", part.name)?;
        if !text.is_empty() {
            writeln!(self.markdown, "```\n{text}\n```\n")?;
        }
        Ok(())
    }

    /// The losses of the trainings among the checks, on the device beside the CPU.
    pub fn losses(&mut self, settings: &Settings) -> Result<()> {
        if settings.tokenizer.is_none() {
            return Ok(());
        }
        writeln!(self.markdown, "### Losses of ten steps beside the CPU's\n")?;
        for (name, _) in LOSSES {
            let of = |device: &str| losses(&settings.training(name, device).join("adapter/metrics.jsonl"));
            let line = match (of("cpu"), of(&settings.device.to_string())) {
                (Ok(cpu), Ok(device)) if cpu.len() == device.len() => {
                    let most = cpu.iter().zip(&device).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    let measured =
                        json!({"bench": "losses", "setting": name, "steps": cpu.len(), "largest_difference": most});
                    writeln!(self.lines, "{}", json!({"part": "losses", "measured": measured}))?;
                    format!("{name}: {} steps, largest difference {most:.1e}", cpu.len())
                }
                _ => {
                    self.failed.push(format!("losses {name}"));
                    format!("{name}: FAILED, a training left no whole log")
                }
            };
            say(format!("losses {line}"));
            writeln!(self.markdown, "- {line}")?;
        }
        writeln!(self.markdown)?;
        Ok(())
    }
}

/// Results, failures and the sum of a verification.
fn wanted(line: &str) -> bool {
    line.starts_with('{') || line.starts_with("FAILED") || line.contains(" passed, ")
}

/// The last lines of a text.
fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn shell(dir: &Path, name: &str, limit: u64, command: &str) -> Part {
        let args = ["-c", command].map(String::from).to_vec();
        Part { name: name.into(), limit, program: "/bin/sh".into(), args, folder: dir.join(name), fails_with: None }
    }

    #[test]
    #[cfg(unix)]
    fn a_part_that_fails_or_hangs_does_not_end_the_rest() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("report.md");
        let mut report = Report::create(&path, "# title\n", Instant::now() + Duration::from_secs(60))?;
        let parts = vec![
            shell(dir.path(), "fails", 10, "echo broken >&2; exit 3"),
            shell(dir.path(), "hangs", 1, "exec sleep 60"),
            shell(dir.path(), "measures", 10, "echo '{\"bench\":\"x\",\"ms\":1}'; echo noise"),
        ];
        report.one_by_one("Timings", parts)?;
        let no_memory = |command| Part { fails_with: Some("needs 9 GB"), ..shell(dir.path(), command, 10, command) };
        let commands = ["echo needs 9 GB >&2; exit 1", "echo needs 9 GB >&2; exit 101", "exit 1", "true"];
        report.one_by_one("Out of memory", commands.map(no_memory).into())?;
        report.end = Instant::now();
        report.one_by_one("Late", vec![shell(dir.path(), "late", 10, "true")])?;
        assert_eq!(report.failed(), ["fails", "hangs", commands[1], commands[2], commands[3], "late"]);
        let markdown = fs::read_to_string(&path)?;
        for text in ["broken", "stopped at its limit of 1 s", "{\"bench\":\"x\",\"ms\":1}", "late: left out"] {
            assert!(markdown.contains(text), "{text} in {markdown}");
        }
        assert!(!markdown.contains("noise"));
        let lines = fs::read_to_string(path.with_extension("jsonl"))?;
        assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{lines}");
        assert!(lines.contains("\"measured\":{\"bench\":\"x\",\"ms\":1}"), "{lines}");
        Ok(())
    }
}
