//! A team of threads for regions of a few microseconds, as the products of one token have them.
//!
//! Threads of rayon's pool go to sleep between such regions, and waking one takes longer than a region. The threads of
//! the team wait for the next region without sleeping for [`AWAKE`]. A region never waits for a thread that sleeps: it
//! ends when those that joined it are done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread of the team waits for the next region before it sleeps.
const AWAKE: Duration = Duration::from_millis(1);
/// Turns of the waiting loop between looks at the clock.
const TURNS: usize = 256;

/// What every member of a region calls once.
type Work<'a> = &'a (dyn Fn() + Sync);

/// Bits of the state: the number of members that joined the open region, whether a region is open, and the number of
/// the region.
const MEMBER: usize = 1;
const MEMBERS: usize = (1 << 16) - 1;
const OPEN: usize = 1 << 16;
const REGION: usize = 1 << 17;

struct Team {
    state: AtomicUsize,
    /// The work of the open region.
    work: Mutex<Option<Work<'static>>>,
    panicked: AtomicBool,
    /// Held by the thread whose region is open.
    owner: Mutex<()>,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `work` on this thread and on those of the team that are free, and returns when all calls have returned. The
/// calls share the tasks of the region among themselves: one call alone must do them all.
pub(crate) fn run(work: Work<'_>) {
    let Some(team) = team() else { return work() };
    // A second region at the same time, or one inside another, has no team.
    let Ok(_owner) = team.owner.try_lock() else { return work() };
    team.open(work);
    let own = catch_unwind(AssertUnwindSafe(work));
    team.close();
    if let Err(panic) = own {
        std::panic::resume_unwind(panic);
    }
    assert!(!team.panicked.swap(false, Ordering::SeqCst), "a thread of the team panicked");
}

/// The team of this process: as many threads as rayon's pool has, this one included. None if that is one.
fn team() -> Option<&'static Team> {
    static TEAM: OnceLock<Option<&'static Team>> = OnceLock::new();
    *TEAM.get_or_init(|| {
        let others = rayon::current_num_threads().min(MEMBERS).checked_sub(1).filter(|others| *others > 0)?;
        let team: &'static Team = Box::leak(Box::new(Team {
            state: AtomicUsize::new(0),
            work: Mutex::new(None),
            panicked: AtomicBool::new(false),
            owner: Mutex::new(()),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        }));
        let started = (0..others).filter(|i| {
            let thread = thread::Builder::new().name(format!("team {i}"));
            thread.spawn(|| team.serve()).is_ok()
        });
        (started.count() > 0).then_some(team)
    })
}

impl Team {
    fn open(&self, work: Work<'_>) {
        // SAFETY: the work is called by members alone, and `close` returns only when the last of them has left.
        let work = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        *lock(&self.work) = Some(work);
        let region = self.state.load(Ordering::SeqCst) / REGION;
        self.state.store(region.wrapping_add(1).wrapping_mul(REGION) | OPEN, Ordering::SeqCst);
        // Threads that sleep come to a later region.
        if *lock(&self.sleepers) > 0 {
            self.wake.notify_all();
        }
    }

    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) & MEMBERS > 0 {
            std::hint::spin_loop();
        }
        *lock(&self.work) = None;
    }

    /// Joins one region after the other.
    fn serve(&self) {
        let mut last = 0;
        loop {
            let state = self.wait(last);
            last = state / REGION;
            // Join, unless the region was closed meanwhile.
            if self.state.compare_exchange(state, state + MEMBER, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                // Another member joined or the region was closed: look again.
                last = last.wrapping_sub(1);
                continue;
            }
            let work = *lock(&self.work);
            if let Some(work) = work
                && catch_unwind(AssertUnwindSafe(work)).is_err()
            {
                self.panicked.store(true, Ordering::SeqCst);
            }
            self.state.fetch_sub(MEMBER, Ordering::SeqCst);
        }
    }

    /// Waits for an open region other than the last. Returns the state.
    fn wait(&self, last: usize) -> usize {
        let is_next = |state: usize| state & OPEN > 0 && state / REGION != last;
        let mut began = Instant::now();
        loop {
            for _ in 0..TURNS {
                let state = self.state.load(Ordering::SeqCst);
                if is_next(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() > AWAKE {
                let mut sleepers = lock(&self.sleepers);
                // A region that opened before the lock was taken would not wake this thread.
                if !is_next(self.state.load(Ordering::SeqCst)) {
                    *sleepers += 1;
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                    *sleepers -= 1;
                }
                drop(sleepers);
                began = Instant::now();
            }
        }
    }
}

/// Calls `f(index, chunk)` on chunks of `len` values of `out`, on the team. The last chunk may be shorter.
pub(crate) fn for_chunks(out: &mut [f32], len: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    share(out.chunks_mut(len).enumerate(), |(index, chunk)| f(index, chunk));
}

/// Calls `f` on items that cost as much as `work` values each, on the team if all together are worth it.
pub(crate) fn for_each<T: Send>(items: Vec<T>, work: usize, f: impl Fn(T) + Sync) {
    if items.len().saturating_mul(work) < super::GRAIN {
        return items.into_iter().for_each(f);
    }
    share(items.into_iter(), f);
}

/// Calls `f` on all items. The members of a region take one after the other.
fn share<I: ExactSizeIterator + Send>(items: I, f: impl Fn(I::Item) + Sync) {
    if items.len() <= 1 {
        return items.for_each(f);
    }
    let items = Mutex::new(items);
    run(&|| {
        loop {
            let next = lock(&items).next();
            let Some(item) = next else { return };
            f(item);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_visited_once_in_many_regions_from_several_threads() {
        thread::scope(|scope| {
            for t in 0..3 {
                scope.spawn(move || {
                    for round in 0..3000 {
                        let mut out = vec![0.0; 1 + (round * 7 + t) % 40];
                        for_chunks(&mut out, 3, |index, chunk| {
                            for (i, value) in chunk.iter_mut().enumerate() {
                                *value += (index * 3 + i) as f32;
                            }
                        });
                        assert!(out.iter().enumerate().all(|(i, value)| *value == i as f32), "{out:?}");
                        if round % 1000 == 0 {
                            thread::sleep(2 * AWAKE); // the team falls asleep
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_region_inside_a_region_and_a_panic_end() {
        let mut out = vec![0.0; 8];
        for_chunks(&mut out, 1, |index, chunk| {
            let mut inner = vec![0.0; 4];
            for_chunks(&mut inner, 1, |i, inner| inner[0] = (index + i) as f32);
            chunk[0] = inner.iter().sum();
        });
        assert_eq!(out, [6.0, 10.0, 14.0, 18.0, 22.0, 26.0, 30.0, 34.0]);
        let panicked = catch_unwind(|| {
            for_chunks(&mut [0.0; 64], 1, |index, _| assert!(index != 17, "on purpose"));
        });
        assert!(panicked.is_err());
        for_chunks(&mut out, 1, |index, chunk| chunk[0] = index as f32);
        assert_eq!(out[7], 7.0);
    }
}
