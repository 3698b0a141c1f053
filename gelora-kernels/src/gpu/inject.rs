//! Failures on purpose: `GELORA_INJECT=out-of-memory:N` or `panic:N` makes the N-th output of the process on a GPU fail, in
//! CubeCL's own thread and as it fails there, so that tests see what a run does then.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DeviceKind, Error, Result};

pub const VARIABLE: &str = "GELORA_INJECT";

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The allocation.
    OutOfMemory,
    /// Something else.
    Panic,
}

/// The fault, and the output that it happens at, counted from 1.
static ASKED: OnceLock<Option<(Fault, u64)>> = OnceLock::new();
static OUTPUTS: AtomicU64 = AtomicU64::new(0);

/// Reads the variable, once, when a device is opened.
///
/// # Errors
/// If it is set to something else.
pub fn prepare(kind: DeviceKind) -> Result<()> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let text = text.to_string_lossy();
    let fault = parse(&text).ok_or_else(|| {
        let reason = format!("{VARIABLE}: expected out-of-memory:N or panic:N with N from 1, got {text:?}");
        Error::Device { kind, reason }
    })?;
    ASKED.get_or_init(|| Some(fault));
    Ok(())
}

fn parse(text: &str) -> Option<(Fault, u64)> {
    let (name, at) = text.split_once(':')?;
    let fault = match name {
        "out-of-memory" => Fault::OutOfMemory,
        "panic" => Fault::Panic,
        _ => return None,
    };
    at.parse().ok().filter(|at| *at > 0).map(|at| (fault, at))
}

/// The fault of the output that is about to be allocated.
pub fn next() -> Option<Fault> {
    let (fault, at) = (*ASKED.get()?)?;
    (OUTPUTS.fetch_add(1, Ordering::Relaxed) + 1 == at).then_some(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse() {
        assert_eq!(parse("out-of-memory:12"), Some((Fault::OutOfMemory, 12)));
        assert_eq!(parse("panic:1"), Some((Fault::Panic, 1)));
        assert!(["panic", "panic:0", "panic:x", "fire:1", ""].iter().all(|text| parse(text).is_none()));
    }
}
