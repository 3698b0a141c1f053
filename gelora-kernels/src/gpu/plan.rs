//! A device that allocates nothing and computes nothing, but counts: what a program would hold in memory on a CPU, a
//! GPU through wgpu or a CUDA device.
//!
//! Operators do not know on which device they run, so a training step on this device asks for the same buffers as a
//! real one, in the same order. CubeCL's own memory management places them in pages that do not exist. A launch does
//! nothing, uploads are not copied, and values read back are zero.

mod server;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cubecl::ir::{DeviceProperties, TargetProperties};
use cubecl::prelude::*;
use cubecl::zspace::{Shape, Strides};
use cubecl_common::device::DeviceId;

use super::tally::Tally;
use super::{Gpu, failure, settings};
use crate::{DeviceKind, Error, Result};
use server::{Most, NoCompiler, PlanServer};

/// A device whose memory is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Planned {
    kind: DeviceKind,
    /// Bytes of its memory.
    memory: u64,
}

/// A planned device with the properties that kernels ask for.
struct Entry {
    planned: Planned,
    properties: DeviceProperties,
    gpu: Option<Gpu<PlanRuntime>>,
}

/// The planned devices, by index.
static PLANNED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// The runtime of plans.
#[derive(Clone, Debug)]
pub(crate) struct PlanRuntime;

/// An index into [`PLANNED`].
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanDevice(u16);

impl cubecl_common::device::Device for PlanDevice {
    fn from_id(id: DeviceId) -> Self {
        Self(id.index_id)
    }

    fn to_id(&self) -> DeviceId {
        DeviceId { type_id: 0, index_id: self.0 }
    }
}

impl Runtime for PlanRuntime {
    type Compiler = NoCompiler;
    type Server = PlanServer;
    type Device = PlanDevice;

    fn client(device: &Self::Device) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "plan"
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (u32::from(u16::MAX), u32::from(u16::MAX), u32::from(u16::MAX))
    }

    fn can_read_tensor(_: &Shape, _: &Strides) -> bool {
        true
    }

    fn target_properties() -> TargetProperties {
        TargetProperties { mma: Default::default() }
    }

    fn enumerate_devices(_: u16, _: &Most) -> Vec<DeviceId> {
        (0..planned().len() as u16).map(|index_id| DeviceId { type_id: 0, index_id }).collect()
    }
}

fn planned() -> MutexGuard<'static, Vec<Entry>> {
    PLANNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a plan of a device with `memory` bytes of memory. Two calls with the same arguments give the same device.
/// `of_this_machine` are the properties of this machine's device of that kind, if it has one.
///
/// # Errors
/// If `kind` is neither the CPU, wgpu nor CUDA, or the memory is below 1 MiB.
pub(crate) fn open(
    kind: DeviceKind,
    memory: u64,
    of_this_machine: impl FnOnce() -> Option<DeviceProperties>,
) -> Result<Gpu<PlanRuntime>> {
    let failed = |reason| Error::Device { kind: DeviceKind::Plan, reason };
    if !matches!(kind, DeviceKind::Cpu | DeviceKind::Wgpu | DeviceKind::Cuda) {
        return Err(failed(format!("memory is planned for cpu, wgpu or cuda, got {kind}")));
    }
    if memory < 1 << 20 {
        return Err(failed(format!("expected at least 1 MiB of memory, got {memory} bytes")));
    }
    failure::watch();
    settings::set(None);
    let asked = Planned { kind, memory };
    if let Some(opened) = planned().iter().filter(|entry| entry.planned == asked).find_map(|entry| entry.gpu.clone()) {
        return Ok(opened);
    }
    let properties = server::properties(asked, of_this_machine());
    let index = {
        let mut all = planned();
        all.push(Entry { planned: asked, properties, gpu: None });
        all.len() - 1
    };
    let name = format!("plan of {kind} with {memory} bytes");
    let client = PlanRuntime::client(&PlanDevice(index as u16));
    let gpu = Gpu::with_tally(client, name, Tally::new(DeviceKind::Plan, kind == DeviceKind::Cpu));
    planned()[index].gpu = Some(gpu.clone());
    Ok(gpu)
}

impl Gpu<PlanRuntime> {
    /// The most bytes of pages at one time since [`Gpu::forget_peak`].
    pub(crate) fn most_reserved(&self) -> u64 {
        self.client().info().0.load(Ordering::Relaxed)
    }

    /// Frees pages that no buffer uses, and begins to look for the peak anew.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        self.client().memory_cleanup();
        self.wait()?;
        self.tally().reset_peak();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Backend;
    use crate::verify::random;

    #[test]
    fn buffers_are_counted_and_placed_in_pages() -> Result<()> {
        let gpu = open(DeviceKind::Cuda, 3 << 30, || None)?;
        let device = PlanRuntime::device(gpu.clone());
        let weight = random([3, 1 << 18], 1).to_device_for_good(&device)?;
        let reserved = || gpu.memory_reserved();
        assert_eq!((gpu.tally().live(), reserved()?), (3 << 20, 3 << 20));
        let passing = random([5], 1).to_device(&device)?;
        assert_eq!(gpu.tally().live(), (3 << 20) + 20);
        assert!(reserved()? > gpu.tally().live());
        assert_eq!(passing.to_vec()?, [0.0; 5], "nothing is kept");
        drop((weight, passing));
        assert_eq!((gpu.tally().live(), gpu.tally().peak()), (0, (3 << 20) + 20));
        let too_large = gpu.output([(3 << 28) / 4 + 1]).map(|_| ());
        assert!(matches!(too_large, Err(Error::TooLarge { .. })), "a tensor takes at most a quarter of the memory");
        assert!(open(DeviceKind::Plan, 1 << 30, || None).is_err() && open(DeviceKind::Cuda, 5, || None).is_err());
        Ok(())
    }
}
