//! The engine of NCCL: the NVIDIA GPUs of processes that torchrun, Kubeflow or a script started.

use std::time::Duration;

use gelora_kernels::nccl::{Communicator, new_id};

use super::rendezvous::{asked, give};
use super::worker::{Library, Worker, engine};
use crate::Result;

/// Processes with an NVIDIA GPU each.
#[derive(Debug)]
pub struct Nccl(Worker);

engine!(Nccl);

impl Nccl {
    /// Connects process `rank` of `world`. `address` is HOST:PORT of process 0, whose port must be free. This, and
    /// every later call, fails if the other processes take longer than `timeout`.
    ///
    /// # Errors
    /// Returns an error if the driver or NCCL is not installed, process 0 cannot be reached, or NCCL cannot connect the
    /// GPUs.
    pub fn open(rank: usize, world: usize, address: &str, timeout: Duration) -> Result<Self> {
        let address = address.to_owned();
        let open = move |_| {
            let id = match rank {
                0 => give(&address, world, new_id()?, timeout)?,
                _ => asked(&address, rank, timeout)?,
            };
            Ok(Opened { rank, world, communicator: Communicator::open(rank, world, &id)? })
        };
        Worker::start(timeout, false, open).map(Self)
    }
}

struct Opened {
    rank: usize,
    world: usize,
    communicator: Communicator,
}

impl Library for Opened {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.communicator.all_gather(&bytes)?)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.communicator.broadcast(&bytes)?)
    }

    fn barrier(&self) -> Result<()> {
        self.communicator.all_gather(&[0])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Engine;
    use super::*;

    /// Without the libraries the error names them; with them, a world of one gets back what it gives.
    #[test]
    fn a_world_of_one() {
        match Nccl::open(0, 1, "127.0.0.1:0", Duration::from_secs(20)) {
            Err(error) => {
                let said = error.to_string();
                assert!(["libcuda.so.1", "libnccl.so", "NCCL"].iter().any(|name| said.contains(name)), "{said}");
            }
            Ok(engine) => {
                let bytes: Vec<u8> = (0..=255).collect();
                assert_eq!(engine.all_gather(bytes.clone()).expect("one process"), bytes);
                assert_eq!(engine.broadcast(bytes.clone()).expect("one process"), bytes);
                engine.barrier().expect("one process");
            }
        }
    }
}
