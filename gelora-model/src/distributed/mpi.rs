//! The engine of MPI (Open MPI, MPICH). MPI is called by a thread of its own: only the thread that opened it may, and a
//! process that waits for another can then give up after a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Engine;
use crate::{Error, Result};

/// Largest number of bytes of one call; MPI counts in i32.
const PIECE: usize = 64 << 20;
/// Time during which a call is asked for its end without a pause.
const EAGER: Duration = Duration::from_micros(100);
/// Longest pause between two questions.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// The processes that an MPI launcher started.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    world: usize,
    timeout: Duration,
    /// Set to end all processes.
    aborts: Arc<AtomicBool>,
    thread: Mutex<Option<Worker>>,
}

/// The thread that calls MPI.
#[derive(Debug)]
struct Worker {
    calls: Sender<Call>,
    answers: Receiver<Vec<u8>>,
    thread: JoinHandle<()>,
}

/// A call of MPI.
enum Call {
    AllGather(Vec<u8>),
    Broadcast(Vec<u8>),
    Barrier,
}

impl Mpi {
    /// Opens MPI. Every later call fails if the other processes take longer than `timeout`.
    ///
    /// # Errors
    /// Returns an error if MPI is open already or no thread can be started.
    pub fn open(timeout: Duration) -> Result<Self> {
        let (calls, asked) = channel();
        let (answering, answers) = channel();
        let (opening, opened) = channel();
        let aborts = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&aborts);
        let serve = move || {
            let threading = mpi::Threading::Funneled;
            let Some((universe, _)) = mpi::initialize_with_threading(threading) else { return };
            let world = universe.world();
            if opening.send((world.rank() as usize, world.size() as usize)).is_ok() {
                serve(&world, &asked, &answering, &stop);
            }
            // `universe` is dropped here, which closes MPI.
        };
        let thread = thread::Builder::new().name("mpi".into()).spawn(serve);
        let thread = thread.map_err(|e| Error::Process(format!("the thread of MPI cannot be started: {e}")))?;
        let (rank, world) = opened.recv().map_err(|_| Error::Process("MPI cannot be opened".into()))?;
        let thread = Mutex::new(Some(Worker { calls, answers, thread }));
        Ok(Self { rank, world, timeout, aborts, thread })
    }

    fn call(&self, call: Call) -> Result<Vec<u8>> {
        let closed = || Error::Process("MPI was closed".into());
        let worker = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = worker.as_ref().ok_or_else(closed)?;
        worker.calls.send(call).map_err(|_| closed())?;
        worker.answers.recv_timeout(self.timeout).map_err(|problem| match problem {
            RecvTimeoutError::Timeout => Error::Process(format!(
                "no answer from another process for {} s (--dist-timeout): it hangs, or has lost its connection",
                self.timeout.as_secs_f64()
            )),
            RecvTimeoutError::Disconnected => closed(),
        })
    }
}

impl Engine for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.call(Call::AllGather(bytes))
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.call(Call::Broadcast(bytes))
    }

    fn barrier(&self) -> Result<()> {
        self.call(Call::Barrier).map(|_| ())
    }

    fn abort(&self) {
        self.aborts.store(true, Ordering::Release);
        // The thread sees the flag while it waits for MPI; else it is asked.
        if let Ok(worker) = self.thread.try_lock()
            && let Some(worker) = worker.as_ref()
        {
            let _ = worker.calls.send(Call::Barrier);
        }
        thread::sleep(Duration::from_secs(2));
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let worker = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Worker { calls, answers, thread }) = worker {
            drop((calls, answers));
            let _ = thread.join();
        }
    }
}

/// Makes calls until there are no more.
fn serve(world: &SimpleCommunicator, calls: &Receiver<Call>, answers: &Sender<Vec<u8>>, aborts: &AtomicBool) {
    for call in calls {
        if aborts.load(Ordering::Acquire) {
            world.abort(1);
        }
        let answer = match call {
            Call::AllGather(bytes) => all_gather(world, &bytes, aborts),
            Call::Broadcast(mut bytes) => {
                for piece in bytes.chunks_mut(PIECE) {
                    mpi::request::scope(|scope| {
                        let running = world.process_at_rank(0).immediate_broadcast_into(scope, piece);
                        finish(world, running, aborts);
                    });
                }
                bytes
            }
            Call::Barrier => {
                finish::<(), StaticScope>(world, world.immediate_barrier(), aborts);
                Vec::new()
            }
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// Gathers in pieces that MPI can count.
fn all_gather(world: &SimpleCommunicator, bytes: &[u8], aborts: &AtomicBool) -> Vec<u8> {
    let size = world.size() as usize;
    let gather = |piece: &[u8], all: &mut [u8]| {
        mpi::request::scope(|scope| {
            let running = world.immediate_all_gather_into(scope, piece, all);
            finish(world, running, aborts);
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

/// Waits for the end of a call. Processes may share a core, so the waiting one leaves it after a moment.
fn finish<'a, D: ?Sized, S: mpi::request::Scope<'a>>(
    world: &SimpleCommunicator,
    mut running: Request<'a, D, S>,
    aborts: &AtomicBool,
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
            waited => thread::sleep((waited / 16).min(LONGEST_PAUSE)),
        }
    }
}
