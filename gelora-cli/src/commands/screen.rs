//! Shows the events of a run in progress: progress bars, notes, and the marks of `--profile`.

use gelora_model::{Event, Work};

use crate::profile::mark;
use crate::ui::{self, Progress};

/// Displays the events of a measurement, a training or an evaluation.
#[derive(Default)]
pub struct Screen {
    quiet: bool,
    /// The bar of the work in progress.
    bar: Option<(Work, Progress)>,
}

impl Screen {
    /// Returns a screen, which shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Displays an event.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            // Evaluations during a training have no separate bar.
            Event::Began { work, units } if self.bar.is_none() => {
                self.bar = Some((work, Progress::new(self.quiet, work.name(), units as u64)));
            }
            Event::Advanced { units } => {
                if let Some((_, bar)) = self.bar.as_ref().filter(|(work, _)| *work != Work::Training) {
                    bar.inc(units as u64);
                }
            }
            Event::Finished { work } => {
                if let Some((_, bar)) = self.bar.take_if(|(work_of_bar, _)| *work_of_bar == work) {
                    bar.finish();
                }
                match work {
                    Work::HiddenStates => mark("hidden states"),
                    Work::Dimensions => mark("dimensions"),
                    _ => {}
                }
            }
            Event::CacheHit => {
                ui::note(self.quiet, "hidden states: as measured before (--no-cache runs the model again)");
                mark("hidden states");
            }
            Event::Warning(text) => ui::warn(text),
            Event::Remark(text) => ui::note(self.quiet, text),
            Event::Step(record) => {
                if let Some((_, bar)) = &self.bar {
                    bar.message(format!("loss {:.4}", record.loss));
                    bar.inc(1);
                }
            }
            Event::Evaluated { .. } | Event::Best(_) => ui::note(self.quiet, event.to_string()),
            _ => {}
        }
    }
}
