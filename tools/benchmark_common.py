"""Shared by both sides of tools/benchmark.py; imports neither latte nor MindSpore, which are missing beside torch."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

LATENT_SCALE = 8  # pixels per latent
WEIGHTS = {"step": "latte.pt", "vae": "vae.bin", "train": "train.pt", "cache": "vae.bin", "t2v": "t2v"}
TOKENS, CAPTION = 120, 4096  # of Latte-1
CLIPS, CLIP_FRAMES = 8, 40  # the loader's data
LEARNING_RATE, EMA_DECAY = 1e-4, 0.9999
WAITING = "waiting for its turn"  # a measurement prints this before each call


def timed(call: Callable[[int], Any], count: int, warm_up: int = 0) -> dict[str, Any]:
    """Time a first call and, after `warm_up` more, `count` calls in seconds, each when it is this process's turn."""
    seconds = []
    for i in range(1 + warm_up + count):
        print(WAITING, flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - start)
    counted = seconds[1 + warm_up :] or seconds
    return {"first": seconds[0], "all": counted, "seconds": statistics.median(counted)}


def inputs(job: dict[str, Any]) -> dict[str, Any]:
    """Return the random inputs of a job, the same for both sides."""
    rng = np.random.default_rng(0)
    size, frames = job["size"], job["frames"]
    pixels = size * LATENT_SCALE
    draw = {"x": (1, frames, 4, size, size), "noise": (1, frames, 4, size, size)}
    draw |= {"image": (1, 3, pixels, pixels), "z": (1, 4, size, size), "text": (1, TOKENS, CAPTION)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in draw.items()}


def save(job: dict[str, Any], name: str, value: Any) -> None:
    """Save an output of PyTorch for `deviation`."""
    np.save(Path(job["folder"]) / f"{name}.npy", value)


def deviation(job: dict[str, Any], name: str, value: Any) -> float:
    """Return the largest deviation from PyTorch's float32 result, relative to its largest element."""
    expected = np.load(Path(job["folder"]) / f"{name}.npy")
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def work(measurements: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Run the measurement that the program's argument asks for, and print the result as a line of JSON."""
    if not sys.argv[1:] or not sys.argv[1].startswith("{"):
        refuse()
    job = json.loads(sys.argv[1])
    result = measurements[job["part"]](job)
    print(json.dumps(result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def refuse() -> NoReturn:
    """Exit with code 2, with an error for users who start a side themselves."""
    print(
        f"error: {Path(sys.argv[0]).name} is a part of tools/benchmark.py, which starts it; run that", file=sys.stderr
    )
    raise SystemExit(2)


def clips(job: dict[str, Any]) -> Path:
    """Return the folder of the loader's data; the first call makes it."""
    from PIL import Image

    root, side = Path(job["folder"]) / "clips", job["size"] * LATENT_SCALE
    if not root.exists():
        for clip in range(CLIPS):
            (root / str(clip)).mkdir(parents=True)
            small = np.random.default_rng(clip).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for frame in range(CLIP_FRAMES):
                image = Image.fromarray(np.roll(small, frame, 1)).resize((side * 3 // 2, side))
                image.save(root / str(clip) / f"f_{frame}.jpg", quality=95)
    return root
