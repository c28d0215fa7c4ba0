"""Measure the memory of CPU ranks that share the frames of a video: of a sampling, and of a training step.

    python tools/benchmark_ranks.py --model_name Latte-S/2 --num_frames 128 --ranks 1 2 4

Each row is a start of mpirun, with random weights and latents. Memory is the peak of the rank that takes most, of the
whole process: MindSpore and the weights, which every rank has, are the column before the first step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark_ours import step_inputs

from latte.config import Options, in_range, option, parse_config
from latte.errors import UserError, run_main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mindspore import nn


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Benchmark"""

    num_frames: int = option(128, "frames of the video")
    model_name: str = option("Latte-S/2", "network")
    image_size: int = option(256, "width and height of the frames in pixels")
    use_recompute: bool = option(False, "recompute each block in the backward pass")
    ranks: list[int] = option([1, 2, 4], "rows of the table: how many ranks share the frames")
    works: list[Literal["sampling", "training"]] = option(["sampling", "training"], "what to measure")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_frames", "image_size"):
            in_range(self, key, 1)
        if not self.ranks or min(self.ranks) < 1:
            raise UserError(f"ranks is {self.ranks}, but must be numbers from 1 on")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    settings = parse_config(Settings, argv, __doc__)
    print("| ranks | work | before the first step, GB | peak of a rank, GB | of all ranks, GB |")
    print("| ---: | --- | ---: | ---: | ---: |", flush=True)
    for work in settings.works:
        for ranks in settings.ranks:
            before, peaks = _start(dataclasses.asdict(settings) | {"work": work, "ranks": ranks})
            print(f"| {ranks} | {work} | {before:.2f} | {max(peaks):.2f} | {sum(peaks):.2f} |", flush=True)


def _start(job: dict[str, Any]) -> tuple[float, list[float]]:
    """Return the GB of a rank before its first step, and of all at their peaks."""
    root = ["--allow-run-as-root"] if os.name == "posix" and os.geteuid() == 0 else []
    launcher = ["mpirun", *root, "--oversubscribe", "-n", str(job["ranks"])] if job["ranks"] > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, sys.executable, __file__, "--job", json.dumps(job | {"folder": folder})]
        code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if code:
            raise UserError(f"{job['work']} on {job['ranks']} ranks failed with code {code}; its error is above")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).iterdir())]
    return max(before for before, _ in found) / 1e9, [peak / 1e9 for _, peak in found]


def measure(job: dict[str, Any]) -> None:
    """Do a rank's part of a job, and write its memory in bytes, before the first step and at the peak."""
    from latte import create_model
    from latte.runtime import device

    parallel = job["ranks"] > 1
    here = device.init_device("CPU", use_parallel=parallel, connect=parallel, sequence=job["ranks"])
    size = job["image_size"] // 8
    net = create_model(job["model_name"], num_frames=job["num_frames"], input_size=size)
    before = device.peak_memory()
    if job["work"] == "sampling":
        sample(net)
    else:
        train(net, job | {"frames": job["num_frames"], "size": size})
    file = Path(job["folder"]) / f"{here.rank}.json"
    file.write_text(json.dumps([before, device.peak_memory()]), encoding="utf-8")


def sample(net: nn.Cell) -> None:
    """Sample two steps."""
    from latte.inference.latents import LatentSampler, Request

    LatentSampler(net).sample(Request(seeds=(0,), shape=net.config.latent_shape(), num_inference_steps=2))


def train(net: nn.Cell, job: dict[str, Any]) -> None:
    """Train a step with AdamW, without EMA weights."""
    import numpy as np

    from latte.models.precision import prepare
    from latte.training.step import StepOptions, TrainStep

    prepare(net, for_training=True)
    for block in net.blocks if job["use_recompute"] else ():
        block.recompute()
    step = TrainStep(net, None, None, np.full(1, 1e-4, np.float32), StepOptions(scale_factor=1.0))
    float(step.as_function()(*step_inputs(job)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        measure(json.loads(sys.argv[2]))
    else:
        run_main(main)
