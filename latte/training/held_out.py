"""The loss on videos that are kept out of training, by timestep, always on the same clips with the same noise."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import math
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from tqdm import tqdm

from latte.data.cache import BrokenVideoError
from latte.data.dataset import PixelStore, Sample, VideoDataset
from latte.diffusion.gaussian import q_sample
from latte.diffusion.loss import loss_terms
from latte.errors import UserError
from latte.runtime import device, graphs
from latte.training.collective import gather
from latte.training.metrics import BINS, LOSSES, OF_BINS, STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latte.components.codec import Codec
    from latte.data.loader import TrainingSource
    from latte.diffusion.gaussian import GaussianTables
    from latte.diffusion.loss import DiffusionLoss
    from latte.inference.latents import LatentSampler

log = logging.getLogger("latte")
SEED = 0  # of the draws: runs with other seeds are measured on the same clips with the same noise
LEAST = 2  # held-out videos


def split(count: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the videos to train on, and of those that are kept out: every `held_out`-th, 0 = none.

    Raises UserError if these are too few.
    """
    numbers = np.arange(count)
    kept = numbers % held_out == 0 if held_out else numbers < 0
    if held_out and kept.sum() < LEAST:
        raise UserError(
            f"held_out {held_out} keeps {kept.sum()} of {count} videos out of training, but at least {LEAST} are "
            "needed; make held_out smaller, or add videos"
        )
    return numbers[~kept], numbers[kept]


def of_source(source: TrainingSource, kept: np.ndarray) -> TrainingSource:
    """Return the samples of the videos that are kept out: not mirrored, without single images or dropped conditions."""
    of = source.dataset
    options = dataclasses.replace(of.options, random_flip=False, images_per_video=0)
    found = copy.copy(source)
    found.dataset = VideoDataset(of.index, of.num_frames, of.store, options, SEED, kept)
    found.latent_shape = (of.num_frames, *source.latent_shape[1:])
    found.seed, found.dropout = SEED, 0.0
    return found


def timesteps(count: int) -> np.ndarray:
    """Return the timestep of each of `count` clips, (count,) int32: clip k is in bin k % BINS, and they fill it evenly.

    count: a multiple of BINS.
    """
    k, each = np.arange(count), count // BINS
    return ((2 * (k % BINS) * each + 2 * (k // BINS) + 1) * STEPS // (2 * BINS * each)).astype(np.int32)


class Evaluation:
    """Measures a network on `count` held-out clips, this rank's share of them in calls of `together` clips."""

    def __init__(
        self,
        source: TrainingSource,
        codec: Codec,
        network: LatentSampler,
        loss: DiffusionLoss,
        count: int,
        together: int,
    ):
        here = device.current()
        self.source, self.codec, self.network = source, codec, network
        self._noised, self._terms = _compiled(loss.tables, loss.weights)
        self.timesteps, self.together = timesteps(count), together
        # Ranks that share weights must call the network equally often: where clips are too few, two have the same one.
        self.positions = range(here.rank % count, count, here.world_size)
        self.calls = math.ceil(math.ceil(count / here.world_size) / together)

    @functools.cached_property
    def samples(self) -> dict[int, Sample]:
        """This rank's clips, by position, with scaled latents (F, L, h, w) in place of pixels or moments.

        Broken videos are skipped for others, each with a warning. Raises UserError if all are.
        """
        found: dict[int, Sample] = {}
        broken: set[int] = set()
        for position in tqdm(self.positions, desc="held-out clips", unit="clip", delay=5, leave=False):
            sample = _whole_sample(self.source.dataset, position)
            x, posterior_noise, *_ = self.source.complete(position, sample)
            moments = self.codec.moments(x) if isinstance(self.source.dataset.store, PixelStore) else x
            found[position] = sample._replace(x=self.codec.sample(moments, posterior_noise).astype(np.float32))
            broken |= {*map(int, sample.skipped[sample.skipped >= 0])}
        for number in sorted(broken):
            log.warning("held out, but skipped: %s", self.source.dataset.reason(number))
        return found

    def measure(self) -> dict[str, float]:
        """Return the means of the loss and its terms over all clips, and of the squared error over those of each bin.

        Every rank must call this function.
        """
        samples, mine = self.samples, dict[int, list[float]]()
        with tqdm(total=len(samples), desc="evaluating", unit="clip", delay=5, leave=False) as bar:
            for first in range(0, self.calls * self.together, self.together):
                positions = [*samples][first : first + self.together] or [*samples][-1:]
                mine |= dict(zip(positions, self._measured(positions), strict=True))
                bar.update(len(positions))
        of_ranks = [json.loads(text) for text in gather(json.dumps(mine))]
        terms = {int(position): values for part in of_ranks for position, values in part.items()}
        table = np.array([terms[position] for position in sorted(terms)])  # (count, 3)
        bins = [table[k::BINS, 1].mean() for k in range(BINS)]
        means = [*table.mean(0), *bins]
        return {name: float(f"{value:.7g}") for name, value in zip((*LOSSES, *OF_BINS), means, strict=True)}

    def _measured(self, positions: list[int]) -> list[list[float]]:
        """Return loss, squared error and VLB term of clips; the last one is repeated where they are too few."""
        filled = positions + positions[-1:] * (self.together - len(positions))
        rows = [self.source.complete(position, self.samples[position]) for position in filled]
        latents, _, _, drawn, _, *conditions = (np.stack(values) for values in zip(*rows, strict=True))
        if self.source.num_classes:
            conditions = [labels[:, 0] for labels in conditions]  # (B,), without those of single images
        x, noise = ms.Tensor(latents), ms.Tensor(drawn)  # (B, F, L, h, w)
        t = ms.Tensor(self.timesteps[filled])  # (B,)
        x_t = self._noised(x, t, noise)
        out = ms.Tensor(self.network.predict(x_t.asnumpy(), t.asnumpy(), conditions))  # (B, F, 2 L, h, w)
        terms = [values.asnumpy().tolist() for values in self._terms(out, x, x_t, t, noise)]  # 3 x (B,)
        return [list(row) for row in zip(*terms, strict=True)][: len(positions)]


def _compiled(tables: GaussianTables, weights: ms.Tensor | None) -> tuple[Callable, Callable]:
    """Return compiled `q_sample` and `loss_terms`: operation by operation a clip takes 0.1 s more on a CPU."""

    def noised(x: ms.Tensor, t: ms.Tensor, noise: ms.Tensor) -> ms.Tensor:
        return q_sample(tables, x, t, noise)

    def terms(
        out: ms.Tensor, x: ms.Tensor, x_t: ms.Tensor, t: ms.Tensor, noise: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        return loss_terms(tables, out, x, x_t, t, noise, weights)

    return graphs.compile_training(noised), graphs.compile_training(terms)


def _whole_sample(dataset: VideoDataset, position: int) -> Sample:
    """Return a sample with the pixels or moments themselves; a video that proves damaged is skipped for the next."""
    broken: dict[Path, str] = {}
    while True:
        sample = dataset.sample(position, broken)
        try:
            return sample._replace(x=dataset.store.load(sample.x))
        except BrokenVideoError as error:
            broken[error.path] = str(error)


def describe_evaluation(values: Mapping[str, float]) -> str:
    """Return a line for the log on what `Evaluation.measure` has returned."""
    bins = ", ".join(f"{values[name]:.4f}" for name in OF_BINS)
    return (
        f"loss {values['loss']:.5f} (mean squared error {values['mse']:.5f}, VLB term {values['bound']:.5f}), "
        f"squared error by tenths of the timesteps: {bins}"
    )
