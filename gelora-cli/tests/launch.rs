//! Processes that a launcher started, and that cannot be connected, never train side by side into one folder.

mod common;

use common::{data, fixture, gelora, gelora_with, words};

const TORCHRUN: [(&str, &str); 4] =
    [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")];

#[test]
fn a_launcher_without_an_engine_is_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (data(dir.path()), dir.path().join("out"));
    let line =
        words("train {} --data {} --steps 1 --rank 1 --accumulate 2 --out {}", &[&fixture("tiny-bert"), &data, &out]);
    let missing = match cfg!(feature = "nccl") {
        true => ["MASTER_ADDR and MASTER_PORT", "expected both"],
        false => ["no engine to connect them", "--features nccl"],
    };
    let run = gelora_with(&line, &TORCHRUN);
    run.fails_with(&missing);
    // Without an engine that fits, a process of SLURM is alone whatever the variables say.
    let run = gelora_with(&line, &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "3")]);
    let missing = match (cfg!(feature = "mpi"), cfg!(feature = "nccl")) {
        (true, _) => ["srun (SLURM) started process 0 of 3", "MPI has process 0 of 1"],
        (false, true) => missing,
        (false, false) => ["srun (SLURM) started process 0 of 3", "no engine to connect them"],
    };
    run.fails_with(&missing);
    assert!(!out.exists());
    // One process is none of several.
    gelora_with(&line, &[("RANK", "0"), ("WORLD_SIZE", "1")]).ok();
}

#[test]
fn what_was_found_is_said() {
    let alone = gelora(["devices"]).ok().stdout;
    assert!(alone.contains("launched as one process") && alone.contains("engines for several processes"), "{alone}");
    let several = gelora_with(["devices"], &TORCHRUN).ok().stdout;
    assert!(several.contains("launched by torchrun as process 0 of 2, 0 of 2 on this machine"), "{several}");
    let kubeflow = gelora_with(["devices"], &TORCHRUN[..2]).ok().stdout;
    assert!(kubeflow.contains("Kubeflow") && kubeflow.contains("no LOCAL_RANK"), "{kubeflow}");
    // Of several processes, the first one speaks.
    assert_eq!(gelora_with(["devices"], &[("RANK", "1"), ("WORLD_SIZE", "2")]).ok().stdout, "");
    gelora_with(["devices"], &[("RANK", "x"), ("WORLD_SIZE", "2")]).fails_with(&["RANK is \"x\"", "expected a number"]);
    let merge = gelora_with(["merge", "m", "--adapter", "a", "--out", "o"], &TORCHRUN);
    merge.fails_with(&["gelora merge runs in one", "without the variable WORLD_SIZE"]);
}
