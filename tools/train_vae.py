"""Train a small AutoencoderKL on the frames of a data set, for a demonstration or for a new kind of images.

The released autoencoders need no training; this one is for models that must be small. The loss is the absolute and the
squared error of the pixels and a little of the posterior's divergence from a normal distribution.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import jsonargparse
import mindspore as ms
import numpy as np
from mindspore import nn, ops
from PIL import Image
from tqdm import tqdm

from latte import device
from latte.codec import LOGVAR_RANGE
from latte.errors import UserError, run_main
from latte.files import atomic_path
from latte.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latte.training.optim import AdamW, clip_factor, global_norm, learning_rates, multiply, update_average
from latte.video import FRAME_SUFFIXES, to_uint8
from latte.weights.files import CONFIG, check_suffix, write_state_dict

HELD_OUT = 20  # every so manieth frame is kept for measuring
REPORT = 100  # steps between two lines of the log
MAX_NORM = 1.0


@dataclasses.dataclass
class Settings:
    """Options of the training.

    Args:
        data_folder: folder with images anywhere below it.
        target: file to write; its name with .csv gets the log, with .png pictures.
        block_out_channels: widths of the levels; each after the first one halves the image.
        layers_per_block: residual blocks a level.
        latent_channels: channels of the latents.
        steps: optimizer steps.
        batch_size: crops a step.
        crop: pixels a side of a crop.
        learning_rate: highest learning rate; it falls along a cosine.
        kl_weight: weight of the divergence.
        ema_decay: decay of the average of the weights, which is what is saved.
        save_interval: steps between two saves.
        half: store float16.
        seed: of weights, crops and noise.
    """

    data_folder: str
    target: str = "outputs/vae/vae.safetensors"
    block_out_channels: list[int] = dataclasses.field(default_factory=lambda: [32, 64, 96])
    layers_per_block: int = 1
    latent_channels: int = 4
    steps: int = 2000
    batch_size: int = 4
    crop: int = 64
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    ema_decay: float = 0.99
    save_interval: int = 500
    half: bool = False
    seed: int = 0


class VaeStep(nn.Cell):
    """One step: reconstruct crops, and change the weights and their average."""

    def __init__(self, vae: AutoencoderKL, average: AutoencoderKL, rates: np.ndarray, settings: Settings):
        super().__init__()
        self.vae, self.average, self.settings = vae, average, settings
        self.kl_weight, self.ema_decay = settings.kl_weight, settings.ema_decay
        self.rates = ms.Tensor(rates, ms.float32)
        weights = dict(vae.parameters_and_names())
        averages = dict(average.parameters_and_names())
        self.weights = ms.ParameterTuple(list(weights.values()))
        self.averages = ms.ParameterTuple([averages[name] for name in weights])
        self.optimizer = AdamW(list(self.weights), (0.9, 0.99), 1e-8, 0.0)
        self.step = ms.Parameter(ms.Tensor(0, ms.int32), name="step", requires_grad=False)
        self.value_and_grad = ms.value_and_grad(self.loss, None, self.weights, has_aux=True)

    def loss(self, x: ms.Tensor, noise: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the loss and the squared error of pixels (N, 3, H, W) in [-1, 1]."""
        mean, logvar = ops.chunk(self.vae.encode(x), 2, 1)  # (N, L, h, w)
        logvar = ops.clamp(logvar, *LOGVAR_RANGE)
        error = self.vae.decode(mean + ops.exp(0.5 * logvar) * noise) - x
        squared = ops.square(error).mean()
        kl = 0.5 * (ops.square(mean) + ops.exp(logvar) - 1 - logvar).sum() / x.size
        return ops.abs(error).mean() + squared + self.kl_weight * x[0].size * kl, squared

    def construct(self, x: ms.Tensor, noise: ms.Tensor) -> ms.Tensor:
        """Train on crops and return their mean squared error."""
        (_, squared), gradients = self.value_and_grad(x, noise)
        norm = global_norm(gradients)
        self.optimizer(multiply(gradients, clip_factor(norm, MAX_NORM)), self.rates[self.step])
        update_average(self.averages, self.weights, self.ema_decay)
        ops.assign(self.step, self.step + 1)
        return squared


def read_images(folder: str) -> np.ndarray:
    """Return all images below a folder, uint8 (N, H, W, 3), which must have one size; raises UserError if not."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in FRAME_SUFFIXES)
    if not paths:
        raise UserError(f"data_folder {folder} holds no images ({', '.join(FRAME_SUFFIXES)})")
    images = []
    for path in tqdm(paths, desc="reading", unit="image", delay=2):
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"cannot read the image {path}; it is broken or not an image") from error
        if images[-1].shape != images[0].shape:
            raise UserError(f"the image {path} has another size than {paths[0].name}; give a folder of one size")
    return np.stack(images)


def pixels_of(images: np.ndarray) -> np.ndarray:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1]."""
    return np.moveaxis(images.astype(np.float32) / 127.5 - 1, -1, 1)


