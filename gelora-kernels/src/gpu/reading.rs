//! Values from a GPU to the host. A copy is queued when it is asked for and waited for later.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use cubecl::server::Handle;

use super::{Backend, Gpu, GpuBuffer, failure};
use crate::{DeviceKind, Error, Result, Tensor};

/// The bytes of each buffer.
type Bytes = Result<Vec<Vec<u8>>>;

/// Bytes on their way to the host.
pub struct Coming {
    kind: DeviceKind,
    bytes: Pin<Box<dyn Future<Output = Bytes> + Send>>,
}

/// The values of f32 tensors that are on their way.
///
/// # Errors
/// If a kernel before failed, or the device does.
pub fn wait_for(coming: Coming) -> Result<Vec<Vec<f32>>> {
    Ok(await_bytes(coming)?.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
}

fn await_bytes(coming: Coming) -> Result<Vec<Vec<u8>>> {
    let Coming { kind, bytes } = coming;
    let bytes = catch_unwind(AssertUnwindSafe(|| cubecl::future::block_on(bytes)));
    match failure::of(kind) {
        Some(message) => Err(Error::Runtime { device: kind, message }),
        None => bytes.map_err(|_| silent(kind))?,
    }
}

fn silent(device: DeviceKind) -> Error {
    let message = failure::of(device).unwrap_or("the device does not answer any more".into());
    Error::Runtime { device, message }
}

impl<R: Backend> Gpu<R> {
    pub(super) fn read_handle(&self, handle: Handle, size: u64) -> Result<Vec<u8>> {
        let mut all = await_bytes(self.begin_to_read_handles(vec![(handle, size)])?)?;
        Ok(all.remove(0))
    }

    /// Queues a copy of f32 tensors to the host.
    pub fn begin_to_read(&self, tensors: &[&Tensor]) -> Result<Coming> {
        let handle = |t: &&Tensor| {
            let buffer = t.gpu("read")?;
            Ok((self.handle_of(buffer), buffer.size()))
        };
        self.begin_to_read_handles(tensors.iter().map(handle).collect::<Result<_>>()?)
    }

    fn begin_to_read_handles(&self, wanted: Vec<(Handle, u64)>) -> Result<Coming> {
        let (handles, sizes): (Vec<Handle>, Vec<u64>) = wanted.into_iter().unzip();
        // A device that is lost can take CubeCL's thread with it, which shows as a panic here.
        let client = self.client;
        let begun = catch_unwind(AssertUnwindSafe(|| client.read_async(handles)));
        let reading = begun.map_err(|_| silent(R::KIND))?;
        let bytes = async move {
            let all = reading.await.map_err(|e| Self::error(&e))?;
            Ok(all
                .into_iter()
                .zip(sizes)
                .map(|(bytes, size)| bytes[..(size as usize).min(bytes.len())].to_vec())
                .collect())
        };
        Ok(Coming { kind: R::KIND, bytes: Box::pin(bytes) })
    }

    /// The handle of a buffer's values alone.
    pub(super) fn handle_of(&self, buffer: &GpuBuffer) -> Handle {
        let handle = buffer.handle.clone();
        let used = handle.size_in_used();
        handle.offset_end(used - buffer.size().next_multiple_of(4).min(used))
    }
}
