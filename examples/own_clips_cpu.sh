#!/usr/bin/env bash
# Teach the demo model what some thirty videos of your own show, in an evening on a CPU, and sample with it:
#   bash examples/own_clips_cpu.sh my_videos [options of latte train, such as --max_steps 2000]
# The clips are small, 64 x 64 pixels; own_clips.sh does the same with Latte-1 and captions, on a card.
set -euo pipefail
videos=$1
shift

latte prepare "$videos" --image_size 64 --output_path datasets/own
latte cache -c own_clips --data_folder datasets/own --cache_folder datasets/own-latents
latte train -c own_clips --data_folder datasets/own --cache_folder datasets/own-latents --resume auto "$@"

runs=(outputs/own/Latte-*)
latte sample --checkpoint "${runs[-1]}" --num_samples 4 --sampler dpmpp_2m --sampling_steps 20 --output_format gif --output_path outputs/own/samples
latte gallery "${runs[-1]}"
