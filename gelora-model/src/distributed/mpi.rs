//! The engine of MPI (Open MPI, MPICH). Before bytes move, a process waits for the others at a barrier that it asks for
//! its end with growing pauses, so that it leaves its core to them. The calls that move bytes then have nobody to wait
//! for, and have short pauses. No call blocks, so that a process that fails can end all at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::worker::{Library, Worker, engine};
use crate::{Error, Result};

/// Largest number of bytes of one call; MPI counts in i32.
const PIECE: usize = 64 << 20;
/// Time during which a call is asked for its end without a pause.
const EAGER: Duration = Duration::from_micros(100);
/// Longest pause between two questions while a process waits for others, and while bytes move.
const WAITING: Duration = Duration::from_millis(1);
const MOVING: Duration = Duration::from_micros(20);

/// The processes that an MPI launcher started.
#[derive(Debug)]
pub struct Mpi(Worker);

engine!(Mpi);

impl Mpi {
    /// Opens MPI. This, and every later call, fails if the other processes take longer than `timeout`.
    ///
    /// # Errors
    /// Returns an error if MPI is open already or no thread can be started.
    pub fn open(timeout: Duration) -> Result<Self> {
        let open = |aborts| match mpi::initialize_with_threading(mpi::Threading::Funneled) {
            None => Err(Error::Process("MPI is open already".into())),
            Some((universe, _)) => Ok(Opened { world: universe.world(), _universe: universe, aborts }),
        };
        Worker::start(timeout, true, open).map(Self)
    }
}

/// MPI, until it is dropped.
struct Opened {
    world: SimpleCommunicator,
    _universe: Universe,
    /// Set to end all processes.
    aborts: Arc<AtomicBool>,
}

impl Library for Opened {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.barrier()?;
        Ok(all_gather(&self.world, &bytes, &self.aborts))
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.barrier()?;
        for piece in bytes.chunks_mut(PIECE) {
            mpi::request::scope(|scope| {
                let running = self.world.process_at_rank(0).immediate_broadcast_into(scope, piece);
                finish(&self.world, running, &self.aborts, MOVING);
            });
        }
        Ok(bytes)
    }

    fn barrier(&self) -> Result<()> {
        finish::<(), StaticScope>(&self.world, self.world.immediate_barrier(), &self.aborts, WAITING);
        Ok(())
    }

    fn abort(&self) {
        self.world.abort(1);
    }
}

/// Gathers in pieces that MPI can count.
fn all_gather(world: &SimpleCommunicator, bytes: &[u8], aborts: &AtomicBool) -> Vec<u8> {
    let size = world.size() as usize;
    let gather = |piece: &[u8], all: &mut [u8]| {
        mpi::request::scope(|scope| {
            let running = world.immediate_all_gather_into(scope, piece, all);
            finish(world, running, aborts, MOVING);
        });
    };
    let mut all = vec![0; bytes.len() * size];
    // The pieces of one call stand side by side in what is received, so that W pieces count too.
    let most = (PIECE / size).max(1);
    if bytes.len() <= most {
        gather(bytes, &mut all);
        return all;
    }
    let mut received = vec![0; most * size];
    for (i, piece) in bytes.chunks(most).enumerate() {
        let received = &mut received[..piece.len() * size];
        gather(piece, received);
        for (rank, from) in received.chunks(piece.len()).enumerate() {
            let start = rank * bytes.len() + i * most;
            all[start..start + from.len()].copy_from_slice(from);
        }
    }
    all
}

/// Waits for the end of a call. It is asked with pauses that grow to `longest`: processes may share a core.
fn finish<'a, D: ?Sized, S: mpi::request::Scope<'a>>(
    world: &SimpleCommunicator,
    mut running: Request<'a, D, S>,
    aborts: &AtomicBool,
    longest: Duration,
) {
    let began = Instant::now();
    loop {
        running = match running.test() {
            Ok(_) => return,
            Err(running) => running,
        };
        if aborts.load(Ordering::Acquire) {
            world.abort(1);
        }
        match began.elapsed() {
            waited if waited < EAGER => thread::yield_now(),
            waited => thread::sleep((waited / 16).min(longest)),
        }
    }
}
