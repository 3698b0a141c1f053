//! Memory for the time of one call, kept by each thread for the next.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Buffers that a thread keeps, and bytes of the largest that it keeps.
const KEPT: usize = 8;
const LARGEST: usize = 8 << 20;
/// Lines that nobody misses: 16 KiB.
const SMALL: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// f32 values that begin on a cache line. What they hold at first is unspecified, but initialised.
pub struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// `len` values.
    pub fn new(len: usize) -> Self {
        let needed = len.div_ceil(16);
        let mut lines = FREE.with_borrow_mut(|free| {
            // The smallest that is large enough, and not so large that it would be missed.
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
            // While a thread ends there is no list any more.
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
