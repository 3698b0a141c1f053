//! Failures outside of any call: errors that a driver reports by callback, and panics of CubeCL's threads.
//!
//! CubeCL 0.10 allocates, compiles and launches in a thread of its own. It catches panics there (a failed allocation, a
//! kernel that cannot be expanded) and goes on: launches that need the buffer are skipped, and reads return stale
//! memory. So a panic hook keeps the first failure of each kind of device, and everything that waits for a device
//! returns it.
//!

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use super::tally;
use crate::DeviceKind;

/// The length at which a message is cut, in characters.
const READABLE: usize = 300;

/// A failure of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// An allocation failed.
    OutOfMemory {
        /// Bytes of the allocation, if the report says so.
        needed: Option<u64>,
        /// Bytes of live buffers at that time.
        in_use: Option<u64>,
    },
    /// Any other failure, as a message.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::OutOfMemory { .. } => f.write_str("out of memory"),
            Failure::Other(message) => f.write_str(message),
        }
    }
}

/// The first failure of each kind of device. The kind is None if the report does not tell.
static FIRST: Mutex<Vec<(Option<DeviceKind>, Failure)>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether a panic of this thread is a failure of a device and not of the program.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

fn first() -> MutexGuard<'static, Vec<(Option<DeviceKind>, Failure)>> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the first failure of each kind of device. Later failures are consequences of it.
pub(crate) fn record(kind: Option<DeviceKind>, failure: Failure) {
    // What is in use is counted now. Later, the tensors of the step that failed are freed.
    let failure = match failure {
        Failure::OutOfMemory { needed, in_use } => {
            Failure::OutOfMemory { needed, in_use: in_use.or_else(|| tally::live(kind?)) }
        }
        other => other,
    };
    let mut all = first();
    if !all.iter().any(|(failed, _)| *failed == kind) {
        all.push((kind, failure));
    }
}

/// The failure of a kind of device, if there was one. It stays until [`forget`].
pub(crate) fn of(kind: DeviceKind) -> Option<Failure> {
    first().iter().find(|(failed, _)| failed.is_none_or(|failed| failed == kind)).map(|(_, failure)| failure.clone())
}

/// Forgets all failures, so that a failed case does not fail the cases after it.
#[cfg(any(test, feature = "verify", feature = "cuda-compile"))]
#[allow(unreachable_pub)] // public with the feature cuda-compile
pub fn forget() {
    first().clear();
}

/// From now on keeps panics of CubeCL's threads, without printing them. Other panics are handled as before.
pub(crate) fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let file = info.location().map_or("", |location| location.file());
            if ASKING.get() || is_of_runner(thread::current().name(), file) {
                record(kind_of_file(file), panic_failure(info));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a call that CubeCL answers from its own thread. If that thread panics, the call panics too, and the answer is
/// None.
pub(crate) fn answer<T>(call: impl FnOnce() -> T) -> Option<T> {
    struct Asking(bool);
    impl Drop for Asking {
        fn drop(&mut self) {
            ASKING.set(self.0);
        }
    }
    let _asking = Asking(ASKING.replace(true));
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// Whether CubeCL runs a device in this thread: its name is like `DSU-0-0` or `DSD-0-0`, or it has no name and is in
/// CubeCL's code.
fn is_of_runner(thread: Option<&str>, file: &str) -> bool {
    match thread {
        Some(name) => name.starts_with("DSU-") || name.starts_with("DSD-"),
        None => ["cubecl-", "cudarc-", "wgpu-"].iter().any(|name| file.contains(name)),
    }
}

/// The kind of device whose runtime has this source file; None if the file does not tell.
fn kind_of_file(file: &str) -> Option<DeviceKind> {
    if ["cubecl-cuda-", "cudarc-"].iter().any(|name| file.contains(name)) {
        Some(DeviceKind::Cuda)
    } else if ["cubecl-wgpu-", "/wgpu-", "\\wgpu-"].iter().any(|name| file.contains(name)) {
        Some(DeviceKind::Wgpu)
    } else {
        None
    }
}

/// The failure of a panic.
fn panic_failure(info: &PanicHookInfo<'_>) -> Failure {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let place = info.location().map(|location| {
        let file = location.file().rsplit(['/', '\\']).next().unwrap_or_default();
        format!(" ({file}:{})", location.line())
    });
    text_failure(text.unwrap_or("a panic without a message"), &place.unwrap_or_default())
}

/// The failure of a panic with this message.
fn text_failure(text: &str, place: &str) -> Failure {
    // The message of `cubecl_runtime::server::IoError::BufferTooBig`, which some caller unwrapped.
    const TOO_BIG: &str = "can't allocate buffer of size: ";
    if let Some((_, size)) = text.split_once(TOO_BIG) {
        let digits: String = size.chars().take_while(char::is_ascii_digit).collect();
        return Failure::OutOfMemory { needed: digits.parse().ok(), in_use: None };
    }
    if text.contains("OUT_OF_MEMORY") {
        return Failure::OutOfMemory { needed: None, in_use: None };
    }
    let text = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(text);
    Failure::Other(format!("{}{place}", one_line(text)))
}

/// The beginning of a message, on one line and without its backtrace.
pub(crate) fn one_line(text: &str) -> String {
    let text = text.split("Backtrace").next().unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(READABLE) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_apart() {
        let text =
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 4096\nNo backtrace available";
        assert_eq!(text_failure(text, ""), Failure::OutOfMemory { needed: Some(4096), in_use: None });
        let text = "Can create a new stream.: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(text_failure(text, ""), Failure::OutOfMemory { needed: None, in_use: None });
        let text = "called `Result::unwrap()` on an `Err` value: a\n  reason\n\nBacktrace:\n 0: f";
        assert_eq!(text_failure(text, " (server.rs:7)"), Failure::Other("a reason (server.rs:7)".into()));
        let long = one_line(&"word ".repeat(1000));
        assert!(long.len() < READABLE + 10 && long.ends_with(" ..."), "{long}");
    }

    #[test]
    fn threads_of_devices_are_known_and_others_are_not() {
        assert!(is_of_runner(Some("DSD-0-0"), "src/anything.rs") && is_of_runner(Some("DSU-4-0"), ""));
        assert!(is_of_runner(None, "/registry/src/index/cubecl-runtime-0.10.0/src/stream/event.rs"));
        assert!(
            !is_of_runner(None, "gelora-model/src/lib.rs") && !is_of_runner(Some("main"), "cubecl-cuda-0.10.0/a.rs")
        );
        assert_eq!(kind_of_file("/r/cubecl-cuda-0.10.0/src/compute/server.rs"), Some(DeviceKind::Cuda));
        assert_eq!(kind_of_file("/r/wgpu-core-29.0.0/src/device.rs"), Some(DeviceKind::Wgpu));
        assert_eq!(kind_of_file("gelora-kernels/src/gpu.rs"), None);
    }
}
