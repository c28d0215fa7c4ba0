"""Record what scikit-image and ffmpeg say about the videos of moving_waves.py: writes fixtures/compare.json.

Run by hand, where scikit-image and imageio-ffmpeg are installed:

    PYTHONPATH=tests python tests/golden/make_compare_fixtures.py
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from support.moving_waves import noisy, waves

TARGET = Path(__file__).resolve().parents[1] / "fixtures" / "compare.json"
SIGMA = 8
LUMA = np.array([0.299, 0.587, 0.114])


def ffmpeg(frames, pixels, graph):
    """Return what ffmpeg says when it reads raw frames (F, H, W[, 3]), and what it writes to stats.txt."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-f", "rawvideo", "-pix_fmt", pixels, "-s", size]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "-i", "-", "-lavfi", graph, "-f", "null", "-"],
            input=frames.tobytes(),
            cwd=folder,
            capture_output=True,
            check=True,
        )
        return done.stderr.decode(), (Path(folder) / "stats.txt").read_text()


def main():
    a = waves()
    b = noisy(a, SIGMA)
    height, width = a.shape[1:3]
    luma_a, luma_b = a @ LUMA, b @ LUMA
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    crop = f"crop={width}:{height}:0"
    graph = f"format=gbrp,split[x][y];[x]{crop}:0[a];[y]{crop}:{height}[b];[b][a]psnr=stats_file=stats.txt"
    said, _ = ffmpeg(np.concatenate([a, b], 1), "rgb24", graph)
    _, motion = ffmpeg(luma_a.round().astype(np.uint8), "gray", "vmafmotion=stats_file=stats.txt")
    found = {
        "sigma": SIGMA,
        "skimage_psnr": peak_signal_noise_ratio(a, b, data_range=255),
        "skimage_ssim": [structural_similarity(x, y, **gaussian) for x, y in zip(luma_a, luma_b, strict=True)],
        "ffmpeg_psnr": float(re.search(r"average:([\d.]+)", said)[1]),
        "ffmpeg_motion": [float(value) for value in re.findall(r"motion:([\d.]+)", motion)][1:],
    }
    TARGET.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
