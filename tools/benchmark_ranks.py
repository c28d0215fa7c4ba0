"""Measure the memory of CPU ranks that share the frames of a video, or what ZeRO shares.

    python tools/benchmark_ranks.py --model_name Latte-S/2 --num_frames 128 --ranks 1 2 4
    python tools/benchmark_ranks.py --works zero --zero_stages 0 1 2 3 --model_name Latte-B/2 --num_frames 16 --ranks 4

Each row is a start of mpirun, with random weights and latents. Memory is that of the rank that takes most, of the
whole process: MindSpore and the weights, which every rank has, are the column before the first step. The work `zero` is
two training steps with EMA weights and recomputed blocks, each rank with a video of its own.
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
    works: list[Literal["sampling", "training", "zero"]] = option(["sampling", "training"], "what to measure")
    zero_stages: list[Literal[0, 1, 2, 3]] = option([0, 1, 2, 3], "rows of the table for the work zero")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_frames", "image_size"):
            in_range(self, key, 1)
        if not self.ranks or min(self.ranks) < 1:
            raise UserError(f"ranks is {self.ranks}, but must be numbers from 1 on")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    settings = parse_config(Settings, argv, __doc__)
    columns = ("before the first step", "peak of a rank", "of all ranks", "of a rank after the last step")
    print(f"| ranks | work | {' | '.join(f'{column}, GB' for column in columns)} |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for work in settings.works:
        for ranks in settings.ranks:
            for stage in settings.zero_stages if work == "zero" else (0,):
                job = dataclasses.asdict(settings) | {"work": work, "ranks": ranks, "zero_stage": stage}
                before, peaks, used = _start(job)
                name = f"zero_stage {stage}" if work == "zero" else work
                figures = f"{before:.2f} | {max(peaks):.2f} | {sum(peaks):.2f} | {used:.2f}"
                print(f"| {ranks} | {name} | {figures} |", flush=True)


def _start(job: dict[str, Any]) -> tuple[float, list[float], float]:
    """Return the GB of a rank before its first step, of all at their peaks, and of a rank after the last step."""
    root = ["--allow-run-as-root"] if os.name == "posix" and os.geteuid() == 0 else []
    launcher = ["mpirun", *root, "--oversubscribe", "-n", str(job["ranks"])] if job["ranks"] > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, sys.executable, __file__, "--job", json.dumps(job | {"folder": folder})]
        code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if code:
            raise UserError(f"{job['work']} on {job['ranks']} ranks failed with code {code}; its error is above")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).iterdir())]
    before, peaks, used = zip(*found, strict=True)
    return max(before) / 1e9, [peak / 1e9 for peak in peaks], max(used) / 1e9


def measure(job: dict[str, Any]) -> None:
    """Do a rank's part of a job, and write its memory in bytes, before the first step, at the peak and at the end."""
    import psutil

    from latte import create_model
    from latte.runtime import device

    parallel, sequence = job["ranks"] > 1, 1 if job["work"] == "zero" else job["ranks"]
    here = device.init_device("CPU", use_parallel=parallel, connect=parallel, sequence=sequence)
    size = job["image_size"] // 8
    net = create_model(job["model_name"], num_frames=job["num_frames"], input_size=size)
    zero = job["work"] == "zero"
    ema = create_model(job["model_name"], num_frames=job["num_frames"], input_size=size) if zero else None
    before = device.peak_memory()
    if job["work"] == "sampling":
        sample(net)
    else:
        nets, net, ema = [net, ema], None, None
        train(nets, job | {"frames": job["num_frames"], "size": size})
    file, used = Path(job["folder"]) / f"{here.rank}.json", psutil.Process().memory_info().rss
    file.write_text(json.dumps([before, device.peak_memory(), used]), encoding="utf-8")


def sample(net: nn.Cell) -> None:
    """Sample two steps."""
    from latte.inference.latents import LatentSampler, Request

    LatentSampler(net).sample(Request(seeds=(0,), shape=net.config.latent_shape(), num_inference_steps=2))


def train(nets: list[nn.Cell | None], job: dict[str, Any]) -> None:
    """Train with AdamW: the work zero two steps of a network and its EMA weights, else one step without these."""
    import numpy as np

    from latte.models.precision import prepare
    from latte.training.step import StepOptions, TrainStep

    zero = job["work"] == "zero"
    net, ema = nets
    prepare(net, for_training=True)
    if ema:
        prepare(ema, for_training=True)
    for block in net.blocks if job["use_recompute"] or zero else ():
        block.recompute()
    options = StepOptions(scale_factor=1.0, zero_stage=job["zero_stage"])
    step = TrainStep(net, ema, None, np.full(2, 1e-4, np.float32), options)
    nets.clear()
    del net, ema  # that of EMA weights is not needed where ranks share these
    call = step.as_function()
    for _ in range(2 if zero else 1):
        float(call(*step_inputs(job)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        measure(json.loads(sys.argv[2]))
    else:
        run_main(main)
