# Sourced by the other scripts from the repository's root: makes .venv and sets VENV_PYTHON. REQUIREMENTS names the file of
# packages: requirements.txt, or requirements-dev.txt, which includes it.
# PYTHON=/path/to/python chooses the interpreter that a new .venv is made from.
# shellcheck shell=bash

fail() {
    echo "error: $1" >&2
    exit 2
}

# A name on PATH may not run (a pyenv shim) or may be another version than its name says, so each one is tried.
is_supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_supported_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.12 python3.11 python3.10 python3 python; do
        if is_supported_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10, 3.11 or 3.12 found, and MindSpore has no wheels for others; install one (apt install python3.12 python3.12-venv, or uv python install 3.12), or name it: PYTHON=/path/to/python $0"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; install its venv module (apt install python3-venv)."
    echo "Making .venv with $("$python" --version); MindSpore is a download of about 800 MB."
    "$python" -m venv --clear .venv
}

ensure_venv() {
    local sum file=${REQUIREMENTS:-requirements.txt}
    # The folder is part of the sum, because a copied or moved .venv still points to its old place.
    sum=$( (pwd && cat requirements.txt requirements-dev.txt pyproject.toml) | cksum | cut -d ' ' -f 1)
    VENV_PYTHON="$PWD/.venv/bin/python"
    # The stamp is written last, so that an interrupted installation is repeated.
    if [[ -x "$VENV_PYTHON" && (-e ".venv/.$file-$sum" || -e ".venv/.requirements-dev.txt-$sum") ]]; then
        return
    fi
    if ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 || ! is_supported_python "$VENV_PYTHON"; then
        make_venv
    fi
    "$VENV_PYTHON" -m pip install -r "$file"
    touch ".venv/.$file-$sum"
}

ensure_venv
