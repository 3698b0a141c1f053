//! Scratch memory of one call. Each thread keeps it for its next calls.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The most buffers that a thread keeps, and the most bytes of a kept buffer.
const KEPT: usize = 8;
const LARGEST: usize = 8 << 20;
/// Cache lines of a small buffer, 16 KiB: a smaller request may take one.
const SMALL: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// f32 values that begin on a cache line. Their initial values are unspecified, but initialized.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// Scratch memory for `len` values.
    pub(crate) fn new(len: usize) -> Self {
        let needed = len.div_ceil(16);
        let mut lines = FREE.with_borrow_mut(|free| {
            // The smallest buffer that is large enough, unless it is more than four times too large.
            let fits = |lines: &Vec<Line>| (needed..=needed.max(SMALL).saturating_mul(4)).contains(&lines.capacity());
            let best = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].capacity());
            best.map(|i| free.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 16]));
        }
        Self { lines, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.capacity() * size_of::<Line>() <= LARGEST {
            // A thread that is ending has no list any more.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() == KEPT {
                    free.remove(0);
                }
                free.push(lines);
            });
        }
    }
}
