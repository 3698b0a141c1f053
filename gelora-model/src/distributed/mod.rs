//! One training, measurement or evaluation on several processes.
//!
//! Work is dealt out in parts that do not depend on the number of processes: part p of a step, batch c of an
//! evaluation. Of W processes, process k computes the parts p with p mod W = k. The results are gathered, and every
//! process combines them in the order of p:
//!
//! ```text
//! g = ((g_0 + g_1) + g_2) + .. + g_{P-1}
//! ```
//!
//! So the bits of a result depend neither on W nor on what moves the bytes. That is an [`Engine`]: [`Alone`] for one
//! process, [`Thread`] for threads of one process with a simulated link, and with the features `mpi` and
//! `nccl` `Mpi` and `Nccl`.

mod alone;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod threads;
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod worker;

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

pub use self::alone::Alone;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use self::nccl::Nccl;
pub use self::threads::{Link, Thread, threads};

/// Moves bytes between processes. Every process makes the same calls in the same order.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Number of this process, from 0 to below [`world`](Self::world).
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// Returns the bytes of all processes one after the other, in the order of ranks. All give the same number.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Returns the bytes of process 0. All give the same number.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Waits until every process has called this.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    fn barrier(&self) -> Result<()>;

    /// Ends all processes where the engine can, because this one failed. Returns otherwise.
    fn abort(&self) {}
}

/// The processes of a run, and what they share. Clones are handles of the same processes.
#[derive(Clone, Debug)]
pub struct Processes(Arc<dyn Engine>);

impl Default for Processes {
    fn default() -> Self {
        Self::new(Alone)
    }
}

impl Processes {
    /// Makes the processes that an engine connects.
    pub fn new(engine: impl Engine + 'static) -> Self {
        Self(Arc::new(engine))
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.0.rank()
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.0.world()
    }

    /// Whether this process writes the results.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there is no other process.
    pub fn is_alone(&self) -> bool {
        self.world() == 1
    }

    /// Returns the parts of `parts` that this process computes: p with p mod W = rank.
    pub fn share(&self, parts: usize) -> impl Iterator<Item = usize> + use<> {
        (self.rank()..parts).step_by(self.world())
    }

    /// Returns an error if these processes cannot share `parts` parts of a step evenly.
    ///
    /// # Errors
    /// The error names the numbers of processes that fit.
    pub fn check_parts(&self, parts: usize) -> Result<()> {
        let world = self.world();
        if parts.is_multiple_of(world) {
            return Ok(());
        }
        let fit: Vec<String> = (1..=parts).filter(|w| parts.is_multiple_of(*w)).map(|w| w.to_string()).collect();
        Err(Error::Value(format!(
            "accumulate {parts}: {world} processes cannot share {parts} parts of a step evenly; {parts} fits {} \
             processes, and {world} processes need a multiple of {world}",
            fit.join(" or ")
        )))
    }

    /// Waits until every process is here.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    pub fn barrier(&self) -> Result<()> {
        self.0.barrier()
    }

    /// Ends all processes where the engine can, because this one failed.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Returns the bytes that process 0 gives; those of the others do not matter.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if self.is_alone() {
            return Ok(bytes);
        }
        let length = self.0.broadcast((bytes.len() as u64).to_le_bytes().to_vec())?;
        let length = numbers(&length).next().unwrap_or(0) as usize;
        self.0.broadcast(if self.is_first() { bytes } else { vec![0; length] })
    }

    /// Returns the bytes of all processes, in the order of ranks. All give the same number.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    pub fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.0.all_gather(bytes)
    }

    /// Returns the results of `parts` parts in order. `mine` are those of [`share`](Self::share), of any length.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    pub fn collect(&self, parts: usize, mine: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if self.is_alone() {
            return Ok(mine);
        }
        // The lengths of all parts: process k has part p at k * slots + p / W.
        let (world, slots) = (self.world(), parts.div_ceil(self.world()));
        let mut lengths = Vec::with_capacity(slots * 8);
        for slot in 0..slots {
            lengths.extend((mine.get(slot).map_or(0, Vec::len) as u64).to_le_bytes());
        }
        let lengths: Vec<usize> = numbers(&self.0.all_gather(lengths)?).map(|length| length as usize).collect();
        // The parts themselves, with the processes that have less filled up.
        let most = lengths.chunks(slots.max(1)).map(|of_process| of_process.iter().sum()).max().unwrap_or(0);
        let mut bytes = mine.concat();
        bytes.resize(most, 0);
        let all = self.0.all_gather(bytes)?;
        let part = |p: usize| {
            let (process, slot) = (p % world, p / world);
            let of_process = &lengths[process * slots..(process + 1) * slots];
            let start = process * most + of_process[..slot].iter().sum::<usize>();
            all[start..start + of_process[slot]].to_vec()
        };
        Ok((0..parts).map(part).collect())
    }

    /// Returns whether the flag is set in any process.
    ///
    /// # Errors
    /// Returns an error if a process does not answer in time.
    pub fn any(&self, flag: bool) -> Result<bool> {
        Ok(self.0.all_gather(vec![u8::from(flag)])?.contains(&1))
    }

    /// Checks that `what` is the same in all processes, by a hash of its bytes. A process that gives None is not asked.
    ///
    /// # Errors
    /// Returns an error that names the processes whose bytes differ from those of the first that gives any.
    pub fn check_same(&self, what: &str, bytes: Option<&[u8]>) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let hash = bytes.map_or([0; 32], |bytes| *blake3::hash(bytes).as_bytes());
        let all = self.0.all_gather(hash.to_vec())?;
        let hashes: Vec<&[u8]> = all.chunks(32).collect();
        let asked = |process: &usize| hashes[*process] != [0; 32];
        let Some(reference) = (0..self.world()).find(asked) else { return Ok(()) };
        let others: Vec<String> = (0..self.world())
            .filter(|process| asked(process) && hashes[*process] != hashes[reference])
            .map(|process| process.to_string())
            .collect();
        match others.is_empty() {
            true => Ok(()),
            false => Err(Error::Process(format!(
                "{what}: differs between the processes (in process {} it is not what it is in process {reference}); \
                 expected the same in all",
                others.join(", ")
            ))),
        }
    }
}

/// The numbers in bytes that are u64, little-endian.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
}

/// The bytes of floats, little-endian.
pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The floats of bytes that [`bytes_of`] made.
pub fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests;
