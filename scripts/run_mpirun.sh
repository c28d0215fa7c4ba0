#!/usr/bin/env bash
# Train on N devices of this machine with mpirun: scripts/run_mpirun.sh CONFIG N [options of train.py]
# A log a rank is in outputs/logs/<time>/ (LOG_DIR); that of rank 0 is shown too. PYTHON chooses the interpreter.
set -euo pipefail
[[ $# -ge 2 && "$2" =~ ^[1-9][0-9]*$ ]] || {
    echo "error: usage: $0 CONFIG N [options of train.py], N being the number of devices" >&2
    exit 2
}
config=$1 count=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE
export LATTE_LOGS=${LOG_DIR:-outputs/logs/$(date +%Y%m%d-%H%M%S)}
mkdir -p "$LATTE_LOGS"
options=(--oversubscribe)
[[ $EUID -eq 0 ]] && options+=(--allow-run-as-root)
# shellcheck disable=SC2016 # each rank expands it
each='log=$LATTE_LOGS/rank_$OMPI_COMM_WORLD_RANK.log
if [[ $OMPI_COMM_WORLD_RANK == 0 ]]; then exec > >(tee "$log") 2>&1; else exec >"$log" 2>&1; fi
exec "$@"'
exec mpirun "${options[@]}" -n "$count" bash -c "$each" rank "${PYTHON:-python}" train.py -c "$config" \
    --use_parallel True "$@"
