"""Print how well the demo model continues held-out clips, and write two of them as a GIF, above what is true.

    python tools/make_demo_data.py --folder datasets/held_out --seed 1000 --clips 64
    python tests/golden/make_demo_continuation.py RUN datasets/held_out/frames FOLDER [VIDEOS]

RUN is a run of configs/training/demo_continue_video.yaml. The first 4 of 16 frames are given; PSNR is that of frames
after them to the true ones: of the shipped network, with strength 1 and 0.6, of RUN's, and of the last given frame
repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from latte import LattePipeline
from latte.data.demo import CLASSES
from latte.io.video import read_frames, save_video
from latte.runtime import device

ROOT = Path(__file__).parents[2]
GIVEN, FRAMES, STEPS = 4, 16, 12


def main(run: str, real: str, folder: str, videos: str = "6") -> None:
    """Print the table."""
    device.init_device("CPU")
    labels = sorted(CLASSES)  # as folders are numbered
    clips = [
        (place % len(labels), sorted((Path(real) / labels[place % len(labels)]).iterdir())[place // len(labels)])
        for place in range(int(videos))
    ]
    true = np.stack([read_frames(path)[:FRAMES] for _, path in clips])  # (N, F, H, W, 3)
    still = np.concatenate([true[:, :GIVEN], np.repeat(true[:, GIVEN - 1 : GIVEN], FRAMES - GIVEN, 1)], 1)
    print("| | first new frame, dB | second | fourth | last |\n| --- | ---: | ---: | ---: | ---: |")
    print(row("the last given frame", still, true), flush=True)
    shipped, trained = (LattePipeline.from_pretrained(path) for path in (ROOT / "models" / "demo", run))
    made = {}
    ways = (("trained for it", trained, 1.0), ("shipped", shipped, 1.0), ("shipped, strength 0.6", shipped, 0.6))
    for name, pipe, strength in ways:
        made[name] = np.stack(
            [
                pipe(
                    class_labels=label,
                    frames=video[:GIVEN],
                    strength=strength,
                    seed=place,
                    sampler="unipc",
                    num_inference_steps=STEPS,
                    output_type="uint8",
                    progress=False,
                ).frames[0]
                for place, ((label, _), video) in enumerate(zip(clips, true, strict=True))
            ]
        )
        print(row(name, made[name], true), flush=True)
    columns = [np.concatenate([each[k] for each in (true, made["trained for it"], made["shipped"])], 1) for k in (0, 1)]
    save_video(np.concatenate(columns, 2), Path(folder) / "demo_continue", ["gif"], 8)


def row(name: str, made: np.ndarray, true: np.ndarray) -> str:
    """Return a row of the table: the mean PSNR of videos (N, F, H, W, 3) uint8 in some frames."""
    error = np.square(made.astype(np.float64) - true).mean((2, 3, 4))  # (N, F)
    psnr = (10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean(0)
    return f"| {name} | {' | '.join(f'{psnr[k]:.1f}' for k in (GIVEN, GIVEN + 1, GIVEN + 3, FRAMES - 1))} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
