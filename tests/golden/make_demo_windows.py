"""Print what windows cost and give with the demo model: the table of docs/sample.md on long videos and loops.

    python tools/make_demo_data.py --folder datasets/held_out --seed 1000 --clips 64
    python tests/golden/make_demo_windows.py datasets/held_out/frames FOLDER [VIDEOS]

Of each way as many long videos: the change from frame to frame where a window begins or ends, over that elsewhere, its
mean, and FVD of pieces of 16 frames beside as many held-out clips; then loops, with the change from the last frame to
the first. The videos stay in FOLDER; a second call makes those that are missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from latte import LattePipeline
from latte.config import EvaluateConfig
from latte.data.demo import CLASSES
from latte.evaluation import evaluate
from latte.io.video import read_frames, save_png_frames
from latte.runtime import device

ROOT = Path(__file__).parents[2]
WINDOW, FRAMES, STEPS = 16, 64, 12
WAYS = {  # name: arguments of the pipeline; without any, videos of 16 frames one after another
    "separate": {},
    "stride-8": {"window_stride": 8},
    "stride-4": {"window_stride": 4},
    "stride-8-fresh": {"window_stride": 8, "shared_noise": False},
}
LOOPS = {"loop-16": 16, "loop-32": 32}  # name: frames


def main(real: str, folder: str, videos: str = "6") -> None:
    """Print both tables."""
    device.init_device("CPU")
    count, home = int(videos), Path(folder)
    pipe = LattePipeline.from_pretrained(ROOT / "models" / "demo")
    network = evaluate.load_network(None)
    print("| | at borders / elsewhere | change per frame | FVD of pieces |\n| --- | ---: | ---: | ---: |")
    for name, given in WAYS.items():
        made = [video(pipe, home / name, place, given) for place in range(count)]
        stride = given.get("window_stride", WINDOW)
        changes = np.stack([change(frames)[:-1] for frames in made])  # (videos, F - 1)
        border = np.arange(1, FRAMES) % stride == 0
        ratio = changes[:, border].mean() / changes[:, ~border].mean()
        for place, frames in enumerate(made):
            for part in range(FRAMES // WINDOW):
                target = home / "pieces" / name / f"video-{place * FRAMES // WINDOW + part:04d}"
                if not target.exists():
                    save_png_frames(frames[part * WINDOW : (part + 1) * WINDOW], target)
        pieces = count * FRAMES // WINDOW
        options = {"fake": str(home / "pieces" / name), "metrics": [f"fvd{pieces}_{WINDOW}f"], "bootstrap": 0}
        (found,) = evaluate.run(
            EvaluateConfig(real=real, output_path=str(home / "fvd"), real_stride=1, **options), network
        )
        print(f"| {name} | {ratio:.3f} | {changes.mean():.2f} | {found['value']:.0f} |", flush=True)
    print("\n| | last to first | neighbours, mean | most |\n| --- | ---: | ---: | ---: |")
    for name, frames in LOOPS.items():
        given = {"window_stride": 8, "loop": True, "video_length": frames}
        made = np.stack([change(video(pipe, home / name, place, given)) for place in range(count)])  # (videos, F)
        rest = made[:, :-1]
        print(f"| {name} | {made[:, -1].mean():.2f} | {rest.mean():.2f} | {rest.max(1).mean():.2f} |", flush=True)


def video(pipe: LattePipeline, folder: Path, place: int, given: dict) -> np.ndarray:
    """Return a video (F, H, W, 3) uint8, from its files or made now."""
    target = folder / f"video-{place:04d}"
    if not target.exists():
        usual = {"class_labels": place % len(CLASSES), "num_inference_steps": STEPS, "sampler": "unipc", "seed": place}
        if given:
            long = pipe(**usual, **{"video_length": FRAMES, **given}, output_type="uint8", progress=False).frames[0]
        else:
            seeds = [place * FRAMES // WINDOW + part for part in range(FRAMES // WINDOW)]
            usual |= {"seed": seeds, "class_labels": [place % len(CLASSES)] * len(seeds)}
            long = np.concatenate(list(pipe(**usual, output_type="uint8", progress=False).frames))
        save_png_frames(long, target)
    return read_frames(target)


def change(frames: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each frame from the next, the last one's from the first, (F,)."""
    return np.abs(np.roll(frames, -1, 0).astype(np.float64) - frames).mean((1, 2, 3))


if __name__ == "__main__":
    main(*sys.argv[1:])
