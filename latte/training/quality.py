"""The quality of samples while a run trains: what `latte evaluate --run` computes, in the same tables."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import socket
from typing import TYPE_CHECKING

from latte.config import EvaluateConfig
from latte.errors import UserError
from latte.evaluation import curve
from latte.evaluation.evaluate import Sharing, load_network, sources
from latte.runtime import device
from latte.training.collective import agree_on, gather

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latte.config import TrainConfig

log = logging.getLogger("latte")
SHARED = (  # options, so that samples are made in the arithmetic of the training
    *("device_target", "device_id", "mode", "jit_level", "dtype", "enable_flash_attention"),
    *("vae_checkpoint", "vae_dtype", "sd_scale_factor", "guidance_scale", "i3d"),
)


class Quality:
    """Compares samples of a run's checkpoints with real videos; its networks stay in memory between two calls."""

    def __init__(self, cfg: TrainConfig, frames: int):
        """Check what can be checked before the first step: options, real videos and the weights of I3D.

        frames: those of a sampled video. Every rank must call this.
        Raises UserError if a comparison would fail.
        """
        if cfg.dtype == "bf16" and "bf16" not in device.current().tensor_dtypes:
            raise UserError(
                "dtype bf16 would hold for the network of eval_metrics too on this device; leave eval_metrics out, and "
                "run `latte evaluate --run` later"
            )
        machines = sorted(set(gather(socket.gethostname())))
        if len(machines) > 1:
            raise UserError(
                f"eval_metrics needs all ranks on one machine, but they are on {', '.join(machines)}; leave it out, "
                "and run `latte evaluate --run` beside the training"
            )
        real = cfg.eval_real or cfg.cache_folder or cfg.data_folder or ""
        shared = {name: getattr(cfg, name) for name in SHARED}
        if not cfg.distill_steps:  # else as the network says
            shared |= {"sampler": "ddim", "sampling_steps": cfg.sample_steps}
        self.cfg = EvaluateConfig(**shared, real=real, run=".", metrics=cfg.eval_metrics)
        for metric in self.cfg.wanted:
            if metric.frames > frames:
                raise UserError(
                    f"{metric.name} of eval_metrics takes {metric.frames} frames, but a sample has {frames}"
                )
        sources(self.cfg, [real])
        self.network = load_network(cfg.i3d)
        self._sampler: curve.Sampler | None = None

    def measure(self, run: Path, step: int) -> None:
        """Add the checkpoint of a step to the tables of the run, unless it is there; every rank must call this.

        What goes wrong is logged and the training goes on, but with several ranks UserError is raised: the others wait.
        """
        agree_on("")  # the checkpoint is written by then
        cfg = dataclasses.replace(self.cfg, run=str(run))
        try:
            if self._sampler is None:
                self._sampler = curve.Sampler(cfg, curve.checkpoint_of(cfg, step))
            curve.run(cfg, self.network, self._sampler, only=step, sharing=Sharing(_numbers, lambda: agree_on("")))
        except UserError as error:
            if device.current().world_size > 1:
                raise
            log.warning("eval_metrics: step %d is left out: %s", step, error)


def _numbers() -> Iterator[int]:
    """Return the numbers of this rank, once every rank is here."""
    agree_on("")
    here = device.current()
    return itertools.count(here.rank, here.world_size)
