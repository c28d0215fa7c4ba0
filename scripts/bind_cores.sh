# Sourced by the scripts that start several ranks: gives each device of this machine cores of its own.
# BIND_CORES=0 binds nothing, 1 insists on it; by default cores are bound where that is possible, else a line says why not.
# shellcheck shell=bash

# bind_cores DEVICE...: sets shares, the cores of each device in the form that taskset takes; empty if none is bound
bind_cores() {
    local allowed reason="" count=0 part
    shares=()
    [[ "${BIND_CORES:-}" != 0 ]] || return 0
    [[ "${BIND_CORES:-1}" == 1 ]] || fail "BIND_CORES is '$BIND_CORES', but must be 0 or 1"
    if ! command -v taskset >/dev/null; then
        reason="needs taskset"
    else
        allowed=$(taskset -cp $$)
        for part in $(tr , ' ' <<<"${allowed##*: }"); do ((count += ${part#*-} - ${part%-*} + 1)); done
        ((count >= $#)) || reason="needs one core per device, but there are $count for $#"
    fi
    if [[ -n "$reason" ]]; then
        [[ "${BIND_CORES:-}" != 1 ]] || fail "BIND_CORES=1 $reason"
        echo "no rank is bound to cores: that $reason"
        return 0
    fi
    mapfile -t shares < <("${python:?}" scripts/cores.py "${allowed##*: }" "$@")
    ((${#shares[@]} == $#)) || fail "scripts/cores.py found no cores for the devices $*; set BIND_CORES=0"
}
