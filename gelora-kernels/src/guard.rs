//! Settings of a thread under test: guards around outputs, and the tile shape of a launcher.
//!
//! A guarded run fills every output with NaN and fences it with guard values on both sides. A kernel that leaves a
//! value unwritten leaves a NaN, and a kernel that writes outside its output overwrites a guard.

use std::cell::Cell;
#[cfg(any(test, feature = "verify"))]
use std::thread::LocalKey;

/// The value that fences an output: a NaN that no computation produces.
pub(crate) const GUARD: f32 = f32::from_bits(0x7fc5_1ab1);
/// Number of guard values on each side of an output.
pub(crate) const GUARD_LEN: usize = 256;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))] // read by GPU launchers alone
    static SHAPE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Whether outputs of this thread are guarded.
pub(crate) fn guards_are_on() -> bool {
    GUARDED.get()
}

/// Runs `f` with every output tensor of this thread filled with NaN and fenced with guard values.
#[cfg(any(test, feature = "verify"))]
pub fn guarded<T>(f: impl FnOnce() -> T) -> T {
    let _restore = Restore::after_setting(&GUARDED, true);
    f()
}

/// The shape that GPU launchers of this thread must take, as an index into the launcher's list of shapes. None lets the
/// launcher choose.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn forced_shape() -> Option<usize> {
    SHAPE.get()
}

/// Runs `f` with [`forced_shape`] set to `shape`.
#[cfg(any(test, feature = "verify"))]
pub(crate) fn with_forced_shape<T>(shape: Option<usize>, f: impl FnOnce() -> T) -> T {
    let _restore = Restore::after_setting(&SHAPE, shape);
    f()
}

/// Resets a thread-local value to its old value when dropped.
#[cfg(any(test, feature = "verify"))]
struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);

#[cfg(any(test, feature = "verify"))]
impl<T: Copy> Restore<T> {
    fn after_setting(key: &'static LocalKey<Cell<T>>, value: T) -> Self {
        Self(key, key.replace(value))
    }
}

#[cfg(any(test, feature = "verify"))]
impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}
