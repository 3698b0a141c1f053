//! Peak rates of a device, measured on it. Measured rates of operators are compared with them.

use crate::device::on_device;
use crate::{Device, Result, cpu};

/// The peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Peak {
    /// Peak rate in f32, in GFLOP/s. A multiply-add counts as two operations.
    pub gflops_f32: f64,
    /// Peak rate of products of bf16 summed in f32, in GFLOP/s. None if the device has no instruction for them.
    pub gflops_bf16: Option<f64>,
    /// Peak memory bandwidth in GB/s: of a triad on the CPU, of a large copy on a GPU.
    pub gbs: f64,
}

impl Peak {
    /// Measures a device. Takes about a second.
    ///
    /// # Errors
    /// If the device fails, or has too little memory for a large copy.
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

    #[test]
    fn every_device_has_peak_rates() -> Result<()> {
        for device in [Some(Device::Cpu), crate::verify::wgpu()].into_iter().flatten() {
            let peak = Peak::of(&device)?;
            assert!(peak.gflops_f32 > 0.01 && peak.gbs > 0.01, "{peak:?}");
        }
        Ok(())
    }
}
