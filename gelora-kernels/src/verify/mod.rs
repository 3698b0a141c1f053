//! Checks every operator on every device against references in f64: what tests, `cargo xtask verify` and benches run.
//!
//! [`cases`] lists the cases of all operators. A [`Case`] is one operator at one shape, and [`Case::check`] runs it on
//! a device and compares the outputs with those of the reference.

mod case;
mod inputs;
#[cfg(test)]
mod slopes;
#[cfg(test)]
mod wgpu;

pub use crate::guard::guarded;
pub use case::{Case, Metric, Outcome, Verdict};
pub use inputs::{random, random_quantized};
#[cfg(test)]
pub(crate) use slopes::assert_slopes;
#[cfg(test)]
pub(crate) use wgpu::wgpu;

/// All cases of all operators.
pub fn cases() -> Vec<Case> {
    crate::ops::cases()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::guarded;
    use crate::{Device, Result, Tensor};

    fn check_all(device: &Device) {
        // While one operator is worked on: GELORA_OP=attention cargo test -p gelora-kernels every_case
        let only = std::env::var("GELORA_OP").unwrap_or_default();
        let failures: Vec<String> = cases()
            .iter()
            .filter(|case| case.op.starts_with(&only) && !case.near_limit)
            .filter_map(|case| match case.check(device, false).verdict {
                Verdict::Failed { reason, .. } => Some(format!("{case:?}: {reason}")),
                _ => None,
            })
            .collect();
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }

    #[test]
    fn every_case_passes_on_the_cpu() {
        check_all(&Device::Cpu);
    }

    #[test]
    fn every_case_notices_a_fault() {
        for case in cases().into_iter().filter(|case| !case.near_limit) {
            assert!(
                matches!(case.check(&Device::Cpu, true).verdict, Verdict::Failed { .. }),
                "{case:?} missed a fault"
            );
        }
    }

    #[test]
    fn every_case_passes_on_wgpu_where_there_is_an_adapter() {
        if let Some(device) = wgpu() {
            check_all(&device);
        }
    }

    #[test]
    fn a_shape_that_a_launcher_does_not_have_is_skipped() {
        let Some(device) = wgpu() else { return };
        for case in cases().into_iter().filter(|case| case.is_forced()).step_by(4) {
            let verdict = case.forced(99).check(&device, false).verdict;
            assert!(matches!(verdict, Verdict::Skipped { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn a_stray_write_is_noticed() -> Result<()> {
        let stray = |offset: isize| -> Result<bool> {
            let mut t = guarded(|| Tensor::output([4]))?;
            let p = t.as_mut_slice()?.as_mut_ptr();
            // SAFETY: guards stand on both sides, so the address is inside the allocation.
            unsafe { p.offset(offset).write(1.0) };
            t.guards_hold()
        };
        assert!(stray(0)? && stray(3)?);
        assert!(!stray(4)? && !stray(-1)?);
        Ok(())
    }

    #[test]
    fn an_unwritten_output_is_noticed() {
        let case = Case::new("nothing", "1")
            .inputs([random([1], 1)])
            .run(|_| Ok(vec![Tensor::output([1])?]))
            .reference(|_| vec![vec![0.0]]);
        assert!(matches!(case.check(&Device::Cpu, false).verdict, Verdict::Failed { .. }));
    }
}
