//! Signals that ask a training to stop.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The signals, with their names: Ctrl-C, the request to end, and the warning that SLURM sends before a time limit.
#[cfg(unix)]
const SIGNALS: [(i32, &str); 3] =
    [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (signal_hook::consts::signal::SIGUSR1, "SIGUSR1")];
#[cfg(not(unix))]
const SIGNALS: [(i32, &str); 2] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM")];

/// Lets writes beyond the system's limit on the size of a file (`ulimit -f`) fail, as writes to a full disk do. Without
/// this, the signal of the limit would end the process without a message.
pub fn let_writes_fail() {
    #[cfg(unix)]
    {
        // A handler that does nothing: the write then returns an error. If the system refuses, nothing is lost.
        let _ = flag::register(signal_hook::consts::signal::SIGXFSZ, Arc::default());
    }
}

/// The last signal that a [`Signals`] received.
static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Whether this process was asked to end. A launcher does so when another process has ended.
pub fn is_terminated() -> bool {
    RECEIVED.get().is_some_and(|received| received.load(Ordering::Relaxed) == SIGTERM as usize)
}

/// A handler of [`SIGNALS`]. The first signal is recorded; a second one ends the process at once.
#[derive(Debug)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handler for the rest of the process.
    ///
    /// # Errors
    /// Returns an error if the system refuses.
    pub fn handle() -> Result<Self> {
        let signals = Self { stop: Arc::default(), received: Arc::default() };
        for (signal, name) in SIGNALS {
            let installed = flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signals.stop))
                .and_then(|_| flag::register(signal, Arc::clone(&signals.stop)))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&signals.received), signal as usize));
            installed.with_context(|| format!("{name} cannot be handled"))?;
        }
        RECEIVED.get_or_init(|| Arc::clone(&signals.received));
        Ok(signals)
    }

    /// Returns the flag that a signal sets.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Returns the error of a run that a signal stopped, with a description of what was kept.
    pub fn interrupted(&self, kept: String) -> Interrupted {
        // Another process of the same run may be the one that got the signal.
        let signal = match self.received.load(Ordering::Relaxed) as i32 {
            0 => SIGTERM,
            signal => signal,
        };
        Interrupted { signal, kept }
    }
}

/// A signal stopped the run.
#[derive(Debug)]
pub struct Interrupted {
    signal: i32,
    kept: String,
}

impl Interrupted {
    /// Returns 128 + the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    pub fn exit_code(&self) -> ExitCode {
        u8::try_from(128 + self.signal).map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SIGNALS.iter().find(|(signal, _)| *signal == self.signal).map_or("a signal", |(_, name)| name);
        write!(f, "{name}: {}", self.kept)
    }
}

impl std::error::Error for Interrupted {}
