#!/usr/bin/env bash
# From nothing to videos on any computer: sample the small model of moving clouds that is shipped, and say where they are.
#     scripts/quickstart.sh [options of sample.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
source scripts/venv.sh

"$VENV_PYTHON" sample.py -c configs/inference/demo.yaml "$@"
