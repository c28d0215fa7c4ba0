#!/usr/bin/env bash
# Train on N devices of this machine with msrun: scripts/run_msrun.sh CONFIG N [options of train.py]
# A log a rank is in outputs/logs/<time>/ (LOG_DIR).
set -euo pipefail
[[ $# -ge 2 && "$2" =~ ^[1-9][0-9]*$ ]] || {
    echo "error: usage: $0 CONFIG N [options of train.py], N being the number of devices" >&2
    exit 2
}
config=$1 count=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE
logs=${LOG_DIR:-outputs/logs/$(date +%Y%m%d-%H%M%S)}
exec msrun --worker_num="$count" --local_worker_num="$count" --master_port="${MASTER_PORT:-8118}" --join=True \
    --log_dir="$logs" train.py -c "$config" --use_parallel True "$@"
