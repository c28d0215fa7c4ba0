#!/usr/bin/env bash
# Measure what fewer steps lose, and how far samples are from real clips: bash examples/evaluate.sh
# With the demo model, on any device. The last part needs the network of FVD, which `latte evaluate --fetch_i3d` gets once.
set -euo pipefail

latte sample -c demo --sampler ddim --sampling_steps 100 --output_path outputs/evaluate/ddim100
latte sample -c demo --output_path outputs/evaluate/dpmpp20
latte sample -c demo --sampling_steps 8 --output_path outputs/evaluate/dpmpp8
latte compare outputs/evaluate/ddim100 outputs/evaluate/dpmpp20 outputs/evaluate/dpmpp8 --output_path outputs/evaluate/compared

i3d="${XDG_CACHE_HOME:-$HOME/.cache}/latte/i3d-kinetics-400.safetensors"
if [[ ! -f $i3d ]]; then
    echo "FVD is left out, because $i3d is not there: latte evaluate --fetch_i3d"
    exit
fi
[[ -d datasets/held_out ]] || latte demo_data --folder datasets/held_out --seed 1000 --clips 16
latte evaluate --real datasets/held_out/frames --real_stride 1 --fake outputs/evaluate/dpmpp20 --metrics fvd6_16f