def crops(images: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Return random, randomly mirrored crops as pixels."""
    size, chosen = settings.crop, []
    for number in rng.integers(len(images), size=settings.batch_size):
        top, left = (rng.integers(side - size + 1) for side in images.shape[1:3])
        crop = images[number, top : top + size, left : left + size]
        chosen.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return pixels_of(np.stack(chosen))


def measure(vae: AutoencoderKL, held_out: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return PSNR in decibels, the deviation of the posterior's samples, and the reconstructions as uint8."""
    moments = np.concatenate([vae.encode(ms.Tensor(pixels_of(part[None]))).asnumpy() for part in held_out])
    mean, logvar = np.split(moments, 2, axis=1)
    z = mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * np.random.default_rng(0).normal(size=mean.shape)
    decoded = np.concatenate([vae.decode(ms.Tensor(part[None], ms.float32)).asnumpy() for part in mean])
    error = np.square((decoded - pixels_of(held_out)) / 2).mean()
    return float(-10 * np.log10(error)), float(z.std()), to_uint8(decoded)


def save(vae: AutoencoderKL, held_out: np.ndarray, settings: Settings) -> tuple[float, float]:
    """Write the weights and a picture of held-out images over their reconstructions; return PSNR and latent scale."""
    psnr, deviation, decoded = measure(vae, held_out)
    config = {"config": dataclasses.asdict(vae.config)}[CONFIG]
    tensors = {name: weight.asnumpy() for name, weight in vae.parameters_and_names()}
    if settings.half:
        tensors = {name: values.astype(np.float16) for name, values in tensors.items()}
    metadata = {CONFIG: json.dumps(config), "scale_factor": f"{1 / deviation:.5f}"}
    write_state_dict(settings.target, tensors, metadata)
    picture = np.concatenate([np.concatenate(list(rows), axis=1) for rows in (held_out[:12], decoded[:12])])
    with atomic_path(Path(settings.target).with_suffix(".png")) as temporary:
        Image.fromarray(picture).save(temporary)
    return psnr, 1 / deviation


def main() -> None:
    """Read, train, save."""
    settings = jsonargparse.auto_cli(Settings, as_positional=False, description=__doc__)
    check_suffix(settings.target)
    device.init_device()
    images = read_images(settings.data_folder)
    config = AutoencoderConfig(
        latent_channels=settings.latent_channels,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=settings.layers_per_block,
        mid_block_add_attention=False,  # so that crops train for whole images
    )
    if settings.crop % config.downsampling or settings.crop > min(images.shape[1:3]):
        raise UserError(
            f"crop is {settings.crop}, but must be a multiple of {config.downsampling} that fits the images"
        )
    vae, average = (AutoencoderKL(config, settings.seed) for _ in range(2))
    held_out, images = (
        images[::HELD_OUT][:: max(1, len(images) // HELD_OUT // 48)],
        np.delete(images, np.s_[::HELD_OUT], 0),
    )
    rates = learning_rates("cosine", settings.learning_rate, 0.0, min(100, settings.steps // 10), settings.steps)
    step = VaeStep(vae, average, rates, settings)
    call = device.compile_training(step.construct)
    rng = np.random.default_rng(settings.seed)
    side = settings.crop // config.downsampling
    shape = (settings.batch_size, config.latent_channels, side, side)
    log = ["step,psnr,held_out_psnr,scale_factor,seconds"]
    start, errors = time.time(), []
    with tqdm(total=settings.steps, desc="training", unit="step") as bar:
        for number in range(1, settings.steps + 1):
            noise = rng.standard_normal(shape, np.float32)
            errors.append(float(call(ms.Tensor(crops(images, settings, rng)), ms.Tensor(noise))))
            if number % REPORT == 0 or number == settings.steps:
                psnr = -10 * np.log10(np.mean(errors[-REPORT:]) / 4)
                bar.set_postfix(psnr=f"{psnr:.2f}")
                log.append(f"{number},{psnr:.3f},,,{time.time() - start:.0f}")
            if number % settings.save_interval == 0 or number == settings.steps:
                held, scale = save(average, held_out, settings)
                log[-1] = f"{number},{psnr:.3f},{held:.3f},{scale:.5f},{time.time() - start:.0f}"
                with atomic_path(Path(settings.target).with_suffix(".csv")) as temporary:
                    temporary.write_text("\n".join(log) + "\n", encoding="utf-8")
            bar.update()
    print(f"{settings.target}: PSNR {held:.2f} dB on held-out images, sd_scale_factor {scale:.5f}")


if __name__ == "__main__":
    run_main(main)
