#!/usr/bin/env bash
# Train on N devices of this machine with msrun: scripts/run_msrun.sh CONFIG N [options of train.py]
# PROGRAM=sample.py samples, PROGRAM=tools/embedding_cache.py caches, with the options of that program.
# One log per rank is in outputs/logs/<time>/ (LOG_DIR); the log of rank 0 is also shown. PYTHON chooses the interpreter, whose
# name must be python or python3, and MASTER_PORT the port at which the ranks meet; by default it is a free one.
# Each rank has cores of its own where there are enough (scripts/cores.py); BIND_CORES=0 binds none, 1 insists on it.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

free_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
port=${MASTER_PORT:-$("$python" -c "$free_port")}
[[ "$port" =~ ^[1-9][0-9]{0,4}$ ]] || fail "MASTER_PORT is '$port', but must be the number of a free port"
run=()
((${#shares[@]} == 0)) || run=(scripts/cores.py --run)
[[ "$python" == */* ]] && export PATH=${python%/*}:$PATH # msrun itself starts a plain `python`
launch msrun --worker_num="$count" --local_worker_num="$count" --master_port="$port" --join=True --log_dir="$logs" \
    --worker_log_name=rank --tail_worker_log=0 "${python##*/}" "${run[@]}" "$program" -c "$config" --use_parallel True "${options[@]}"
