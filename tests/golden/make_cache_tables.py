"""Print what ways to skip work lose and save beside fewer steps: the tables of "Fewer network calls" in docs/sample.md.

    python tests/golden/make_cache_tables.py plain REAL FOLDER [VIDEOS]    # the demo model, without guidance
    python tests/golden/make_cache_tables.py guided REAL FOLDER [VIDEOS]   # with it
    python tests/golden/make_cache_tables.py text REAL FOLDER [VIDEOS]     # the tiny text-to-video folder of the tests

REAL holds held-out clips as make_demo_tables.py takes them. Each row is beside the full run of the same noise. TeaCache
has the threshold with which it computes as large a share as the others of its group, found by bisection. Time is that
of the network calls of one video to the full run's, both in turn, the least of three. What is in FOLDER is kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from make_demo_tables import FRAMES, ROOT, chosen, row

from latte import LattePipeline
from latte.config import ScheduleConfig
from latte.data.demo import CLASSES
from latte.evaluation import evaluate
from latte.inference import schedule_search
from latte.io.video import read_frames, save_png_frames
from latte.runtime import device

STEPS = {"plain": 40, "guided": 30, "text": 30}  # of the full run
GROUPS = {"plain": (10, 20, 30), "guided": (10, 15), "text": (10, 15)}  # computed calls
PROMPTS = ("a dog runs", "the sea at night", "a red car", "two birds")
SOLVER = "dpmpp_2m"
Setting = tuple[str, int, str | None]


def main(kind: str, real: str, folder: str, videos: str = "16") -> None:
    """Print a table."""
    device.init_device("CPU")
    count, home, steps = int(videos), Path(folder) / kind, STEPS[kind]
    home.mkdir(parents=True, exist_ok=True)
    pipe = LattePipeline.from_pretrained(ROOT / ("tests/fixtures/latte_t2v" if kind == "text" else "models/demo"))
    network = None if kind == "text" else evaluate.load_network(None)
    for place, source in enumerate(chosen(Path(real), count)):
        if not (target := home / "clips" / f"video-{place:04d}").exists():
            save_png_frames(read_frames(source)[:FRAMES], target)
    full: Setting = (SOLVER, steps, None)
    head = "| solver | steps | cache | passes | time | PSNR, dB |"
    print(head + ("" if kind == "text" else " SSIM | VMAF | flicker | FVD |"))
    print("| --- | ---: | --- | ---: | ---: | ---: |" + ("" if kind == "text" else " ---: | ---: | ---: | ---: |"))
    for setting in (full, *settings(kind, pipe, home)):
        share = sampled(kind, pipe, home, setting, count)
        spent = 1.0 if setting == full else relative_time(kind, pipe, setting, full)
        told = f"| {setting[0]} | {setting[1]} | {Path(setting[2] or '').name} | {share:.0%} | {spent:.0%} "
        if network is None:
            print(f"{told}| {psnr(home, setting, full, count)} |", flush=True)
        else:
            figures = row(named(setting), home, named(full), real, count, network).split("|", 2)[2]
            print(f"{told}|{figures}", flush=True)


def settings(kind: str, pipe: LattePipeline, home: Path) -> list[Setting]:
    """Return the rows of a table but the full run's."""
    steps, found = STEPS[kind], []
    for calls in GROUPS[kind]:
        found += [(SOLVER, calls, None), ("unipc", calls, None)]
        found += [(SOLVER, steps, f"calls{calls}"), (SOLVER, steps, f"calls{calls}-order2")]
        if kind == "plain":
            found.append((SOLVER, steps, str(searched(home, steps, calls))))
        else:
            found.append((SOLVER, steps, f"calls{calls}-order2+fastercache:5"))
        found.append((SOLVER, steps, f"teacache:{threshold(kind, pipe, home, calls / steps)}"))
    if kind != "plain":
        found += [(SOLVER, steps, "fastercache:5"), (SOLVER, steps, "pab:235+fastercache:5")]
    return [*found, *((SOLVER, steps, f"pab:{ranges}") for ranges in (235, 347, 469))]


