#!/usr/bin/env bash
# Install what is needed, sample the demo model of moving clouds, and print where the videos are (Linux, or WSL2 on Windows):
#     scripts/quickstart.sh [options of sample.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
source scripts/venv.sh

"$VENV_PYTHON" sample.py -c configs/inference/demo.yaml "$@"
