//! Injected faults: `GELORA_INJECT=out-of-memory:N` or `panic:N` makes the N-th output on a GPU fail. The fault happens
//! in CubeCL's own thread and in the same way as a real one, so tests see how a run handles it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DeviceKind, Error, Result};

pub(crate) const VARIABLE: &str = "GELORA_INJECT";

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The allocation fails.
    OutOfMemory,
    /// CubeCL's thread panics.
    Panic,
}

/// The fault and the number of the output that fails, counted from 1.
static ASKED: OnceLock<Option<(Fault, u64)>> = OnceLock::new();
static OUTPUTS: AtomicU64 = AtomicU64::new(0);

/// Reads the variable when the first device is opened.
///
/// # Errors
/// If the variable has an invalid value.
pub(crate) fn prepare(kind: DeviceKind) -> Result<()> {
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
    let (name, number) = text.split_once(':')?;
    let fault = match name {
        "out-of-memory" => Fault::OutOfMemory,
        "panic" => Fault::Panic,
        _ => return None,
    };
    number.parse().ok().filter(|number| *number > 0).map(|number| (fault, number))
}

/// The fault of the next output, if it must fail.
pub(crate) fn next() -> Option<Fault> {
    let (fault, number) = (*ASKED.get()?)?;
    (OUTPUTS.fetch_add(1, Ordering::Relaxed) + 1 == number).then_some(fault)
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
