#!/usr/bin/env bash
# A training on 4 machines with 2 processes each, which SLURM starts again after a failure: sbatch docs/distributed/slurm.sh
#SBATCH --job-name=gelora
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the time limit all processes write a checkpoint and end.
#SBATCH --signal=USR1@300

# The folders of the model, the data and the adapter are the same on all machines.
# --mpi=pmix is for Open MPI, --mpi=pmi2 for MPICH; `srun --mpi=list` says what SLURM was built with.
# One process that dies ends the step, and the job is queued again.
srun --mpi=pmix --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    gelora train "$HOME/models/all-MiniLM-L6-v2" --data "$HOME/data/reviews" --out "$HOME/adapters/reviews" \
    --batch-size 256 --accumulate 8 --resume auto --dist-timeout 600
code=$?
# 138 is the end by SIGUSR1 with a checkpoint, 137 a process that was killed, and 75 one that gave no answer; --resume auto
# goes on from there. 1 is an error, which would come again.
if { [ "$code" -gt 128 ] || [ "$code" -eq 75 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
