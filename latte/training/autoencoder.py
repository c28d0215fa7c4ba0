"""Train a small AutoencoderKL on crops of frames: data, training step, metrics and loop."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from tqdm import tqdm

from latte.components.codec import LOGVAR_RANGE
from latte.components.folders import find_vae
from latte.components.loading import load
from latte.data.transforms import pixels_of
from latte.errors import UserError
from latte.io.csv_files import write_csv
from latte.io.images import read_image
from latte.io.listing import FRAME_SUFFIXES, VIDEO_SUFFIXES, files_below
from latte.io.video import read_any, save_png, to_uint8
from latte.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latte.ops import move_towards
from latte.runtime import graphs, tensors
from latte.runtime.tensors import mean
from latte.training.optim import AdamW, global_norm, learning_rates, unscale_factor
from latte.training.stopping import StopSignal
from latte.weights.files import CONFIG, check_suffix, write_state_dict

if TYPE_CHECKING:
    from collections.abc import Callable

    from latte.config import VaeTrainConfig

HELD_OUT = 20  # one clip in so many is held out for the metrics
MEASURED = 48  # held-out frames to measure, evenly spaced
SHOWN = 12  # measured frames in the image of reconstructions
REPORT = 100  # steps between two rows of the log
MAX_NORM = 1.0
COLUMNS = ("step", "loss", "psnr", "held_out_psnr", "scaling_factor", "seconds")


class VaeStep(nn.Cell):
    """One training step: reconstruct crops, update the weights and the EMA weights."""

    def __init__(self, vae: AutoencoderKL, ema: AutoencoderKL, learning_rates: np.ndarray, settings: VaeTrainConfig):
        super().__init__()
        self.vae = vae
        self.l1_weight, self.mse_weight = settings.l1_weight, settings.mse_weight
        self.kl_weight, self.ema_decay = settings.kl_weight, settings.ema_decay
        self.learning_rates = learning_rates  # (steps,)
        weights = dict(vae.parameters_and_names())
        ema_weights = dict(ema.parameters_and_names())
        self.weights = ms.ParameterTuple(list(weights.values()))
        self.ema_weights = ms.ParameterTuple([ema_weights[name] for name in weights])
        self.optimizer = AdamW(list(self.weights), (0.9, 0.99), 1e-8, 0.0)
        self.value_and_grad = ms.value_and_grad(self.loss, None, self.weights, has_aux=True)

    def loss(self, x: ms.Tensor, noise: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the loss and the mean squared error of pixels (N, 3, H, W) in [-1, 1], with noise (N, L, h, w)."""
        moments = self.vae.encode(x)  # (N, 2 L, h, w)
        centre, logvar = tensors.split(moments, moments.shape[1] // 2, 1)
        logvar = ops.clamp(logvar, *LOGVAR_RANGE)
        error = self.vae.decode(centre + ops.exp(0.5 * logvar) * noise) - x
        squared = mean(ops.square(error))
        kl = 0.5 * (ops.square(centre) + ops.exp(logvar) - 1 - logvar).sum() / x.shape[0]
        loss = self.l1_weight * mean(ops.abs(error)) + self.mse_weight * squared + self.kl_weight * kl
        return loss, squared

    def construct(self, x: ms.Tensor, noise: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Return loss and mean squared error of crops x (N, 3, H, W), the norm of the gradients, and these.

        noise: (N, L, h, w).
        """
        (loss, squared), gradients = self.value_and_grad(x, noise)
        return loss, squared, global_norm(gradients), *gradients

    def as_function(self) -> Callable[..., tuple[ms.Tensor, ms.Tensor]]:
        """Return a function that trains on what `construct` takes, and returns the loss and the mean squared error."""
        graph, steps = graphs.compile_training(self.construct), enumerate(self.learning_rates)

        def take(x: ms.Tensor, noise: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
            taken, learning_rate = next(steps)
            loss, squared, norm, *gradients = graph(x, noise)
            factor = unscale_factor(np.float32(norm.asnumpy()), np.float32(1), MAX_NORM)
            self.optimizer.begin(float(learning_rate), taken)
            for number, gradient in enumerate(gradients):
                weight = self.optimizer.update(number, gradient * float(factor))
                move_towards(self.ema_weights[number], weight, 1 - self.ema_decay)
            return loss, squared

        return take


def read_clips(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all frames below a folder, (N, H, W, 3) uint8, and the number of each frame's clip, (N,).

    A folder of images is one clip. Videos are read only if there are no images, whose quality is better.
    Raises UserError if there are no frames, a file is broken, or sizes differ.
    """
    read: Callable[[Path], np.ndarray] = _read_frame
    paths = _files_below(folder, FRAME_SUFFIXES)
    if not paths:
        paths, read = _files_below(folder, VIDEO_SUFFIXES), read_any
    if not paths:
        suffixes = ", ".join((*FRAME_SUFFIXES, *VIDEO_SUFFIXES))
        raise UserError(f"data_folder {folder} holds no images or videos ({suffixes}); name the folder of a data set")
    parts, clips = [], []
    numbers: dict[Path, int] = {}  # of the clips
    for path in tqdm(paths, desc="reading", unit="file", delay=2):
        parts.append(read(path))
        if parts[-1].shape[1:] != parts[0].shape[1:]:
            raise UserError(f"{path} has another size than {paths[0].name}; data_folder must hold one size only")
        clip = path.parent if read is _read_frame else path
        clips += [numbers.setdefault(clip, len(numbers))] * len(parts[-1])
    return np.concatenate(parts), np.array(clips)


def _files_below(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    if not Path(folder).is_dir():
        return []
    return files_below(folder, suffixes)


def _read_frame(path: Path) -> np.ndarray:
    """Return an image as a video of one frame, (1, H, W, 3) uint8."""
    return read_image(path)[None]


def split(frames: np.ndarray, clips: np.ndarray, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames to train on, and some frames of held-out clips; raises UserError if there is only one clip."""
    held_out = clips % HELD_OUT == 0
    if held_out.all():
        raise UserError(f"data_folder {folder} holds one clip, but one to train on and one to measure on are needed")
    chosen = np.flatnonzero(held_out)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(MEASURED, len(chosen))).astype(int)]
    return frames[~held_out], frames[chosen]


def crops(frames: np.ndarray, settings: VaeTrainConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a batch of random crops, half of them mirrored, as pixels (N, 3, crop, crop) float32 in [-1, 1]."""
    size, chosen = settings.crop, []
    for number in rng.integers(len(frames), size=settings.batch_size):
        top, left = (rng.integers(side - size + 1) for side in frames.shape[1:3])
        crop = frames[number, top : top + size, left : left + size]
        chosen.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return pixels_of(np.stack(chosen))


def measure(vae: AutoencoderKL, held_out: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return PSNR in dB, the standard deviation of posterior samples, and the reconstructions (N, H, W, 3) uint8."""
    moments = np.concatenate([vae.encode(ms.Tensor(pixels_of(frame[None]))).asnumpy() for frame in held_out])
    mean, logvar = np.split(moments, 2, axis=1)
    z = mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * np.random.default_rng(0).normal(size=mean.shape)
    decoded = np.concatenate([vae.decode(ms.Tensor(part[None], ms.float32)).asnumpy() for part in mean])
    return decibels(np.square(decoded - pixels_of(held_out)).mean()), float(z.std()), to_uint8(decoded)


def decibels(squared: float) -> float:
    """Return the PSNR in dB of a mean squared error of pixels in [-1, 1]."""
    return float(-10 * np.log10(squared / 4))


def save(vae: AutoencoderKL, held_out: np.ndarray, settings: VaeTrainConfig) -> tuple[float, float]:
    """Write the weights and an image of held-out frames above their reconstructions.

    Returns the PSNR in dB and the scaling factor of the latents.
    """
    psnr, deviation, decoded = measure(vae, held_out)
    tensors = {name: weight.asnumpy() for name, weight in vae.parameters_and_names()}
    if settings.half:
        tensors = {name: values.astype(np.float16) for name, values in tensors.items()}
    config = dataclasses.replace(vae.config, scaling_factor=round(1 / deviation, 5))
    metadata = {CONFIG: json.dumps(dataclasses.asdict(config))}
    write_state_dict(settings.target, tensors, metadata)
    shown = np.linspace(0, len(held_out) - 1, min(SHOWN, len(held_out))).astype(int)
    image = np.concatenate([np.concatenate(list(rows[shown]), axis=1) for rows in (held_out, decoded)])
    save_png(image, Path(settings.target).with_suffix(".png"))
    return psnr, 1 / deviation


def write_log(rows: list[list], settings: VaeTrainConfig) -> None:
    """Write the log as a CSV file beside the weights."""
    write_csv(Path(settings.target).with_suffix(".csv"), COLUMNS, rows)


def fit(
    step: Callable, ema: AutoencoderKL, frames: np.ndarray, held_out: np.ndarray, settings: VaeTrainConfig
) -> tuple[float, float]:
    """Train, and save at every interval, at the end and when told to stop; return the last PSNR and scaling factor."""
    rng = np.random.default_rng(settings.seed)
    side = settings.crop // ema.config.downsampling
    shape = (settings.batch_size, ema.config.latent_channels, side, side)
    rows: list[list] = []
    recent: deque[list[float]] = deque(maxlen=REPORT)
    start = time.time()
    psnr = scale = 0.0
    with StopSignal() as stop, tqdm(total=settings.steps, desc="training", unit="step") as bar:
        for number in range(1, settings.steps + 1):
            noise = rng.standard_normal(shape, np.float32)
            outputs = step(ms.Tensor(crops(frames, settings, rng)), ms.Tensor(noise))
            recent.append([float(value) for value in outputs])
            loss, squared = np.mean(recent, axis=0)
            bar.set_postfix(loss=f"{loss:.4f}", psnr=f"{decibels(squared):.2f}", refresh=False)
            bar.update()
            last = number == settings.steps or stop.requested
            row = [number, f"{loss:.5f}", f"{decibels(squared):.3f}", "", "", round(time.time() - start)]
            if last or number % settings.save_interval == 0:
                psnr, scale = save(ema, held_out, settings)
                row[3:5] = f"{psnr:.3f}", f"{scale:.5f}"
                write_log([*rows, row], settings)
            if last or number % settings.save_interval == 0 or number % REPORT == 0:
                rows.append(row)
            if last:
                break
    return psnr, scale


def _start(settings: VaeTrainConfig) -> tuple[AutoencoderKL, AutoencoderKL]:
    """Return the autoencoder to train and the one of its EMA weights; raises UserError if a file is not one."""
    if settings.pretrained_model_path:
        path = find_vae(settings.pretrained_model_path)
        return load(path, "autoencoder"), load(path, "autoencoder")
    config = AutoencoderConfig(
        latent_channels=settings.latent_channels,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=settings.layers_per_block,
        mid_block_add_attention=False,  # attention would depend on the size, and training sees only crops
    )
    return AutoencoderKL(config, settings.seed), AutoencoderKL(config, settings.seed)


def train(settings: VaeTrainConfig) -> str:
    """Train an autoencoder, save it, and return a line on its quality; raises UserError if data or sizes do not fit."""
    check_suffix(settings.target)
    vae, ema = _start(settings)
    config = vae.config
    all_frames, clips = read_clips(settings.data_folder)
    sides = all_frames.shape[1:3]
    if settings.crop % config.downsampling or settings.crop > min(sides):
        raise UserError(
            f"crop is {settings.crop}, but must be a multiple of {config.downsampling} and at most {min(sides)}, "
            f"the smaller side of the images"
        )
    if any(side % config.downsampling for side in sides):
        raise UserError(
            f"data_folder {settings.data_folder} holds images of {sides[1]} x {sides[0]} pixels, "
            f"but their sides must be multiples of {config.downsampling}; resize them, or use fewer block_out_channels"
        )
    frames, held_out = split(all_frames, clips, settings.data_folder)
    rates = learning_rates("cosine", settings.learning_rate, 0.0, min(100, settings.steps // 10), settings.steps)
    step = VaeStep(vae, ema, rates, settings).as_function()
    psnr, scale = fit(step, ema, frames, held_out, settings)
    return f"{settings.target}: PSNR {psnr:.2f} dB on held-out clips, scaling factor {scale:.5f}"
