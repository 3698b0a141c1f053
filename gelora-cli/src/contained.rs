//! Turns panics of the crates that read file formats into errors.
//!
//! The `parquet` crate checks the structure of a file but asserts the claims of its pages: a damaged byte there, or a
//! column type that its record API does not support, panics (parquet 58, found by flipping each byte of a small file).

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use anyhow::{Result, bail};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `read` and turns a panic into an error that names the file. The panic's report is not printed to stderr.
///
/// # Errors
/// Returns the errors of `read`, and an error if it panics.
pub fn contained<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                report(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    // Unwind safety: state that `read` leaves half done is dropped with its result and never read after a panic.
    let done = panic::catch_unwind(AssertUnwindSafe(read));
    CONTAINED.set(outer);
    match done {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let why = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("its reader failed");
            bail!("{}: damaged, or of a kind that cannot be read: {why}", path.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_results_pass() {
        let path = Path::new("a.parquet");
        let message = contained::<()>(path, || panic!("level 129")).unwrap_err().to_string();
        assert_eq!(message, "a.parquet: damaged, or of a kind that cannot be read: level 129");
        assert_eq!(contained(path, || Ok(3)).unwrap(), 3);
        assert_eq!(contained::<()>(path, || bail!("no")).unwrap_err().to_string(), "no");
    }
}
