//! Threads of one process in the place of processes, with a simulated link between them: for tests, and for estimates
//! of larger clusters.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::Engine;
use crate::{Error, Result};

/// A simulated link. An all-gather of n bytes by each of W processes takes (W - 1) (delay + n / bandwidth), as on a
/// ring, where each process sends W - 1 times to its neighbor. A broadcast of n bytes takes the time of log2(W)
/// messages, rounded up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Time from sending a message to its arrival.
    pub delay: Duration,
    /// Bytes per second.
    pub bandwidth: f64,
}

impl Link {
    /// A link that takes no time.
    pub const INSTANT: Self = Self { delay: Duration::ZERO, bandwidth: f64::INFINITY };

    /// Time of a message.
    fn message(&self, bytes: usize) -> Duration {
        self.delay + Duration::try_from_secs_f64(bytes as f64 / self.bandwidth).unwrap_or_default()
    }

    /// Time of an all-gather of `bytes` bytes by each of `world` processes.
    pub fn all_gather(&self, world: usize, bytes: usize) -> Duration {
        self.message(bytes) * (world.saturating_sub(1)) as u32
    }

    /// Time of a broadcast.
    pub fn broadcast(&self, world: usize, bytes: usize) -> Duration {
        self.message(bytes) * world.max(1).next_power_of_two().ilog2()
    }
}

/// What the threads share.
#[derive(Debug)]
struct Board {
    round: Mutex<Round>,
    changed: Condvar,
    world: usize,
    link: Link,
    timeout: Duration,
}

/// A call that all threads make.
#[derive(Debug, Default)]
struct Round {
    /// Number of finished rounds.
    number: u64,
    /// What each thread gave so far.
    given: Vec<Option<Vec<u8>>>,
    /// The bytes of all threads in the last finished round.
    gathered: Arc<Vec<Vec<u8>>>,
}

/// The engine of one thread.
#[derive(Clone, Debug)]
pub struct Thread {
    board: Arc<Board>,
    rank: usize,
}

/// Makes the engines of `world` threads. A call fails if the others take longer than `timeout`.
pub fn threads(world: usize, link: Link, timeout: Duration) -> Vec<Thread> {
    let round = Round { given: vec![None; world], ..Round::default() };
    let board = Arc::new(Board { round: Mutex::new(round), changed: Condvar::new(), world, link, timeout });
    (0..world).map(|rank| Thread { board: Arc::clone(&board), rank }).collect()
}

impl Thread {
    /// Gives bytes and waits for those of all threads.
    fn exchange(&self, bytes: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>> {
        let Board { round, changed, world, timeout, .. } = &*self.board;
        let lock = |poisoned: std::sync::PoisonError<MutexGuard<'_, Round>>| poisoned.to_string();
        let mut round = round.lock().map_err(lock).map_err(Error::Process)?;
        let number = round.number;
        round.given[self.rank] = Some(bytes);
        if round.given.iter().all(Option::is_some) {
            round.gathered = Arc::new(round.given.iter_mut().filter_map(Option::take).collect());
            round.number += 1;
            changed.notify_all();
            return Ok(Arc::clone(&round.gathered));
        }
        let (round, waited) = changed
            .wait_timeout_while(round, *timeout, |round| round.number == number)
            .map_err(|poisoned| Error::Process(poisoned.to_string()))?;
        if waited.timed_out() {
            let missing: Vec<String> =
                (0..*world).filter(|thread| round.given[*thread].is_none()).map(|thread| thread.to_string()).collect();
            return Err(Error::Process(format!("process {} gave no answer for {timeout:?}", missing.join(", "))));
        }
        Ok(Arc::clone(&round.gathered))
    }
}

impl Engine for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.board.world
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let time = self.board.link.all_gather(self.board.world, bytes.len());
        let gathered = self.exchange(bytes)?;
        wait(time);
        Ok(gathered.concat())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let time = self.board.link.broadcast(self.board.world, bytes.len());
        let gathered = self.exchange(bytes)?;
        wait(time);
        Ok(gathered.first().cloned().unwrap_or_default())
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(Vec::new())?;
        wait(self.board.link.broadcast(self.board.world, 0) * 2);
        Ok(())
    }
}

/// Waits for the time of the simulated link, which may be shorter than the system's sleep.
fn wait(time: Duration) {
    let began = Instant::now();
    if time > Duration::from_millis(1) {
        std::thread::sleep(time - Duration::from_micros(100));
    }
    while began.elapsed() < time {
        std::thread::yield_now();
    }
}
