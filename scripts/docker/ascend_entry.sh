#!/usr/bin/env bash
# Runs in the container of ascend.Dockerfile: sets the variables of CANN, then starts latte with the words it is given.
set -euo pipefail
home=${ASCEND_HOME:-/usr/local/Ascend}
export LD_LIBRARY_PATH="$home/driver/lib64/driver:$home/driver/lib64/common:${LD_LIBRARY_PATH:-}"
for file in "$home/ascend-toolkit/set_env.sh" "$home/cann/set_env.sh"; do
    if [[ -f "$file" ]]; then
        set +u # CANN's scripts use variables that are not set
        # shellcheck disable=SC1090
        source "$file"
        set -u
    fi
done
exec latte "$@"
