"""Print how often samples of the text-conditioned demo show what their captions say, and write three of them as a GIF.

    python tools/make_demo_data.py --folder datasets/held_out --seed 1000 --clips 64
    python tests/golden/make_demo_text.py RUN datasets/held_out/frames FOLDER [VIDEOS]

RUN is a run of configs/training/demo_text_video.yaml. A sample shows the time of day whose held-out clips are nearest,
by the mean of their pixels, and drifts to the side to which its frames must be shifted to fit the next ones best. The
same is asked of held-out clips that the means are not of. Each caption has VIDEOS samples, with equal seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from latte.data.demo import CLASSES, DIRECTIONS, caption
from latte.io.video import read_frames, save_video

FRAMES, CLIPS = 16, 16  # of a video; of each class for its mean


def main(run: str, real: str, folder: str, videos: str = "4") -> None:
    """Print the table."""
    clips = {kind: sorted((Path(real) / kind).iterdir()) for kind in CLASSES}
    means = {kind: np.mean([pixels(read_frames(path)) for path in found[:CLIPS]], 0) for kind, found in clips.items()}
    print("| | time of day | direction | both |\n| --- | ---: | ---: | ---: |", flush=True)
    others = [
        (read_frames(path)[:FRAMES], caption(CLASSES.index(kind), int(path.name.rpartition("-")[2])))
        for kind, found in clips.items()
        for path in found[CLIPS : 2 * CLIPS]
    ]
    print(row("held-out clips", others, means), flush=True)
    from latte import LattePipeline
    from latte.runtime import device

    device.init_device("CPU")
    pipe, made = LattePipeline.from_pretrained(run), []
    texts = sorted({caption(label, seed) for label in range(len(CLASSES)) for seed in range(16)})
    for seed in range(int(videos)):
        usual = {"num_inference_steps": 12, "sampler": "unipc", "guidance_scale": 3.0, "seed": [seed] * len(texts)}
        made += zip(pipe(texts, output_type="uint8", progress=False, **usual).frames, texts, strict=True)
        print(row(f"{len(made)} samples", made, means), flush=True)
    shown = [
        next(frames for frames, said in made if kind in said) for kind in ("left in day", "right at sun", "left at n")
    ]
    save_video(np.concatenate(shown, 2), Path(folder) / "demo_text", ["gif"], 8)


def pixels(frames: np.ndarray) -> np.ndarray:
    """Return the mean of a video's frames (h, w, 3) float64, a quarter as high and wide."""
    mean = frames[:FRAMES].mean(0)
    return mean.reshape(mean.shape[0] // 4, 4, mean.shape[1] // 4, 4, 3).mean((1, 3))


def time_of_day(frames: np.ndarray, means: dict[str, np.ndarray]) -> str:
    """Return the class whose mean is nearest."""
    return min(means, key=lambda kind: float(np.square(means[kind] - pixels(frames)).mean()))


def direction(frames: np.ndarray, most: int = 5) -> str:
    """Return one of DIRECTIONS: that of the shift by which frames are nearest to the frame two after them."""
    grey = frames.astype(np.float64).mean(3)
    grey = grey - grey.mean(0)  # without what stands still

    def misfit(shift: int) -> float:
        first, then = grey[:-2], np.roll(grey[2:], -shift, 2)
        return float(np.square(first - then)[:, :, most:-most].mean())

    return DIRECTIONS[min((s for s in range(-most, most + 1) if s), key=misfit) < 0]


def row(name: str, videos: list, means: dict[str, np.ndarray]) -> str:
    """Return a row of the table: the shares of videos (frames, caption) that show what is said."""
    words = {"day": "daylight", "sunset": "sunset", "night": "night"}
    right = np.array(
        [(words[time_of_day(frames, means)] in said, direction(frames) in said) for frames, said in videos]
    )
    shares = [*right.mean(0), right.all(1).mean()]
    return f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
