# Sourced by run_mpirun.sh and run_msrun.sh: reads CONFIG and N, and runs a launcher such that the ranks can save and exit.
# Sets config, count, options, python, program (train.py, or PROGRAM), logs and shares (cores, see bind_cores.sh), and changes to the
# repository's root.
# shellcheck shell=bash

fail() {
    echo "error: $1" >&2
    exit 2
}

[[ $# -ge 2 ]] || fail "usage: $0 CONFIG N [options of train.py]"
[[ "$2" =~ ^[1-9][0-9]{0,3}$ ]] || fail "N is '$2', but must be a number of devices from 1 on"
# shellcheck disable=SC2034 # most of these are for the scripts that source this one
config=$1 count=$2 options=("${@:3}") python=${PYTHON:-python} program=${PROGRAM:-train.py} logs=${LOG_DIR:-outputs/logs/$(date +%Y%m%d-%H%M%S)}
[[ -f "$config" ]] && config=$(cd "$(dirname "$config")" && pwd)/$(basename "$config")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[[ -f "$config" ]] || fail "there is no config file $config"
[[ -f "$program" ]] || fail "there is no program $program here; PROGRAM is train.py, sample.py or a file of tools/"
command -v "$python" >/dev/null || fail "there is no program $python; set PYTHON to an interpreter with MindSpore"
mkdir -p "$logs" 2>/dev/null && [[ -w "$logs" ]] || fail "the folder $logs cannot be written; set LOG_DIR"
# shellcheck source=scripts/ascend_env.sh
source scripts/ascend_env.sh
# shellcheck source=scripts/bind_cores.sh
source scripts/bind_cores.sh
mapfile -t devices < <(seq 0 $((count - 1)))
bind_cores "${devices[@]}"
export LATTE_CORES="${shares[*]}" PYTHON=$python

# launch COMMAND...: run it in a session of its own, so that Ctrl-C reaches the ranks only once, from here.
launch() {
    local launcher code=0
    command -v "$1" >/dev/null || fail "there is no $1 on PATH; see docs/distributed.md"
    setsid "$@" </dev/null &
    launcher=$!
    # On a signal the launchers kill the ranks before they have saved; so the ranks, their children, get the signal directly.
    trap 'pkill -TERM -P "$launcher" -f "$program" || kill -TERM "$launcher"' TERM INT
    while kill -0 "$launcher" 2>/dev/null; do
        code=0
        wait "$launcher" || code=$? # a signal ends this too
    done
    if ((code != 0)); then
        echo "error: the job ended with code $code; the last lines of each log:" >&2
        tail -v -n 5 "$logs"/rank_*.log >&2
    fi
    exit "$code"
}
