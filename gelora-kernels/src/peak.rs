//! What a device can do at most, measured on it: what rates are compared with.

use crate::device::on_device;
use crate::{Device, Result, cpu};

/// The ceilings of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Billions of f32 operations a second, a multiply-add being two.
    pub gflops_f32: f64,
    /// The same in products of bf16 that are summed in f32; none where the device has no instruction for them.
    pub gflops_bf16: Option<f64>,
    /// Billions of bytes a second between memory and the device: a triad on the CPU, a large copy on a GPU.
    pub gbs: f64,
}

impl Peak {
    /// Measures a device; takes about a second.
    ///
    /// # Errors
    /// If the device fails, or lacks the memory for a large copy.
    pub fn of(device: &Device) -> Result<Self> {
        on_device!(
            device,
            Ok(Self {
                gflops_f32: cpu::peak::gflops_f32(),
                gflops_bf16: cpu::peak::gflops_bf16(),
                gbs: cpu::peak::bandwidth_gbs(),
            }),
            gpu => Ok(Self {
                gflops_f32: gpu.gflops_f32()?,
                gflops_bf16: gpu.gflops_bf16()?,
                gbs: gpu.copy_gbs()?,
            })
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceKind;

    #[test]
    fn every_device_has_ceilings() -> Result<()> {
        for device in [Ok(Device::Cpu), Device::open(DeviceKind::Wgpu)].into_iter().flatten() {
            let peak = Peak::of(&device)?;
            assert!(peak.gflops_f32 > 0.01 && peak.gbs > 0.01, "{peak:?}");
        }
        Ok(())
    }
}
