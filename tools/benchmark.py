"""Measure beside official PyTorch: same machine, same run, same weights and inputs, each in its own process.

Parts: step, a denoising step; vae, encoding and decoding a frame; train, a training step from latents, with AdamW and
the average of weights, and how long the data loader alone takes for a video; cache, encoding frames into a cache of
latents, and reading windows of 128 frames from both kinds of cache; t2v, a call of the network of the text-to-video
Latte-1 in its full size, beside diffusers.

The official code is not part of this project. Put a checkout of it and a Python with torch and diffusers anywhere:

    python tools/benchmark.py --official ../Latte --torch_python ../torch-venv/bin/python

Each side is a process of its own, so that peak memory is its own. The two wait for each other and call in turn, and
the speed is the median over pairs of calls: a machine whose speed drifts slows both.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

LATENT_SCALE = 8  # pixels a latent
WEIGHTS = {"step": "latte.pt", "vae": "vae.bin", "train": "train.pt", "cache": "vae.bin", "t2v": "t2v"}
PARTS = ("step", "vae", "train", "cache", "t2v")
NAMES = {
    "step": "denoising step {dtype}",
    "train": "training step {dtype}",
    "cache": "caching a frame {dtype}",
    "t2v": "text to video, 512 px, {dtype}",
}
T2V_PIXELS, TOKENS, CAPTION = 512, 120, 4096  # of Latte-1
CLIPS, CLIP_FRAMES = 8, 40  # of the loader's data
LEARNING_RATE, EMA_DECAY = 1e-4, 0.9999
WAITING = "waiting for its turn"  # what a measurement says before each call


def main(
    official: str,
    torch_python: str,
    parts: list[Literal["step", "vae", "train", "cache", "t2v"]] | None = None,
    model_name: str | None = None,
    image_size: int = 256,
    num_frames: int = 16,
    dtypes: list[Literal["fp32", "bf16"]] | None = None,
    steps: int = 3,
    torch_bf16_steps: int = 1,
    warm_up: int = 30,
    threads: int = 2,
) -> None:
    """Measure and print a table.

    Args:
        official: checkout of the official PyTorch repository.
        torch_python: Python interpreter that has torch and diffusers.
        parts: what to measure; all by default.
        model_name: network to measure; Latte-XL/2 by default, and Latte-S/2 in training.
        image_size: pixels a side.
        num_frames: frames a video.
        dtypes: arithmetic to measure; both by default.
        steps: calls that count: denoising steps, frames, training steps.
        torch_bf16_steps: the same for PyTorch's bf16 autocast; 0 times the first step, where a step takes minutes.
        warm_up: training steps before those that count. MindSpore's CPU kernels try out, in the first 30 calls at
            most, among how many threads they share their work; a training has thousands.
        threads: CPU threads for both sides.
    """
    job = {"official": official, "frames": num_frames}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        job["folder"] = folder
        for part in parts or PARTS:
            job["size"] = (T2V_PIXELS if part == "t2v" else image_size) // LATENT_SCALE
            job["model_name"] = model_name or ("Latte-S/2" if part == "train" else "Latte-XL/2")
            for dtype in ["fp32"] if part in ("vae", "train", "t2v") else dtypes or ["fp32", "bf16"]:
                here = {
                    **job,
                    "part": part,
                    "dtype": dtype,
                    "steps": steps,
                    "warm_up": warm_up if part == "train" else 0,
                }
                few = torch_bf16_steps if dtype == "bf16" else steps
                pair = ({**here, "side": "torch", "steps": few}, {**here, "side": "ours"})
                rows.append(_measure(pair, torch_python, threads))
                if part == "train":
                    notes.append(_loader_note(rows[-1][1], torch_python, threads))
                notes += rows[-1][1].get("notes", [])
    print("\n".join((_machine(threads), _table(rows), *notes)))


def _loader_note(trained: dict[str, Any], torch_python: str, threads: int) -> str:
    """Measure the loader and say how it compares with our training step."""
    (loader,) = _measure(({**trained, "part": "loader"},), torch_python, threads)
    return (
        f"The loader alone takes {1000 * loader['seconds']:.0f} ms for a video of frames on the disk: "
        f"{trained['seconds'] / loader['seconds']:.0f} x what the training step consumes."
    )


def _measure(jobs: tuple[dict[str, Any], ...], torch_python: str, threads: int) -> list[dict[str, Any]]:
    """Make each measurement in a process of its own, call by call in turn, and return what they measured."""
    processes: list[subprocess.Popen] = []
    lines: list[str] = []  # the last one of each: that it waits, or its result
    name = f"{jobs[0]['part']} {jobs[0]['dtype']}"
    with tqdm(desc=name, unit="call") as bar:
        for job in jobs:  # the second one needs the weights that the first one has written when it waits
            processes.append(_start(job, torch_python, threads))
            lines.append(_next_line(processes[-1], job))
        while WAITING in lines:
            for i, process in enumerate(processes):
                if lines[i] == WAITING:
                    print(file=process.stdin, flush=True)
                    lines[i] = _next_line(process, jobs[i])
                    bar.update()
    return [job | json.loads(line) for job, line in zip(jobs, lines, strict=True)]


def _start(job: dict[str, Any], torch_python: str, threads: int) -> subprocess.Popen:
    """Start the process of a measurement."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if job["side"] == "torch":
        env["PYTHONPATH"] = job["official"]
    script = Path(__file__).with_name(f"benchmark_{job['side']}.py")
    command = [torch_python if job["side"] == "torch" else sys.executable, script]
    command.append(json.dumps(job | {"threads": threads}))
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _next_line(process: subprocess.Popen, job: dict[str, Any]) -> str:
    """Return the next line with which a measurement waits, or ends."""
    for line in process.stdout:
        if line.startswith((WAITING, "{")):
            return line.strip()
    raise SystemExit(f"error: the measurement {job['part']} {job['dtype']} {job['side']} failed, see above")


