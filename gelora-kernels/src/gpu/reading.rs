//! Reads from a GPU to the host. A copy is queued at once and waited for later.

use std::pin::Pin;

use cubecl::server::Handle;

use super::{Backend, Gpu, GpuBuffer, failure};
use crate::{DeviceKind, Error, Result};

/// The bytes of each buffer.
type Bytes = Result<Vec<Vec<u8>>>;

/// A pending read.
pub(crate) struct Coming {
    kind: DeviceKind,
    bytes: Pin<Box<dyn Future<Output = Bytes> + Send>>,
    /// The error of the device, if it has failed. The bytes are then meaningless.
    failure: Box<dyn Fn() -> Option<Error> + Send>,
}

/// Waits for the values of f32 buffers.
///
/// # Errors
/// If an earlier kernel or the device failed.
pub(crate) fn wait_for(coming: Coming) -> Result<Vec<Vec<f32>>> {
    Ok(await_bytes(coming)?.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
}

/// Waits for the bytes of buffers.
fn await_bytes(coming: Coming) -> Result<Vec<Vec<u8>>> {
    let Coming { kind, bytes, failure } = coming;
    let bytes = failure::answer(|| cubecl::future::block_on(bytes));
    match failure() {
        Some(error) => Err(error),
        None => bytes.unwrap_or_else(|| Err(silent(kind))),
    }
}

/// The error of a device that does not answer and gives no reason.
pub(super) fn silent(device: DeviceKind) -> Error {
    Error::Runtime { device, message: "the device does not answer any more".into() }
}

impl<R: Backend> Gpu<R> {
    pub(super) fn read_handle(&self, handle: Handle, size: u64) -> Result<Vec<u8>> {
        let mut all = await_bytes(self.begin_to_read_handles(vec![(handle, size)])?)?;
        Ok(all.remove(0))
    }

    /// Queues a copy of f32 buffers to the host.
    pub(crate) fn begin_to_read_buffers(&self, buffers: Vec<&GpuBuffer>) -> Result<Coming> {
        let handles = buffers.into_iter().map(|buffer| (self.handle_of(buffer), buffer.size()));
        self.begin_to_read_handles(handles.collect())
    }

    fn begin_to_read_handles(&self, wanted: Vec<(Handle, u64)>) -> Result<Coming> {
        let (handles, sizes): (Vec<Handle>, Vec<u64>) = wanted.into_iter().unzip();
        let reading = self.ask(|client| Ok(client.read_async(handles)))?;
        let (gpu, asked) = (self.clone(), self.clone());
        let bytes = async move {
            let all = reading.await.map_err(|e| gpu.error(&e))?;
            Ok(all
                .into_iter()
                .zip(sizes)
                .map(|(bytes, size)| bytes[..(size as usize).min(bytes.len())].to_vec())
                .collect())
        };
        Ok(Coming { kind: R::KIND, bytes: Box::pin(bytes), failure: Box::new(move || asked.failure()) })
    }

    /// The handle of a buffer's values without guards.
    pub(super) fn handle_of(&self, buffer: &GpuBuffer) -> Handle {
        let handle = buffer.handle.clone();
        let used = handle.size_in_used();
        handle.offset_end(used - buffer.size().next_multiple_of(4).min(used))
    }
}
