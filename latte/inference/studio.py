"""What the page of `latte web` does: one sampling after the other, each a command of latte sample, with previews."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.components import runs
from latte.components.folders import INDEX
from latte.components.loading import read
from latte.components.runs import CONFIG_FILE
from latte.config import SampleConfig, parse_config
from latte.errors import UserError
from latte.inference import videos
from latte.inference.inputs import asked_steps, read_network
from latte.io.atomic import atomic_path
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from latte.components.codec import Codec
    from latte.diffusion.timesteps import Steps
    from latte.inference.pipeline import LattePipeline, StepCallback
    from latte.inference.videos import Plan

# A video with other values of these needs no other pipeline.
PER_VIDEO = {
    *("seed", "num_samples", "batch_size", "sampling_steps", "sampler", "ddim_sampling", "eta", "guidance_scale"),
    *("class_labels", "prompts", "negative_prompt", "init_frames", "init_count", "init_strength"),
    *("output_path", "output_format", "fps", "existing"),
}
SHARE = 0.2  # of the time, at most, goes into previews
PREVIEWED = 4  # frames
SMALL = 2**18  # pixels of a video all of whose frames are decoded for a preview, as for the video: no other compilation
FOUND = 50  # checkpoints, and earlier videos, that are offered
COMMAND = "command.txt"  # beside a video: how it is made again


class CancelledError(UserError):
    """Somebody has asked for the end of a sampling."""


@dataclass(frozen=True)
class Facts:
    """What a form must know of a checkpoint."""

    conditioning: str  # "prompt", "class", "text" or "none"
    num_classes: int
    steps: int
    guidance: float
    frames: int
    height: int
    width: int
    description: str


@dataclass(frozen=True)
class Event:
    """What is heard of a sampling: its step, a preview of x_0 (n, H, W, 3) uint8, and in the end its file."""

    step: int = 0
    steps: int = 0
    preview: np.ndarray | None = None
    file: Path | None = None
    summary: str = ""


@dataclass(frozen=True)
class Made:
    """A video of the history, and the command that makes it again."""

    file: Path
    command: str


class Preview:
    """Guesses x_0 from x_t, and decodes a few frames of the guess, as often as that takes little of the time.

    In y = x_0 + sigma * noise a deterministic solver moves along a line towards x_0, so the last two y give the guess.
    Solvers that add noise give none that way; of x_t alone the best linear guess is y / (1 + sigma^2).
    """

    def __init__(self, codec: Codec, steps: Steps, adds_noise: bool):
        self._codec, self._adds_noise = codec, adds_noise
        self._sigmas = [float(sigma) for sigma in steps.sigmas]  # at the start, and after each step
        self._before: np.ndarray | None = None
        self._free = 0.0  # time from which on the next preview may be made

    def guess(self, step: int, latents: np.ndarray) -> np.ndarray | None:
        """Return x_0 as it looks after a step, like the latents (F, C, h, w); None if nothing tells it yet."""
        sigma, end = self._sigmas[step : step + 2]
        y = latents * np.sqrt(1 + end**2)
        before, self._before = self._before, y
        if self._adds_noise:
            return y / (1 + end**2)
        return y if end == 0 else None if before is None else y - end * (y - before) / (end - sigma)

    def frames(self, step: int, latents: np.ndarray) -> np.ndarray | None:
        """Return frames of the guess, uint8 (n, H, W, 3); None where there is none, or no time for one."""
        guess, start = self.guess(step, latents), time.monotonic()
        if guess is None or start < self._free or not np.isfinite(guess).all():
            return None
        side = self._codec.vae.config.downsampling
        few = np.linspace(0, len(guess) - 1, min(PREVIEWED, len(guess))).astype(int)
        if guess.shape[0] * guess.shape[2] * guess.shape[3] * side**2 <= SMALL:
            shown = self._codec.decode(guess)[few]
        else:
            shown = self._codec.decode(guess[few[len(few) // 2 : len(few) // 2 + 1]], frames_per_slice=1)
        now = time.monotonic()
        self._free = now + (now - start) * (1 / SHARE - 1)
        return shown


def made_before(folder: Path) -> list[Made]:
    """Return the videos of earlier pages, the newest first."""
    found = []
    for file in sorted(folder.glob(f"*/{COMMAND}"), reverse=True)[:FOUND]:
        video = next(file.parent.glob("video-*.mp4"), None) or next(file.parent.glob("image-*.png"), None)
        if video:
            found.append(Made(video, file.read_text(encoding="utf-8", errors="replace")))
    return found


def checkpoints() -> list[str]:
    """Return what there is to sample from in the folders that our programs write to: runs, folders and files."""
    options = [path.parent for path in Path("outputs").glob("**/ckpt") if (path.parent / CONFIG_FILE).is_file()]
    models = Path("models")
    options += [path.parent for path in models.glob(f"*/{INDEX}")]
    options += [path for path in models.glob("*") if path.suffix in (".ckpt", ".pt", ".safetensors")]
    return [str(path) for path in sorted(options)[:FOUND]]


@dataclass
class Studio:
    """Loads what is asked for and samples, all in one thread of its own, as MindSpore wants it."""

    device_target: str | None = None
    dtype: str = "fp32"
    output_path: str = "outputs/web"
    history: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "latte")
        self._cancelled = threading.Event()
        self._pipe: tuple[dict[str, Any], LattePipeline] | None = None
        self._is_ready = False
        self.history += made_before(Path(self.output_path))

    def facts(self, checkpoint: str, vae: str | None) -> Facts:
        """Return what a form must know of a checkpoint; raises UserError if it cannot be sampled from."""
        return self._thread.submit(self._facts, checkpoint, vae).result()

    def words(self, checkpoint: str, vae: str | None, options: dict[str, Any]) -> list[str]:
        """Return the options of a sampling as words of a command line; those that are None or empty are left out."""
        given: dict[str, Any] = {"checkpoint": checkpoint, "vae_checkpoint": vae or None}
        given |= {"device_target": self.device_target, "dtype": self.dtype, "output_path": self._new_folder()}
        given |= options
        words = []
        for name, value in given.items():
            if value in (None, "", []):
                continue
            values = [str(item) for item in (value if isinstance(value, list) else [value])]
            # A value that begins with a hyphen would be taken for an option.
            words += [f"--{name}={values[0]}"] if values[0].startswith("-") else [f"--{name}", *values]
        return words

    def sample(self, words: Sequence[str]) -> Iterator[Event]:
        """Make the video of a command line, and yield what happens.

        Raises UserError if it cannot be made, and CancelledError if it was cancelled.
        """
        self._cancelled.clear()
        cfg = parse_config(SampleConfig, list(words))
        events: queue.Queue[Event] = queue.Queue()
        work = self._thread.submit(self._sample, cfg, events.put)
        while not work.done() or not events.empty():
            try:
                yield events.get(timeout=0.1)
            except queue.Empty:
                continue
        file, summary = work.result()
        made = Made(file, self.command(words))
        with atomic_path(file.parent / COMMAND) as temporary:
            temporary.write_text(made.command, encoding="utf-8")
        self.history.insert(0, made)
        yield Event(file=file, summary=summary)

    def cancel(self) -> None:
        """End the sampling that goes on, after its step."""
        self._cancelled.set()

    @staticmethod
    def command(words: Sequence[str]) -> str:
        """Return the command line that makes a video again."""
        return shlex.join(["latte", "sample", *words])

    def _new_folder(self) -> str:
        """Return a folder of a video's own, which is not there yet."""
        stamp, root = time.strftime("%Y%m%d-%H%M%S"), Path(self.output_path)
        names = (f"{stamp}-{number}" if number else stamp for number in itertools.count())
        return str(next(root / name for name in names if not (root / name).exists()))

    def _prepare(self) -> None:
        if not self._is_ready:
            device.init_device(self.device_target)
            self._is_ready = True

    def _facts(self, checkpoint: str, vae: str | None) -> Facts:
        self._prepare()
        cfg = parse_config(SampleConfig, self.words(checkpoint, vae, {}))
        parts = runs.find(cfg.require_checkpoint(), cfg.vae_checkpoint)
        codec = read(parts.vae, "autoencoder").config
        config, side = read_network(cfg, parts, codec).config, codec.downsampling
        frames, _, height, width = config.latent_shape(side=side)
        return Facts(
            conditioning=config.conditioning,
            num_classes=getattr(config, "num_classes", None) or 0,
            steps=config.default_steps,
            guidance=config.default_guidance,
            frames=frames,
            height=height * side,
            width=width * side,
            description=config.describe(),
        )

    def _sample(self, cfg: SampleConfig, tell: Callable[[Event], None]) -> tuple[Path, str]:
        self._prepare()
        plan = videos.check(cfg)
        pipe = self._pipeline(cfg, plan)
        files, _ = videos.run(cfg, pipe, follow=self._follower(cfg, pipe, plan, tell))
        return files[0], videos.summary(pipe)

    def _pipeline(self, cfg: SampleConfig, plan: Plan) -> LattePipeline:
        """Return the pipeline in memory if it is the same, or load another one in its place."""
        key = {name: value for name, value in dataclasses.asdict(cfg).items() if name not in PER_VIDEO}
        if self._pipe is None or self._pipe[0] != key:
            self._pipe = None  # lest there are two in memory
            self._pipe = key, videos.build_pipeline(cfg, plan)
        return self._pipe[1]

    def _follower(
        self, cfg: SampleConfig, pipe: LattePipeline, plan: Plan, tell: Callable[[Event], None]
    ) -> StepCallback:
        strength = videos.strength_of(cfg, pipe.net.config)
        steps = plan.solver.steps(asked_steps(cfg, pipe.net.config), strength)
        preview, total = Preview(pipe.codec, steps, plan.solver.adds_noise), len(steps.timesteps)

        def follow(_: Any, step: int, __: float, arrays: dict[str, np.ndarray]) -> None:
            if self._cancelled.is_set():
                raise CancelledError("the sampling was cancelled")
            tell(Event(step + 1, total, preview.frames(step, arrays["latents"][0])))

        return follow