def searched(home: Path, steps: int, calls: int) -> Path:
    """Return the file of the schedule that `latte schedule` finds with order 2."""
    file = home / f"found{calls}.json"
    if not file.exists():
        demo = {"checkpoint": str(ROOT / "models" / "demo"), "sampler": SOLVER, "sampling_steps": steps}
        options = {"class_labels": [0], "num_samples": 1, "guidance_scale": 1.0, "order": 2, "calls": calls}
        options["max_gap"] = 1 + -(-steps // calls)  # one more than it needs
        schedule_search.find(ScheduleConfig(schedule_file=str(file), **demo, **options))
    return file


def threshold(kind: str, pipe: LattePipeline, home: Path, share: float) -> float:
    """Return TeaCache's threshold that computes about such a share of the calls of the first video."""
    file = home / "thresholds.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if str(share) not in known:
        low, high = 0.0, 4.0
        for _ in range(10):
            middle = (low + high) / 2
            make(kind, pipe, (SOLVER, STEPS[kind], f"teacache:{middle}"), 0)
            low, high = (middle, high) if 1 - pipe.latents.skipped > share else (low, middle)
        known[str(share)] = float(f"{high:.3g}")
        file.write_text(json.dumps(known))
    return known[str(share)]


def make(kind: str, pipe: LattePipeline, setting: Setting, place: int) -> np.ndarray:
    """Return a video (F, H, W, 3) uint8."""
    solver, steps, cache = setting
    options: dict[str, Any] = {"prompt": PROMPTS[place % len(PROMPTS)]} if kind == "text" else {}
    if kind != "text":
        options = {"class_labels": place % len(CLASSES), "guidance_scale": 3.0 if kind == "guided" else 1.0}
    options |= {"num_inference_steps": steps, "sampler": solver, "cache": cache, "seed": place}
    return pipe(output_type="uint8", progress=False, **options).frames[0]


def sampled(kind: str, pipe: LattePipeline, home: Path, setting: Setting, count: int) -> float:
    """Make the videos of a row that are missing; return the share of the network's passes that compute all blocks."""
    told = home / named(setting) / "share"
    shares = json.loads(told.read_text()) if told.exists() else {}
    for place in range(count):
        target = home / named(setting) / f"video-{place:04d}"
        if str(place) not in shares or not target.exists():
            save_png_frames(make(kind, pipe, setting, place), target)
            shares[str(place)] = 1 - pipe.latents.skipped
            told.write_text(json.dumps(shares))
    return float(np.mean(list(shares.values())))


def relative_time(kind: str, pipe: LattePipeline, setting: Setting, full: Setting) -> float:
    """Return the time of the network calls of one video relative to that of the full run."""
    seconds: dict[Setting, list[float]] = {setting: [], full: []}
    for _ in range(3):
        for each, found in seconds.items():
            before = len(pipe.latents.step_seconds)
            make(kind, pipe, each, 0)
            found.append(sum(pipe.latents.step_seconds[before:]))
    return min(seconds[setting]) / min(seconds[full])


def psnr(home: Path, setting: Setting, full: Setting, count: int) -> str:
    """Return the mean PSNR to the full run."""
    if setting == full:
        return ""
    found = []
    for place in range(count):
        a, b = (read_frames(home / named(each) / f"video-{place:04d}").astype(float) for each in (setting, full))
        found.append(20 * np.log10(255 / max(np.sqrt(np.square(a - b).mean()), 1e-3)))
    return f"{np.mean(found):.1f}"


def named(setting: Setting) -> str:
    """Return the name of a folder of samples."""
    solver, steps, cache = setting
    return "-".join(str(part) for part in (solver, steps, cache and Path(cache).name) if part)


if __name__ == "__main__":
    main(*sys.argv[1:])
