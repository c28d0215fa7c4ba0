#!/usr/bin/env bash
# Train on several Ascend devices of one or more machines with a rank table (tools/make_rank_table.py makes one):
#     scripts/run_distributed.sh CONFIG RANK_TABLE START N [options of train.py]
# PROGRAM=sample.py samples, PROGRAM=tools/embedding_cache.py caches, with the options of that program.
# START is the first device of this machine, N the number of its devices to use. Every machine needs the same table, in which
# it finds itself by its addresses, or by SERVER_ID, and the same START and N: of a table with more devices, those of every
# machine that are left out are taken out. One log per rank is written to outputs/logs/<time>/ (LOG_DIR). If a
# rank dies, all ranks are stopped. PYTHON chooses the interpreter. Each device of this machine in the table has cores of its
# own where there are enough (scripts/cores.py); BIND_CORES=0 binds none, 1 insists on it. HCCL_CONNECT_TIMEOUT and HCCL_EXEC_TIMEOUT are the seconds
# that ranks wait for each other, at the start and in a sum over all ranks. MASTER_PORT is the port at which the ranks meet
# on the machine of rank 0; by default a free one, or with several machines 8118.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

[[ $# -ge 4 ]] || fail "usage: $0 CONFIG RANK_TABLE START N [options of train.py]"
config=$1 table=$2 start=$3 count=$4
shift 4
[[ "$start" =~ ^[0-9]{1,5}$ ]] || fail "START is '$start', but must be the number of a device, such as 0"
[[ "$count" =~ ^0*[1-9][0-9]{0,4}$ ]] || fail "N is '$count', but must be a number of devices from 1 on"
start=$((10#$start)) count=$((10#$count)) # 08 is not octal
[[ -f "$table" ]] || fail "there is no rank table $table; tools/make_rank_table.py makes one"
table=$(cd "$(dirname "$table")" && pwd)/$(basename "$table")
[[ -f "$config" ]] && config=$(cd "$(dirname "$config")" && pwd)/$(basename "$config")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -f "$config" ]] || fail "there is no config file $config"
python=${PYTHON:-python} program=${PROGRAM:-train.py}
[[ -f "$program" ]] || fail "there is no program $program here; PROGRAM is train.py, sample.py or a file of tools/"
command -v "$python" >/dev/null || fail "there is no program $python; set PYTHON to an interpreter with MindSpore"

# One line per device of this machine: device, rank, number of ranks.
lines=$("$python" tools/make_rank_table.py --show "$table" --server_id "${SERVER_ID:-}") || exit 2
declare -A rank_of=() place_of=()
size=0 devices=()
while read -r device rank ranks; do
    place_of[$device]=${#devices[@]} rank_of[$device]=$rank size=$ranks devices+=("$device")
done <<<"$lines"
for ((device = start; device < start + count; device++)); do
    [[ -n "${rank_of[$device]:-}" ]] || fail "device $device of this machine is not in $table"
done

logs=${LOG_DIR:-outputs/logs/$(date +%Y%m%d-%H%M%S)}
mkdir -p "$logs" 2>/dev/null && [[ -w "$logs" ]] || fail "the folder $logs cannot be written; set LOG_DIR"
if ((count < ${#rank_of[@]})); then
    # Of the whole table HCCL would wait for every device, 20 minutes long.
    "$python" tools/make_rank_table.py --merge "$table" --select "$start-$((start + count - 1))" \
        --target "$logs/rank_table.json" || exit 2
    table=$(cd "$logs" && pwd)/rank_table.json
    lines=$("$python" tools/make_rank_table.py --show "$table" --server_id "${SERVER_ID:-}") || exit 2
    while read -r device rank ranks; do rank_of[$device]=$rank size=$ranks; done <<<"$lines"
fi
# shellcheck source=scripts/ascend_env.sh
source scripts/ascend_env.sh
if ((count == size)); then
    export MASTER_PORT=${MASTER_PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
fi
[[ "${MASTER_PORT:-1}" =~ ^[1-9][0-9]{0,4}$ ]] || fail "MASTER_PORT is '$MASTER_PORT', but must be the number of a free port"
pids=() started=()
# shellcheck source=scripts/bind_cores.sh
source scripts/bind_cores.sh
bind_cores "${devices[@]}"

# Each rank is a session of its own, so that Ctrl-C reaches it only once, from here, and its helpers are killed with it.
stop_all() {
    local pid
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap stop_all TERM INT

for ((i = 0; i < count; i++)); do
    device=$((start + i)) rank=${rank_of[$((start + i))]}
    bind=()
    ((${#shares[@]} == 0)) || bind=(taskset -c "${shares[${place_of[$device]}]}")
    RANK_TABLE_FILE=$table RANK_ID=$rank RANK_SIZE=$size DEVICE_ID=$device \
        setsid "${bind[@]}" "$python" "$program" -c "$config" --use_parallel True "$@" \
        </dev/null >"$logs/rank_$rank.log" 2>&1 &
    pids+=($!) started+=("$rank")
done
echo "started ranks ${started[*]} of $size; their logs are in $logs"

# kill_all: kill the ranks after GRACE seconds in which they may exit by themselves
kill_all() {
    local pid end=$((SECONDS + ${GRACE:-10}))
    stop_all
    for pid in "${pids[@]}"; do
        while kill -0 "$pid" 2>/dev/null && ((SECONDS < end)); do sleep 0.2; done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
}

while ((${#pids[@]} > 0)); do
    for i in "${!pids[@]}"; do
        kill -0 "${pids[i]}" 2>/dev/null && continue
        code=0
        wait "${pids[i]}" || code=$?
        if ((code != 0)); then
            log=$logs/rank_${started[i]}.log
            echo "error: rank ${started[i]} ended with code $code; the last lines of $log:" >&2
            tail -n 20 "$log" >&2
            kill_all
            exit "$code"
        fi
        unset "pids[i]"
    done
    sleep 0.5 & # in the background, because a trap waits for a command in the foreground
    wait $! || true
done
