#!/usr/bin/env bash
# Train on cached SkyTimelapse with a rank table:
#     scripts/run_distributed_sky_numpy_video.sh RANK_TABLE START N [options of train.py]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_distributed.sh" configs/training/sky_numpy_video.yaml "$@"
