#!/usr/bin/env bash
# Teach Latte-1 a style or a subject from some thirty videos of your own, by LoRA adapters, and sample with it:
#   bash examples/own_clips.sh my_videos [pixels, 512 [options of latte train, such as --max_steps 500]]
# Needs models/Latte-1 (latte download Latte-1) and an Ascend card or a GPU with 24 GB: a CPU takes minutes per step, and has
# own_clips_cpu.sh.
set -euo pipefail
videos=$1
size=${2:-512}
shift $(($# > 1 ? 2 : 1))

latte prepare "$videos" --output_path datasets/own --image_size "$size" --num_frames 16
read -rp "Write a caption per clip into datasets/own/clips.csv, look at datasets/own/contact.html, then press return. "
latte cache -c t2v_lora --data_folder datasets/own --cache_folder datasets/own-latents
latte train -c t2v_lora --data_folder datasets/own --cache_folder datasets/own-latents --output_path outputs/own --resume auto "$@"

runs=(outputs/own/LatteT2V-*)
checkpoints=("${runs[-1]}"/ckpt/ema-*.ckpt)
latte merge_lora --source "${checkpoints[-1]}" --base models/Latte-1 --target models/own
latte sample -c t2v --checkpoint models/own --prompts "a prompt in the words of your captions" --width "$size" --height "$size" --output_format gif --output_path outputs/own/samples
latte gallery "${runs[-1]}"
