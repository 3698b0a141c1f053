//! `gelora plan`: the memory that a training would take, from the sizes in config.json.

use anyhow::Result;

use crate::args::PlanArgs;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod run;

/// Plans a training and prints what it would hold in memory.
pub fn run(args: &PlanArgs) -> Result<()> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    return run::run(args);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    {
        let _ = args;
        anyhow::bail!("gelora plan needs a build with --features wgpu or cuda")
    }
}
