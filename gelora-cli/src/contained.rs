//! Panics of a file format's crate made into errors.
//!
//! The `parquet` crate checks a file's structure but asserts what its pages claim: a damaged byte there, or a column type
//! that its record API does not know, panics (parquet 58, found by flipping each byte of a small file).

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use anyhow::{Result, bail};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `read` and turns its panic into an error that names the file, without the panic's report on stderr.
///
/// # Errors
/// Those of `read`, and if it panics.
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
    // Nothing that `read` leaves half done is looked at after a panic: its result is dropped with it.
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
