//! All-gather and broadcast between the NVIDIA GPUs of several processes, through NCCL.
//!
//! NCCL and the driver are opened when they are used, so this compiles and starts without them. Values pass through
//! host memory: what is sent is copied to the GPU, and what arrives is copied back.

use std::ffi::c_char;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::result::NcclError;
use cudarc::nccl::safe::{Comm, Id};

use crate::{DeviceKind, Error, Result};

/// Bytes of the identifier that connects the processes of a [`Communicator`].
pub const ID_BYTES: usize = 128;

/// This process's GPU, connected to those of the other processes.
#[derive(Debug)]
pub struct Communicator {
    comm: Comm,
    stream: Arc<CudaStream>,
}

/// Makes an identifier, in one of the processes. It sends the identifier to the others by other means.
///
/// # Errors
/// Returns an error if NCCL or the driver is not installed.
pub fn new_id() -> Result<[u8; ID_BYTES]> {
    check_libraries()?;
    let id = Id::new().map_err(failed)?;
    Ok(id.internal().map(|byte| byte as u8))
}

impl Communicator {
    /// Connects the first visible GPU of this process. Waits until all `world` processes have called this with the same
    /// identifier and their own rank.
    ///
    /// # Errors
    /// Returns an error if NCCL or the driver is not installed, there is no GPU, or NCCL cannot connect, as when two
    /// processes have the same GPU.
    pub fn open(rank: usize, world: usize, id: &[u8; ID_BYTES]) -> Result<Self> {
        check_libraries()?;
        let stream = CudaContext::new(0).and_then(|context| context.new_stream()).map_err(problem)?;
        let id = Id::uninit(id.map(|byte| byte as c_char));
        let comm = Comm::from_rank(Arc::clone(&stream), rank, world, id).map_err(failed)?;
        Ok(Self { comm, stream })
    }

    /// Returns the bytes of all processes one after the other, in the order of ranks. All give the same number.
    ///
    /// # Errors
    /// Returns an error if the GPU or NCCL fails.
    pub fn all_gather(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let sent = self.stream.clone_htod(bytes).map_err(problem)?;
        let mut all = self.stream.alloc_zeros::<u8>(bytes.len() * self.comm.world_size()).map_err(problem)?;
        self.comm.all_gather(&sent, &mut all).map_err(failed)?;
        self.read(&all)
    }

    /// Returns the bytes of process 0. All give the same number.
    ///
    /// # Errors
    /// Returns an error if the GPU or NCCL fails.
    pub fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = self.stream.clone_htod(bytes).map_err(problem)?;
        self.comm.broadcast_in_place(&mut all, 0).map_err(failed)?;
        self.read(&all)
    }

    /// Waits for the GPU and copies bytes to the host.
    fn read(&self, bytes: &cudarc::driver::CudaSlice<u8>) -> Result<Vec<u8>> {
        let values = self.stream.clone_dtoh(bytes).map_err(problem)?;
        self.stream.synchronize().map_err(problem)?;
        Ok(values)
    }
}

/// Returns an error that names the library that is not installed. cudarc would panic.
fn check_libraries() -> Result<()> {
    // SAFETY: opening the driver and NCCL runs their initializers, which is what every use of them does.
    let (driver, nccl) = unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nccl::sys::is_culib_present()) };
    let reason = match (driver, nccl) {
        (true, true) => return Ok(()),
        (false, _) => "NCCL needs the driver of an NVIDIA GPU (libcuda.so.1), which is not installed",
        (true, false) => {
            "libnccl.so is not found: install NVIDIA's package libnccl-dev, or link the libnccl.so.2 of another \
             package to that name in a folder of LD_LIBRARY_PATH"
        }
    };
    Err(Error::Device { kind: DeviceKind::Cuda, reason: reason.into() })
}

fn failed(error: NcclError) -> Error {
    let hint = "; NCCL_DEBUG=WARN tells more, and every process needs a GPU of its own";
    Error::Runtime { device: DeviceKind::Cuda, message: format!("NCCL: {:?}{hint}", error.0) }
}

fn problem(error: impl std::fmt::Display) -> Error {
    Error::Runtime { device: DeviceKind::Cuda, message: error.to_string() }
}
