#!/usr/bin/env bash
# Train on N devices of this machine with mpirun: scripts/run_mpirun.sh CONFIG N [options of train.py]
# The ranks' output is in outputs/logs/<time>/ (LOG_DIR) too. PYTHON chooses the interpreter.
set -euo pipefail
[[ $# -ge 2 && "$2" =~ ^[1-9][0-9]*$ ]] || {
    echo "error: usage: $0 CONFIG N [options of train.py], N being the number of devices" >&2
    exit 2
}
config=$1 count=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE
options=(--oversubscribe --output "dir=${LOG_DIR:-outputs/logs/$(date +%Y%m%d-%H%M%S)}:copy")
[[ $EUID -eq 0 ]] && options+=(--allow-run-as-root)
exec mpirun "${options[@]}" -n "$count" "${PYTHON:-python}" train.py -c "$config" --use_parallel True "$@"
