//! A thread that makes the calls of a library, because only one thread may make them, or because they may never return.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Error, Result};

/// What a thread calls. The methods are those of [`Engine`](super::Engine).
pub(super) trait Library {
    fn rank(&self) -> usize;
    fn world(&self) -> usize;
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;
    fn barrier(&self) -> Result<()>;
    fn abort(&self) {}
}

/// A call that the thread is to make.
pub(super) enum Call {
    AllGather(Vec<u8>),
    Broadcast(Vec<u8>),
    Barrier,
}

/// A library in a thread of its own.
pub(super) struct Worker {
    pub rank: usize,
    pub world: usize,
    timeout: Duration,
    /// Set to end all processes.
    aborts: Arc<AtomicBool>,
    /// Whether the library can do that.
    can_abort: bool,
    running: Mutex<Option<Running>>,
}

struct Running {
    calls: Sender<Call>,
    answers: Receiver<Result<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("rank", &self.rank).field("world", &self.world).finish_non_exhaustive()
    }
}

impl Worker {
    /// Starts a thread, in which `open` opens the library. `open` gets a flag that asks for the end of all processes.
    /// Opening, and every later call, fails if it takes longer than `timeout`.
    pub(super) fn start<L: Library>(
        timeout: Duration,
        can_abort: bool,
        open: impl FnOnce(Arc<AtomicBool>) -> Result<L> + Send + 'static,
    ) -> Result<Self> {
        let (calls, asked) = channel();
        let (answering, answers) = channel();
        let (opening, opened) = channel();
        let aborts = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&aborts);
        let serve = move || match open(Arc::clone(&flag)) {
            Err(error) => drop(opening.send(Err(error))),
            Ok(library) => {
                if opening.send(Ok((library.rank(), library.world()))).is_ok() {
                    serve(&library, &asked, &answering, &flag);
                }
            }
        };
        let thread = thread::Builder::new().name("processes".into()).spawn(serve);
        let thread = thread.map_err(|e| Error::Process(format!("no thread can be started: {e}")))?;
        // Opening has limits of its own, whose messages say more.
        let (rank, world) = received(&opened, timeout + Duration::from_secs(5))??;
        let running = Mutex::new(Some(Running { calls, answers, thread }));
        Ok(Self { rank, world, timeout, aborts, can_abort, running })
    }

    /// Makes a call.
    pub(super) fn call(&self, call: Call) -> Result<Vec<u8>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running.as_ref().ok_or_else(closed)?;
        running.calls.send(call).map_err(|_| closed())?;
        received(&running.answers, self.timeout)?
    }

    /// Ends all processes if the library can, and waits a moment for that.
    pub(super) fn abort(&self) {
        if !self.can_abort {
            return;
        }
        self.aborts.store(true, Ordering::Release);
        // The library sees the flag while it waits; else the thread is woken.
        if let Ok(running) = self.running.try_lock()
            && let Some(running) = running.as_ref()
        {
            let _ = running.calls.send(Call::Barrier);
        }
        thread::sleep(Duration::from_secs(2));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { calls, answers, thread }) = running {
            drop((calls, answers));
            let _ = thread.join();
        }
    }
}

fn closed() -> Error {
    Error::Process("the connection to the other processes was closed".into())
}

fn received<T>(answers: &Receiver<T>, timeout: Duration) -> Result<T> {
    answers.recv_timeout(timeout).map_err(|problem| match problem {
        RecvTimeoutError::Timeout => Error::Process(format!(
            "no answer from another process for {} s (--dist-timeout): it hangs, or has lost its connection",
            timeout.as_secs_f64()
        )),
        RecvTimeoutError::Disconnected => closed(),
    })
}

/// Makes calls until there are no more. The library is closed after that.
fn serve(library: &impl Library, calls: &Receiver<Call>, answers: &Sender<Result<Vec<u8>>>, aborts: &AtomicBool) {
    for call in calls {
        if aborts.load(Ordering::Acquire) {
            return library.abort();
        }
        let answer = match call {
            Call::AllGather(bytes) => library.all_gather(bytes),
            Call::Broadcast(bytes) => library.broadcast(bytes),
            Call::Barrier => library.barrier().map(|()| Vec::new()),
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// Implements [`Engine`](super::Engine) for a type whose field is a [`Worker`].
macro_rules! engine {
    ($engine:ty) => {
        impl super::Engine for $engine {
            fn rank(&self) -> usize {
                self.0.rank
            }

            fn world(&self) -> usize {
                self.0.world
            }

            fn all_gather(&self, bytes: Vec<u8>) -> crate::Result<Vec<u8>> {
                self.0.call(super::worker::Call::AllGather(bytes))
            }

            fn broadcast(&self, bytes: Vec<u8>) -> crate::Result<Vec<u8>> {
                self.0.call(super::worker::Call::Broadcast(bytes))
            }

            fn barrier(&self) -> crate::Result<()> {
                self.0.call(super::worker::Call::Barrier).map(|_| ())
            }

            fn abort(&self) {
                self.0.abort();
            }
        }
    };
}
pub(super) use engine;
