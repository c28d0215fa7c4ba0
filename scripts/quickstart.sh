#!/usr/bin/env bash
# From nothing to a video on any computer: convert the tiny test weights, sample four videos, say where they are.
# The weights are random, so the videos are coloured noise; what it shows is that every step works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
source scripts/venv.sh

out=outputs/quickstart
mkdir -p "$out"
"$VENV_PYTHON" tools/latte_converter.py --source tests/fixtures/latte_class.pt --target "$out/latte.safetensors"
"$VENV_PYTHON" tools/vae_converter.py --source tests/fixtures/vae.bin --target "$out/vae.safetensors"
"$VENV_PYTHON" sample.py -c configs/inference/demo.yaml

echo "The videos:"
find "$PWD/$out/samples" -type f \( -name '*.mp4' -o -name '*.gif' \) | sort
