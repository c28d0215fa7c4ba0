#!/usr/bin/env bash
# Teach the demo model what some thirty videos of your own show, in an evening on a CPU, and sample with it:
#   bash examples/own_clips_cpu.sh my_videos [steps of the autoencoder [options of latte train, such as --max_steps 2000]]
# The clips are small, 64 x 64 pixels; own_clips.sh does the same with Latte-1 and captions, on a card.
# Started again, it goes on where it was.
set -euo pipefail
videos=$1
vae_steps=${2:-1000}
shift $(($# > 1 ? 2 : 1))

latte prepare "$videos" --image_size 64 --output_path datasets/own
# The demo model's autoencoder has seen nothing but clouds; first it learns the colours and shapes of the clips.
if [[ ! -f outputs/own/vae.safetensors ]]; then
    latte train_vae --pretrained_model_path models/demo --data_folder datasets/own/clips --steps "$vae_steps" --target outputs/own/vae.part.safetensors
    for file in outputs/own/vae.part.*; do mv "$file" "${file/.part/}"; done
fi
own=(--data_folder datasets/own --vae_checkpoint outputs/own/vae.safetensors)
latte cache -c own_clips --cache_folder datasets/own-latents "${own[@]}"
latte train -c own_clips --cache_folder datasets/own-latents "${own[@]}" --resume auto "$@"

runs=(outputs/own/Latte-*)
latte sample --checkpoint "${runs[-1]}" --num_samples 4 --sampler dpmpp_2m --sampling_steps 20 --output_format gif --output_path outputs/own/samples
latte gallery "${runs[-1]}"
