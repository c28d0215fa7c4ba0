"""Compare the speed with official PyTorch: same machine, same run, same weights and inputs, each in its own process.

    python tools/benchmark.py --official ../Latte --torch_python ../torch-venv/bin/python

The official code is not part of this project: it needs a checkout of that code and a Python with torch and diffusers.

Parts: step, a denoising step; vae, encoding and decoding a frame; train, a training step from latents with AdamW and
EMA weights, and the time of the data loader alone per video; cache, encoding frames into a cache of latents, and
reading windows of 128 frames from both kinds of cache; t2v, a network call of the text-to-video Latte-1 in full size,
compared with diffusers.

Each side is a process of its own, which gives its own peak memory. The two sides take turns call by call, and the
reported speed is the median over pairs of calls, so that a machine whose speed drifts slows both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark_common import LATENT_SCALE, WAITING
from tqdm import tqdm

from latte.config import Options, in_range, option, parse_config
from latte.config.parser import REQUIRED
from latte.errors import UserError, run_main

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = ("step", "vae", "train", "cache", "t2v")
NAMES = {
    "step": "denoising step {dtype}",
    "train": "training step {dtype}",
    "cache": "caching a frame {dtype}",
    "t2v": "text to video, 512 px, {dtype}",
}
T2V_PIXELS = 512  # of Latte-1


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Benchmark"""

    official: str = option(REQUIRED, "checkout of the official PyTorch repository")
    torch_python: str = option(REQUIRED, "Python interpreter that has torch and diffusers")
    parts: list[Literal["step", "vae", "train", "cache", "t2v"]] = option(list(PARTS), "what to measure")
    model_name: str | None = option(None, "network to measure; null = Latte-XL/2, and Latte-S/2 in training")
    image_size: int = option(256, "width and height of the frames in pixels")
    num_frames: int = option(16, "frames per video")
    dtypes: list[Literal["fp32", "bf16"]] = option(
        ["fp32", "bf16"], "arithmetic of step and cache; the other parts use fp32"
    )
    steps: int = option(3, "calls to measure: denoising steps, frames, training steps")
    torch_bf16_steps: int = option(
        1, "calls to measure with PyTorch's bf16 autocast; 0 = only the first, if one call takes minutes"
    )
    warm_up: int = option(
        30, "training steps before the measured ones; MindSpore tunes its CPU threads in the first 30"
    )
    threads: int = option(2, "CPU threads of each side")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("image_size", "num_frames", "steps", "threads"):
            in_range(self, key, 1)
        for key in ("torch_bf16_steps", "warm_up"):
            in_range(self, key, 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    settings = parse_config(Settings, argv, __doc__)
    torch_python, threads = settings.torch_python, settings.threads
    job = {"official": settings.official, "frames": settings.num_frames}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        job["folder"] = folder
        for part in settings.parts:
            job["size"] = (T2V_PIXELS if part == "t2v" else settings.image_size) // LATENT_SCALE
            job["model_name"] = settings.model_name or ("Latte-S/2" if part == "train" else "Latte-XL/2")
            for dtype in ["fp32"] if part in ("vae", "train", "t2v") else settings.dtypes:
                here = {
                    **job,
                    "part": part,
                    "dtype": dtype,
                    "steps": settings.steps,
                    "warm_up": settings.warm_up if part == "train" else 0,
                }
                few = settings.torch_bf16_steps if dtype == "bf16" else settings.steps
                pair = ({**here, "side": "torch", "steps": few}, {**here, "side": "ours"})
                rows.append(_measure(pair, torch_python, threads))
                if part == "train":
                    notes.append(_loader_note(rows[-1][1], torch_python, threads))
                notes += rows[-1][1].get("notes", [])
    print("\n".join((_machine(threads), _table(rows), *notes)))


def _loader_note(trained: dict[str, Any], torch_python: str, threads: int) -> str:
    """Measure the loader and return a sentence that compares it with our training step."""
    (loader,) = _measure(({**trained, "part": "loader"},), torch_python, threads)
    return (
        f"The loader alone takes {1000 * loader['seconds']:.0f} ms per video of frames on the disk: "
        f"{trained['seconds'] / loader['seconds']:.0f} times as fast as the training step consumes them."
    )


def _measure(jobs: tuple[dict[str, Any], ...], torch_python: str, threads: int) -> list[dict[str, Any]]:
    """Run each measurement in a process of its own, call by call in turn, and return the results."""
    processes: list[subprocess.Popen] = []
    lines: list[str] = []  # the last line of each process: WAITING, or its result
    name = f"{jobs[0]['part']} {jobs[0]['dtype']}"
    with tqdm(desc=name, unit="call") as bar:
        for job in jobs:  # the second job needs the weights that the first one has written before it waits
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
    """Return the next line by which a measurement waits or ends; raises UserError if it failed."""
    for line in process.stdout:
        if line.startswith((WAITING, "{")):
            return line.strip()
    raise UserError(f"the measurement {job['part']} {job['dtype']} {job['side']} failed; its error is above")


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
            what = f"VAE {key} per frame" if key else NAMES[ours["part"]].format(**ours)
            memory = f"{peer['memory'] / 1e9:.2f} / {ours['memory'] / 1e9:.2f}"
            lines.append(
                f"| {what} | {a['seconds']:.2f} | {b['seconds']:.2f} | {_speed(a, b):.2f} x "
                f"| {b['first']:.1f} | {memory} | {b['deviation']:.1e} |"
            )
    return "\n".join(lines)


def _speed(peer: dict[str, Any], ours: dict[str, Any]) -> float:
    """Return the time of the peer's calls relative to ours, as the median over pairs of calls."""
    if len(peer.get("all", ())) != len(ours.get("all", ())):
        return peer["seconds"] / ours["seconds"]
    return statistics.median(a / b for a, b in zip(peer["all"], ours["all"], strict=True))


if __name__ == "__main__":
    run_main(main)
