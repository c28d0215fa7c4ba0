"""Quality over training: every checkpoint of a run is sampled with the same seeds and compared with real videos."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.components import runs
from latte.components.loading import load
from latte.config import SampleConfig
from latte.config.values import fit
from latte.config.yaml_file import Plain, read_yaml
from latte.errors import UserError
from latte.evaluation.evaluate import Features, cuts, load_network, measure, sources
from latte.inference import videos
from latte.inference.inputs import asked_steps, latent_shape
from latte.io.atomic import atomic_path
from latte.io.csv_files import write_csv
from latte.io.json_files import exists, read_json
from latte.runtime import device, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latte.config import EvaluateConfig
    from latte.config.evaluate import Metric
    from latte.evaluation.clips import Clip, Cut
    from latte.evaluation.evaluate import Network, Sharing
    from latte.inference.pipeline import LattePipeline

log = logging.getLogger("latte")
FOLDER = "evaluation"  # in that of the run
COLUMNS = ("step", "fvd", "fvd_low", "fvd_high", "kvd", "flicker", "real_flicker", "samples", "real_clips")
OWN = {"batch_size": 1, "image_size": None, "dry_run": False}  # options that mean something else in evaluate
REMEDY = "remove it, and the samples that are still known are compared again"


class Sampler:
    """Samples videos of the checkpoints of a run; video k has the seed `seed` + k, and the classes take turns.

    The network is compiled once, and gets the weights of another checkpoint in place.
    """

    def __init__(self, cfg: EvaluateConfig, checkpoint: Path):
        """Check the options with one checkpoint; raises UserError if they do not fit, or the run has a text condition.

        A device that multiplies all matrices of a process in one dtype must do so in float32 for I3D.
        """
        options = read_yaml(runs.options_of(_run_of(cfg)))[0]
        if fit(options.get("condition", Plain("null")), str | None) == "text":
            raise UserError(
                f"{cfg.run} is conditioned on text, for which run makes no samples; make them with sample.py "
                "--text_embeddings, and name their folder with --fake"
            )
        if cfg.dtype == "bf16" and "bf16" not in device.current().tensor_dtypes:
            raise UserError(
                "dtype bf16 would hold for the network of FVD too on this device; leave it out, or sample in bf16 with "
                "sample.py and name the folder with --fake"
            )
        self.cfg = cfg
        self._pipe: LattePipeline | None = None
        self._loaded: Path | None = None
        plan = videos.check(self.options(checkpoint))
        self.frames, _, height, width = latent_shape(
            self.options(checkpoint), plan.network.config, plan.vae.config.downsampling
        )
        self.size = min(height, width) * plan.vae.config.downsampling
        self.facts = {
            "sampling_steps": asked_steps(cfg, plan.network.config),
            "sampler": plan.solver.name,
            "guidance_scale": cfg.guidance_scale,
            "seed": cfg.seed,
            "dtype": cfg.dtype,
            "vae_checkpoint": cfg.vae_checkpoint,
            "sd_scale_factor": cfg.sd_scale_factor,
        }

    def options(self, checkpoint: Path) -> SampleConfig:
        """Return the options of sample.py for a checkpoint."""
        names = {field.name for field in dataclasses.fields(SampleConfig)}
        shared = {name: value for name, value in dataclasses.asdict(self.cfg).items() if name in names}
        return SampleConfig(**{**shared, "checkpoint": str(checkpoint), **OWN, "output_path": str(_folder(self.cfg))})

    def make(self, checkpoint: Path, number: int) -> np.ndarray:
        """Return a video (F, H, W, 3) uint8 of a checkpoint."""
        pipe = self._with_weights(checkpoint)
        config, cfg = pipe.net.config, self.cfg
        labels = [number % config.num_classes] if config.num_classes else None
        made = pipe(
            class_labels=labels,
            seed=[cfg.seed + number],
            num_inference_steps=cfg.sampling_steps,
            sampler=cfg.sampler,
            guidance_scale=cfg.guidance_scale,
            output_type="uint8",
            progress=False,
        )
        return made.frames[0]

    def _with_weights(self, checkpoint: Path) -> LattePipeline:
        if self._pipe is None:
            self._pipe = videos.build_pipeline(self.options(checkpoint))
        elif checkpoint != self._loaded:
            plan, cfg = videos.check(self.options(checkpoint)), self.cfg
            other = load(plan.network, dtype=cfg.dtype, flash=cfg.enable_flash_attention)
            pairs = zip(self._pipe.net.get_parameters(), other.get_parameters(), strict=True)
            for old, new in pairs:  # a compiled graph sees what is assigned, but no other parameters
                tensors.assign(old, new)
        self._loaded = checkpoint
        return self._pipe


class Samples:
    """The samples of a checkpoint as a source of clips, made when they are asked for."""

    what = "samples"

    def __init__(self, checkpoint: Path, count: int, make: Callable[[Path, int], np.ndarray], facts: dict[str, Any]):
        status = checkpoint.stat()
        self.version = f"{status.st_size} {status.st_mtime_ns}"
        self.names = [f"sample-{number:06d}" for number in range(count)]
        self._checkpoint, self._make, self._facts = checkpoint, make, facts

    @property
    def identity(self) -> dict[str, Any]:
        """The checkpoint, and the options of the sampling."""
        return {"folder": str(self._checkpoint.resolve()), "of": self.what, **self._facts}

    def signature(self, name: str) -> str:
        """Return size and time of the checkpoint."""
        return self.version

    def load(self, name: str, cut: Cut) -> str:
        """Return the name: samples are made where the device computes."""
        return name

    def finish(self, loaded: str, cut: Cut) -> Clip:
        """Sample a video and return its clip; raises ShortClipError if the network makes shorter ones."""
        frames = self._make(self._checkpoint, int(loaded.rpartition("-")[2]))
        return cut.clip(frames[cut.places(loaded, len(frames))])


def run(
    cfg: EvaluateConfig,
    network: Network | None = None,
    sampler: Sampler | None = None,
    *,
    only: int | None = None,
    sharing: Sharing | None = None,
) -> list[Path]:
    """Compare the samples of every checkpoint with real videos, and return the tables that were written.

    only: the step of the one checkpoint to compare.

    For each metric a table, its plot, and the numbers with what they depend on as JSON are written after each
    checkpoint. What was computed before is kept, of checkpoints that are gone too.
    Raises UserError if run, videos or weights cannot be used, the options contradict what is there, or a file cannot be
    written.
    """
    checkpoints = runs.weights_by_step(_run_of(cfg)) if only is None else {only: checkpoint_of(cfg, only)}
    (real,) = sources(cfg, [cfg.real or ""])
    sampler = sampler or Sampler(cfg, next(iter(checkpoints.values())))
    _check_frames(cfg, sampler)
    network = network or load_network(cfg.i3d)
    files = []
    for metric in cfg.wanted:
        of_real, of_fake = cuts(cfg, metric, cfg.image_size or sampler.size, _real_stride(cfg))
        table = _Table(cfg, metric)  # read before the first clips are counted, for which the ranks wait for each other
        features = Features(cfg, network, real, of_real, "real", sharing)
        clips = features.collect(metric.clips)
        table.check(
            {
                "metric": metric.name,
                "real": {**real.identity, "stride": of_real.stride},
                "real_features": hashlib.sha256(clips.features.tobytes()).hexdigest(),
                "fake_stride": of_fake.stride,
                "image_size": of_real.size,
                "jpeg_quality": of_real.jpeg_quality,
                "bootstrap": cfg.bootstrap,
                "network": network.fingerprint,
                **sampler.facts,
            }
        )
        for step, checkpoint in checkpoints.items():
            try:
                samples = Samples(checkpoint, metric.clips, sampler.make, sampler.facts)
            except FileNotFoundError:
                log.warning("%s is gone: the run keeps its newest checkpoints, see ckpt_keep_every", checkpoint)
                continue
            if table.has(step, samples.version):
                continue
            made = Features(cfg, network, samples, of_fake, f"step {step}", sharing)
            if result := measure(cfg, metric, features, made):
                for note in result["notes"]:
                    device.warn_once(note)
                table.add(step, samples.version, result)
        files.append(table.file(".csv"))
    return files


def checkpoint_of(cfg: EvaluateConfig, step: int) -> Path:
    """Return the weights of a step of the run; raises UserError if there are none."""
    try:
        return runs.weights_by_step(_run_of(cfg))[step]
    except KeyError:
        raise UserError(f"{cfg.run} has no weights of step {step}") from None


def _run_of(cfg: EvaluateConfig) -> Path:
    found = runs.run_of(cfg.run or "")
    if found is None:
        raise UserError(f"run {cfg.run} is not the folder of a training run; name one with config.yaml and ckpt")
    return found


def _folder(cfg: EvaluateConfig) -> Path:
    return Path(cfg.output_path) if cfg.output_path else _run_of(cfg) / FOLDER


def _real_stride(cfg: EvaluateConfig) -> int:
    """Return the option, or how far apart the frames are that the run was trained with."""
    stored = read_yaml(runs.options_of(_run_of(cfg)))[0].get("sample_stride", Plain("1"))
    return cfg.real_stride or fit(stored, int)


def _check_frames(cfg: EvaluateConfig, sampler: Sampler) -> None:
    for metric in cfg.wanted:
        if metric.frames * cfg.fake_stride > sampler.frames:
            raise UserError(
                f"{metric.name} takes {metric.frames * cfg.fake_stride} frames of a sample, but those of {cfg.run} "
                f"have {sampler.frames}; choose another one with --metrics"
            )


class _Table:
    """What is known of the checkpoints of a run by one metric, a row for each, on the disk as JSON, CSV and a plot."""

    def __init__(self, cfg: EvaluateConfig, metric: Metric):
        """Read what is there; raises UserError if it is damaged."""
        self.metric = metric
        self.folder = _folder(cfg)
        there = read_json(self.file(".json"), remedy=REMEDY) if exists(self.file(".json")) else {}
        self.protocol, self.rows = there.get("protocol"), there.get("rows", [])
        if not isinstance(self.rows, list) or not all(_is_row(row) for row in self.rows):
            raise UserError(f"{self.file('.json')} is damaged; {REMEDY}")

    def file(self, suffix: str) -> Path:
        """Return the file of a kind."""
        return self.folder / f"{self.metric.name}{suffix}"

    def check(self, protocol: dict[str, Any]) -> None:
        """Raise UserError if the rows were computed otherwise: one curve has one protocol."""
        protocol = json.loads(json.dumps(protocol))
        if self.rows and self.protocol != protocol:
            other = next(key for key in protocol if (self.protocol or {}).get(key) != protocol[key])
            was, now = ((each or {}).get(other) for each in (self.protocol, protocol))
            raise UserError(
                f"{self.file('.json')} was computed with {other} {was}, but now it is {now}; name another folder with "
                "--output_path"
            )
        self.protocol = protocol

    def has(self, step: int, version: str) -> bool:
        """Return whether there is a row of this file of weights."""
        return any((row["step"], row["version"]) == (step, version) for row in self.rows)

    def add(self, step: int, version: str, result: dict[str, Any]) -> None:
        """Add or replace a row, and write all files; raises UserError if one cannot be written."""
        low, high = result["interval"] or (None, None)
        values = (result["value"], low, high, result["kvd"], *(result[name]["flicker"] for name in ("fake", "real")))
        counts = (result["fake"]["clips"], result["real"]["clips"])
        row = {**dict(zip(COLUMNS, (step, *values, *counts), strict=True)), "version": version}
        self.rows = sorted(
            [row, *(other for other in self.rows if other["step"] != step)], key=lambda each: each["step"]
        )
        with atomic_path(self.file(".json")) as temporary:
            temporary.write_text(json.dumps({"protocol": self.protocol, "rows": self.rows}, indent=1), encoding="utf-8")
        write_csv(self.file(".csv"), COLUMNS, self.rows)
        self._plot()

    def _plot(self) -> None:
        from matplotlib.figure import Figure  # takes a second to import; draws without a display

        data = {name: np.array([row[name] for row in self.rows], float) for name in COLUMNS}
        figure = Figure(figsize=(7, 6), layout="constrained")
        figure.suptitle(self.folder.resolve().parent.name)
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(data["step"], data["fvd"], marker="o", markersize=3)
        above.fill_between(data["step"], data["fvd_low"], data["fvd_high"], alpha=0.2)
        above.set(title=f"{self.metric.name}, and its interval of 95 %", ylim=(0, None))
        below.plot(data["step"], data["flicker"], marker="o", markersize=3, label="samples")
        below.plot(data["step"], data["real_flicker"], linestyle="--", color="0.4", label="real videos")
        below.set(title="flicker: mean change of a pixel to the next frame, of 255", xlabel="step")
        below.legend()
        for panel in (above, below):
            panel.grid(alpha=0.3)
        with atomic_path(self.file(".png")) as temporary:
            figure.savefig(temporary, dpi=110)


def _is_row(row: Any) -> bool:
    values: Sequence[Any] = [row.get(name) for name in COLUMNS] if isinstance(row, dict) else []
    return (
        bool(values)
        and isinstance(row.get("version"), str)
        and all(
            type(value) in (int, float) or (value is None and name in ("fvd_low", "fvd_high"))
            for name, value in zip(COLUMNS, values, strict=True)
        )
    )


def dry_run(cfg: EvaluateConfig) -> str:
    """Return which checkpoints would be sampled, and how; raises UserError as `run` does."""
    checkpoints = runs.weights_by_step(_run_of(cfg))
    (real,) = sources(cfg, [cfg.real or ""])
    first = next(iter(checkpoints.values()))
    sampler = Sampler(cfg, first)
    _check_frames(cfg, sampler)
    network, lines = load_network(cfg.i3d), []
    for metric in cfg.wanted:
        of_real, of_fake = cuts(cfg, metric, cfg.image_size or sampler.size, _real_stride(cfg))
        for source, cut, name in [
            (real, of_real, "real"),
            *(
                (Samples(path, metric.clips, sampler.make, sampler.facts), of_fake, f"step {step}")
                for step, path in checkpoints.items()
            ),
        ]:
            features = Features(cfg, network, source, cut, name)
            limit = min(metric.clips, len(features.order))
            known = limit - len(features.missing(limit))
            lines.append(f"{metric.name}, {name}: {limit} {source.what} of {source.identity['folder']}, {known} known")
    one = dataclasses.replace(sampler.options(first), num_samples=max(metric.clips for metric in cfg.wanted))
    return "\n".join([*lines, f"the samples of each checkpoint are {videos.dry_run(one)}"])
