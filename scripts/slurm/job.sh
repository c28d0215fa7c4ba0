# Sourced by train.slurm and sample.slurm: starts the ranks with srun, and puts the job back into the queue when its time is up.
# shellcheck shell=bash

fail() {
    echo "error: $1" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" ]] || fail "this script is for sbatch; scripts/run_mpirun.sh starts ranks without Slurm"
command -v "${PYTHON:=python}" >/dev/null || fail "there is no program $PYTHON; set PYTHON to an interpreter with MindSpore"
# shellcheck source=scripts/ascend_env.sh
source scripts/ascend_env.sh
# srun itself does not take this over from sbatch.
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# start PROGRAM [options]: run it on every task of the job until it ends; each line of output begins with its rank.
start() {
    local step code=0 due=""
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${SLURM_NTASKS:-1} ranks on ${SLURM_JOB_NODELIST:-}"
    # Nothing is to be done here at SIGTERM: Slurm sends it to the ranks too.
    trap : TERM
    srun --kill-on-bad-exit=1 --mpi=none --label "$PYTHON" -u "$@" --use_parallel True &
    step=$!
    trap 'due=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the ranks: srun itself would kill them at SIGTERM
    while kill -0 "$step" 2>/dev/null; do
        code=0
        wait "$step" || code=$? # a signal ends this too
    done
    if [[ -n "$due" ]] && ((code == 0 || code == 128 + 15)); then
        echo "job $SLURM_JOB_ID: its time is nearly up; it goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until Slurm ends this script
    fi
    exit "$code"
}
