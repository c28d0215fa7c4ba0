"""Measure a training step on long videos: blockwise attention and attention at once, with and without recomputation.

    python tools/benchmark_attention.py --num_frames 128 --rows "blocks recompute" "at once recompute" blocks

Each row is a process of its own, which gives its own peak memory; a row that does not fit into memory is reported. The
gradients of all rows are compared with the first row's: the deviation is relative to the largest element of a weight.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark_ours import step_inputs

from latte.config import Options, in_range, option, parse_config
from latte.errors import run_main

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Benchmark"""

    num_frames: int = option(128, "frames of the video")
    model_name: str = option("Latte-S/2", "network to train")
    image_size: int = option(256, "width and height of the frames in pixels")
    steps: int = option(1, "steps after the first one, which compiles; the last one is measured")
    threads: int = option(2, "CPU threads")
    rows: list[Literal["blocks recompute", "at once recompute", "blocks", "at once"]] = option(
        ["blocks recompute", "at once recompute", "blocks", "at once"], "rows of the table"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_frames", "image_size", "steps", "threads"):
            in_range(self, key, 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    settings = parse_config(Settings, argv, __doc__)
    print("| attention | seconds per step | first step s | peak memory GB | loss | gradients differ by |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in settings.rows:
            job = {"row": row, "frames": settings.num_frames, "model_name": settings.model_name}
            job |= {"size": settings.image_size // 8, "steps": settings.steps, "folder": folder}
            env = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
            command = [sys.executable, __file__, "--job", json.dumps(job)]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=False, text=True)
            if done.returncode:
                print(f"| {row} | does not fit or failed (code {done.returncode}) | | | | |", flush=True)
                continue
            got = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {row} | {got['seconds']:.1f} | {got['first']:.1f} | {got['memory'] / 1e9:.2f} "
                f"| {got['loss']:.7f} | {got['deviation']:.1e} |",
                flush=True,
            )


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of one row: seconds, memory in bytes, loss and deviation of the gradients."""
    import mindspore as ms
    import numpy as np

    from latte import create_model
    from latte.models.precision import prepare
    from latte.runtime import device
    from latte.training.step import StepOptions, TrainStep

    device.init_device("CPU")
    if job["row"].startswith("at once"):
        module = sys.modules["latte.ops.attention"]  # `latte.ops.attention` is the function
        module._by_blocks = module._at_once
    sizes = {"num_frames": job["frames"], "input_size": job["size"], "seed": None}
    net, ema = (create_model(job["model_name"], **sizes) for _ in range(2))
    rng = np.random.default_rng(0)
    for pair in zip(net.get_parameters(), ema.get_parameters(), strict=True):
        values = ms.Tensor(rng.normal(size=pair[0].shape, scale=0.02).astype(np.float32))
        for weight in pair:
            if weight.requires_grad:
                weight.set_data(values)
    for each in (net, ema):
        prepare(each, for_training=True)
    if job["row"].endswith("recompute"):
        for block in net.blocks:
            block.recompute()
    step = TrainStep(net, ema, None, np.full(job["steps"] + 1, 1e-4, np.float32), StepOptions(scale_factor=1.0))
    call, given = step.as_function(), step_inputs(job)
    seconds, gradients = [], {}
    for i in range(job["steps"] + 1):
        start = time.perf_counter()
        loss = float(call(*given))
        seconds.append(time.perf_counter() - start)
        if i == 0:  # the first moment of AdamW is a tenth of the first gradient
            gradients = {f"{k:03}": m.asnumpy().copy() for k, m in enumerate(step.optimizer.moment1)}
            first_loss = loss
    reference = Path(job["folder"]) / "gradients.npz"
    if not reference.exists():
        np.savez(reference, **gradients)
    with np.load(reference) as wanted:
        found = [np.abs(gradients[k] - wanted[k]).max() / max(np.abs(wanted[k]).max(), 1e-30) for k in wanted.files]
    memory = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    result = {"first": seconds[0], "seconds": seconds[-1], "loss": first_loss, "memory": memory}
    return result | {"deviation": float(max(found))}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        run_main(main)
