#!/usr/bin/env bash
# Train on N devices of this machine with mpirun: scripts/run_mpirun.sh CONFIG N [options of train.py]
# PROGRAM=sample.py samples, PROGRAM=tools/embedding_cache.py caches, with the options of that program.
# One log per rank is in outputs/logs/<time>/ (LOG_DIR); the log of rank 0 is also shown. PYTHON chooses the interpreter.
# Each rank has cores of its own where there are enough (scripts/cores.py); BIND_CORES=0 binds none, 1 insists on it.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

export LATTE_LOGS=$logs
flags=(--oversubscribe --bind-to none) # by itself it binds a rank to one core, or to a node, whatever the others do
[[ $EUID -eq 0 ]] && flags+=(--allow-run-as-root)
# shellcheck disable=SC2016 # each rank expands it
each='log=$LATTE_LOGS/rank_$OMPI_COMM_WORLD_RANK.log
if [[ $OMPI_COMM_WORLD_RANK == 0 ]]; then exec > >(trap "" TERM INT; tee "$log") 2>&1; else exec >"$log" 2>&1; fi
read -r -a cores <<<"$LATTE_CORES"
(( ${#cores[@]} == 0 )) || set -- taskset -c "${cores[$OMPI_COMM_WORLD_LOCAL_RANK]}" "$@"
exec "$@"'
launch mpirun "${flags[@]}" -n "$count" bash -c "$each" rank "$python" "$program" -c "$config" --use_parallel True \
    "${options[@]}"
