//! Failures that surface outside of any call: what a driver reports by callback, and panics of CubeCL's threads.
//!
//! CubeCL 0.10 allocates, compiles and launches in a thread of its own. What panics there (an allocation that fails, a kernel
//! that cannot be expanded) it catches, and goes on: launches that need the buffer are skipped, and reads return what memory
//! held before. A panic hook therefore keeps the first failure of each kind of device, and everything that waits for a device
//! returns it.

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use crate::DeviceKind;

/// Bytes of a message that are worth reading.
const READABLE: usize = 300;

/// What went wrong on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An allocation did not succeed.
    OutOfMemory {
        /// Its bytes, if whoever reported it knows.
        needed: Option<u64>,
    },
    /// Anything else, in words.
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

/// The first failure of each kind of device; no kind where the report does not tell.
static FIRST: Mutex<Vec<(Option<DeviceKind>, Failure)>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether a panic of this thread is a device's failure and not the program's.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

fn first() -> MutexGuard<'static, Vec<(Option<DeviceKind>, Failure)>> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the first failure of each kind of device: those after it are its consequences.
pub fn record(kind: Option<DeviceKind>, failure: Failure) {
    let mut all = first();
    if !all.iter().any(|(failed, _)| *failed == kind) {
        all.push((kind, failure));
    }
}

/// What was reported of a device, if anything was. A device that failed stays so until [`forget`].
pub fn of(kind: DeviceKind) -> Option<Failure> {
    first().iter().find(|(failed, _)| failed.is_none_or(|failed| failed == kind)).map(|(_, failure)| failure.clone())
}

/// Forgets all failures: what verify does between two cases, so that one that fails does not fail those after it.
pub fn forget() {
    first().clear();
}

/// Keeps panics of CubeCL's threads from now on, without printing them. Other panics are handled as before.
pub fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let file = info.location().map_or("", |location| location.file());
            if ASKING.get() || is_of_runner(thread::current().name(), file) {
                record(kind_of(file), of_panic(info));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a call that CubeCL answers from its own thread: if that one panics, the call panics too, and the answer is None.
pub fn answer<T>(call: impl FnOnce() -> T) -> Option<T> {
    struct Asking(bool);
    impl Drop for Asking {
        fn drop(&mut self) {
            ASKING.set(self.0);
        }
    }
    let _asking = Asking(ASKING.replace(true));
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// Whether a thread is one that CubeCL runs a device in: named `DSU-0-0` or `DSD-0-0`, or without a name and in CubeCL's code.
fn is_of_runner(thread: Option<&str>, file: &str) -> bool {
    match thread {
        Some(name) => name.starts_with("DSU-") || name.starts_with("DSD-"),
        None => ["cubecl-", "cudarc-", "wgpu-"].iter().any(|name| file.contains(name)),
    }
}

/// The kind of device whose runtime has this source file.
fn kind_of(file: &str) -> Option<DeviceKind> {
    if ["cubecl-cuda-", "cudarc-"].iter().any(|name| file.contains(name)) {
        Some(DeviceKind::Cuda)
    } else if ["cubecl-wgpu-", "/wgpu-", "\\wgpu-"].iter().any(|name| file.contains(name)) {
        Some(DeviceKind::Wgpu)
    } else {
        None
    }
}

fn of_panic(info: &PanicHookInfo<'_>) -> Failure {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let place = info.location().map(|location| {
        let file = location.file().rsplit(['/', '\\']).next().unwrap_or_default();
        format!(" ({file}:{})", location.line())
    });
    of_text(text.unwrap_or("a panic without a message"), &place.unwrap_or_default())
}

/// The failure that a panic's message means.
fn of_text(text: &str, place: &str) -> Failure {
    // `cubecl_runtime::server::IoError::BufferTooBig`, whatever unwrapped it.
    const TOO_BIG: &str = "can't allocate buffer of size: ";
    if let Some((_, size)) = text.split_once(TOO_BIG) {
        let digits: String = size.chars().take_while(char::is_ascii_digit).collect();
        return Failure::OutOfMemory { needed: digits.parse().ok() };
    }
    if text.contains("OUT_OF_MEMORY") {
        return Failure::OutOfMemory { needed: None };
    }
    let text = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(text);
    Failure::Other(format!("{}{place}", one_line(text)))
}

/// The beginning of a message, on one line and without a list of functions behind it.
pub fn one_line(text: &str) -> String {
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
        assert_eq!(of_text(text, ""), Failure::OutOfMemory { needed: Some(4096) });
        let text = "Can create a new stream.: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(of_text(text, ""), Failure::OutOfMemory { needed: None });
        let text = "called `Result::unwrap()` on an `Err` value: a\n  reason\n\nBacktrace:\n 0: f";
        assert_eq!(of_text(text, " (server.rs:7)"), Failure::Other("a reason (server.rs:7)".into()));
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
        assert_eq!(kind_of("/r/cubecl-cuda-0.10.0/src/compute/server.rs"), Some(DeviceKind::Cuda));
        assert_eq!(kind_of("/r/wgpu-core-29.0.0/src/device.rs"), Some(DeviceKind::Wgpu));
        assert_eq!(kind_of("gelora-kernels/src/gpu.rs"), None);
    }
}