def timed(call: Callable[[int], Any], count: int, warm_up: int = 0) -> dict[str, Any]:
    """Time a first call and, after some more, those that count, each when it is this process's turn."""
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
    import numpy as np

    rng = np.random.default_rng(0)
    size, frames = job["size"], job["frames"]
    pixels = size * LATENT_SCALE
    draw = {"x": (1, frames, 4, size, size), "noise": (1, frames, 4, size, size)}
    draw |= {"image": (1, 3, pixels, pixels), "z": (1, 4, size, size), "text": (1, TOKENS, CAPTION)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in draw.items()}


def save(job: dict[str, Any], name: str, value: Any) -> None:
    import numpy as np

    np.save(Path(job["folder"]) / f"{name}.npy", value)


def deviation(job: dict[str, Any], name: str, value: Any) -> float:
    """Return the largest deviation from PyTorch's float32 result, relative to its largest number."""
    import numpy as np

    expected = np.load(Path(job["folder"]) / f"{name}.npy")
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def work(measurements: dict[str, Callable[[dict[str, Any]], dict[str, Any]]], job: dict[str, Any]) -> None:
    """Make one measurement of those there are, and print it as a line of JSON."""
    result = measurements[job["part"]](job)
    print(json.dumps(result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def clips(job: dict[str, Any]) -> Path:
    """Return the folder of the loader's data, which is made the first time."""
    import numpy as np
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


def _machine(threads: int) -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    flags = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in Path("/proc/cpuinfo").read_text()
    ]
    return f"{len(names)} x {names[0]} ({', '.join(flags)}), {threads} threads"


def _table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        "| what | PyTorch s | ours s | our speed | our first call s | peak memory GB, PyTorch / ours | deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, ours in rows:
        for key in ("encode", "decode") if ours["part"] == "vae" else (None,):
            a, b = (row[key] if key else row for row in (peer, ours))
            what = f"VAE {key} a frame" if key else NAMES[ours["part"]].format(**ours)
            memory = f"{peer['memory'] / 1e9:.2f} / {ours['memory'] / 1e9:.2f}"
            lines.append(
                f"| {what} | {a['seconds']:.2f} | {b['seconds']:.2f} | {_speed(a, b):.2f} x "
                f"| {b['first']:.1f} | {memory} | {b['deviation']:.1e} |"
            )
    return "\n".join(lines)


def _speed(peer: dict[str, Any], ours: dict[str, Any]) -> float:
    """Return how many of our calls fit into one of the peer's, the median over pairs of calls."""
    if len(peer.get("all", ())) != len(ours.get("all", ())):
        return peer["seconds"] / ours["seconds"]
    return statistics.median(a / b for a, b in zip(peer["all"], ours["all"], strict=True))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
