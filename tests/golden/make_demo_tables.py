"""Print what is measured of the demo model against held-out clips: the tables of docs/sample.md and docs/evaluate.md.

    python tools/make_demo_data.py --folder datasets/held_out --seed 1000 --clips 171
    python tests/golden/make_demo_tables.py datasets/held_out/frames FOLDER [VIDEOS]

First what the autoencoder alone leaves of such clips, then solvers and caches with as many network calls that compute
the blocks, beside many steps of DDIM from the same noise. The videos stay in FOLDER; a second call makes those that are
missing.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from latte import LattePipeline
from latte.config import EvaluateConfig
from latte.config.compare import CompareConfig
from latte.data.demo import CLASSES
from latte.data.transforms import pixels_of
from latte.evaluation import compare, evaluate
from latte.io.video import read_frames, save_png_frames
from latte.runtime import device

ROOT = Path(__file__).parents[2]
SOLVERS = ("ddim", "dpmpp_2m", "unipc")
REFERENCE = ("ddim", 250, None)
# Solver, steps, cache; at equal network calls, but for the last of each group, whose other calls compute no blocks.
SETTINGS = (
    *((solver, 5, None) for solver in SOLVERS),
    ("dpmpp_2m", 15, "calls5-order2"),
    *((solver, 10, None) for solver in SOLVERS),
    ("dpmpp_2m", 30, "calls10-order2"),
    *((solver, 20, None) for solver in SOLVERS),
    ("dpmpp_2m", 40, "calls20-order2"),
    *((solver, 50, None) for solver in SOLVERS),
)
FRAMES = 16


def main(real: str, folder: str, videos: str = "24") -> None:
    """Print both tables."""
    device.init_device("CPU")
    count, home = int(videos), Path(folder)
    network = evaluate.load_network(None)
    pipe = LattePipeline.from_pretrained(ROOT / "models" / "demo")
    clips = home / "clips"
    for place, source in enumerate(chosen(Path(real), count)):
        frames = read_frames(source)[:FRAMES]
        name = f"video-{place:04d}"
        if not (clips / name).exists():
            save_png_frames(frames, clips / name)
        if not (home / "autoencoder" / name).exists():
            moments = pipe.codec.moments(pixels_of(frames))
            latents = pipe.codec.sample(moments, np.zeros_like(moments[:, : moments.shape[1] // 2]))  # the mean
            save_png_frames(pipe.codec.decode(latents), home / "autoencoder" / name)

    print("| | PSNR, dB | SSIM | VMAF | flicker | FVD |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in ("clips", "autoencoder"):
        print(row(name, home, "clips", clips, count, network), flush=True)
    for setting in (REFERENCE, *SETTINGS):
        solver, steps, cache = setting
        for place in range(count):
            target = home / named(setting) / f"video-{place:04d}"
            if not target.exists():
                made = pipe(
                    class_labels=place % len(CLASSES),
                    seed=place,
                    num_inference_steps=steps,
                    sampler=solver,
                    cache=cache,
                    output_type="uint8",
                    progress=False,
                )
                save_png_frames(made.frames[0], target)
        print(row(named(setting), home, named(REFERENCE), real, count, network), flush=True)


def named(setting: tuple[str, int, str | None]) -> str:
    """Return the name of a folder of samples."""
    return "-".join(str(part) for part in setting if part)


def chosen(real: Path, count: int) -> list[Path]:
    """Return folders of frames, as many of each class as of the others."""
    by_class = [sorted(folder.iterdir()) for folder in sorted(real.iterdir())]
    return [by_class[place % len(by_class)][place // len(by_class)] for place in range(count)]


def row(name: str, home: Path, reference: str, real: str | Path, count: int, network: evaluate.Network) -> str:
    """Return a row of a table: distances of the videos in a folder from those of the reference, and from real clips."""
    figures = ["", "", ""]
    if name != reference:
        out = home / "compared" / name
        compare.run(CompareConfig(videos=[str(home / reference), str(home / name)], strips=0, output_path=str(out)))
        with (out / "compare.csv").open(newline="") as file:
            rows = [each for each in csv.DictReader(file) if each["video"] != "mean"]
        digits = {"psnr": 1, "ssim": 4, "vmaf": 1}
        figures = [f"{np.mean([float(each[key]) for each in rows]):.{digit}f}" for key, digit in digits.items()]
    options = {"fake": str(home / name), "metrics": [f"fvd{count}_{FRAMES}f"], "real_stride": 1, "bootstrap": 0}
    (found,) = evaluate.run(EvaluateConfig(real=str(real), output_path=str(home / "fvd"), **options), network)
    return f"| {name} | {' | '.join(figures)} | {found['fake']['flicker']:.2f} | {found['value']:.0f} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
