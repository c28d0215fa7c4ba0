#!/usr/bin/env bash
# Run the linters and the tests in .venv, which is made if it is missing:
#     scripts/test.sh [arguments of pytest]
# With CI=true the slow tests follow, except the ones marked long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
REQUIREMENTS=requirements-dev.txt source scripts/venv.sh

export PYTHONUNBUFFERED=1
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo
"$VENV_PYTHON" -m mypy
"$VENV_PYTHON" -m codespell_lib
# One test process per core, at most 4 because of their memory; the tests of a file run in one process and share fixtures.
# Files run in the order of their names, which ends with short ones; xdist's own puts few but long tests last.
cores=$(nproc)
parallel=(-n $((cores < 4 ? cores : 4)) --dist loadfile --no-loadscope-reorder)
"$VENV_PYTHON" -m pytest "${parallel[@]}" "$@"

if [[ "${CI:-}" == "true" ]]; then
    "$VENV_PYTHON" -m pytest "${parallel[@]}" -m "slow and not long"
fi
