"""From options, prompts, labels and seeds to the arrays that a network takes, one row per video."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.components.folders import INDEX, LATTE, LATTE_1, check_there
from latte.components.loading import read
from latte.components.runs import run_of
from latte.diffusion.scheduler_config import solver_of
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.windows import Windows, choose_windows
from latte.io.arrays import read_npz
from latte.io.json_files import is_unicode
from latte.models.latte import CHOICES, CLIP_TEXT, LatteConfig, named_sizes
from latte.models.latte_t2v import LatteT2VConfig

if TYPE_CHECKING:
    from latte.components.folders import Parts
    from latte.components.loading import Weights
    from latte.components.text_encoder import Prompts
    from latte.config import EvaluateConfig, SampleConfig, TrainConfig
    from latte.inference.latents import Conditions
    from latte.models.autoencoder import AutoencoderConfig

Config = LatteConfig | LatteT2VConfig
DEFAULT_MODEL, DEFAULT_SIZE, DEFAULT_FRAMES = "Latte-XL/2", 256, 16  # of a training
LONGEST_NAME = 60  # characters of a prompt in a file name

Prompt = str | Sequence[str] | None
Embeds = tuple[Any, Any]  # the embeddings of the prompts and of the negative prompts; either may be None


def random_label(seed: int, num_classes: int) -> int:
    """Return a random class for a seed; it is drawn from another stream than the noise."""
    return int(np.random.Generator(np.random.Philox(key=[seed, 1])).integers(num_classes))


def seeds_of(seed: int | Sequence[int] | None, generator: Any, count: int) -> list[int]:
    """Return one seed per video: counted up from a number, taken from a list, or drawn.

    generator: a NumPy generator that they are drawn from, a number in place of `seed`, or a list of these, one per
    video. Raises UserError if a list has another length, seeds are no whole numbers from 0 on, or both are given.
    """
    if seed is not None and generator is not None:
        raise UserError("give either a seed or a generator")
    given = seed if generator is None else generator
    if isinstance(given, np.ndarray) and given.ndim:
        given = given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        seeds = [_drawn(each, 1)[0] if isinstance(each, np.random.Generator) else _seed(each) for each in given]
    elif given is None or isinstance(given, np.random.Generator):
        seeds = _drawn(given or np.random.default_rng(), count)
    else:
        seeds = [_seed(given) + k for k in range(count)]
    if len(seeds) != count:
        raise UserError(f"there are {count} videos, but {len(seeds)} seeds: {seeds[:8]}; give one seed per video")
    return seeds


def _drawn(generator: np.random.Generator, count: int) -> list[int]:
    return [int(value) for value in generator.integers(2**32, size=count)]


def _seed(value: Any) -> int:
    """Return a seed; raises UserError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        kind = type(value)
        raise UserError(
            f"{kind.__module__}.{kind.__qualname__} is no seed and no generator of NumPy; give seed=0, "
            "or generator=numpy.random.default_rng(0)"
        )
    if not 0 <= value < 2**63:
        raise UserError(f"a seed is a whole number from 0 to 2**63 - 1, not {str(value)[:30]}")
    return int(value)


def effective_guidance(scale: Any) -> float:
    """Return the scale of classifier-free guidance, 1 for all that means no guidance: 1 and less, as in diffusers.

    Raises UserError if it is not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise UserError(f"guidance_scale is {scale!r}, but must be a finite number")
    return max(float(scale), 1.0)


def guidance(cfg: SampleConfig, config: Config) -> float:
    """Return the guidance scale of the options, or else the default of the network; 1 is no guidance."""
    return effective_guidance(config.default_guidance if cfg.guidance_scale is None else cfg.guidance_scale)


def check_interval(interval: Sequence[float] | None, scale: float) -> tuple[float, float] | None:
    """Return the lowest and the highest timestep with guidance, None for all; `scale` is the effective one.

    Raises UserError unless they are two of 0 to 999 in rising order, or if there is no guidance.
    """
    if interval is None:
        return None
    try:
        low, high = map(float, interval)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high <= 999:
        raise UserError(f"guidance_interval is {interval!r}, but must be two timesteps from 0 to 999, the lower first")
    if scale == 1:
        raise UserError("guidance_interval is given without guidance; give a guidance_scale above 1, or leave it out")
    return low, high


def asked_steps(cfg: SampleConfig | EvaluateConfig, config: Config) -> int:
    """Return the denoising steps that the options ask for, or those of the network."""
    return cfg.sampling_steps or config.default_steps


def asked_solver(cfg: SampleConfig) -> str | None:
    """Return the solver that the options `sampler` or `ddim_sampling` ask for, or None."""
    return cfg.sampler or ("ddim" if cfg.ddim_sampling else None)


def latent_shape(cfg: SampleConfig, config: Config, side: int) -> tuple[int, int, int, int]:
    """Return the shape (F, C, h, w) of a video's latents, for an autoencoder with `side` pixels per latent.

    Raises UserError if the network cannot make videos of this size.
    """
    windows, asked = asked_windows(cfg, config), (cfg.height or cfg.image_size, cfg.width or cfg.image_size)
    shape = config.latent_shape(windows.length if windows else cfg.num_frames, *asked, side)
    return (windows.frames, *shape[1:]) if windows else shape


def asked_windows(cfg: SampleConfig, config: Config) -> Windows | None:
    """Return the windows that the options ask for; raises UserError as `windows_for` does."""
    return windows_for(
        config,
        cfg.num_frames,
        cfg.window,
        cfg.window_stride,
        loop=cfg.loop,
        shared=cfg.shared_noise,
        autoregressive=cfg.autoregressive,
    )


def windows_for(
    config: Config,
    frames: int | None,
    length: int | None,
    stride: int | None,
    *,
    loop: bool,
    shared: bool,
    autoregressive: bool,
) -> Windows | None:
    """Return windows over time for videos of `frames` frames; None if the network takes them as a whole.

    There are windows if one of the options asks for them, or the network takes no other length than its own, which is
    shorter. Raises UserError if the options do not fit.
    """
    own = config.default_frames
    longer = not config.takes_any_length and frames is not None and frames > own
    if not (length or stride or loop or autoregressive or longer):
        return None
    if length not in (None, own) and not config.takes_any_length:
        raise UserError(f"window is {length}, but this network takes {own} frames; leave it out, or load it for others")
    length = length or own
    if autoregressive:
        stride = stride or max(length - (config.condition_frames or length // 4), 1)
    return choose_windows(frames or own, length, stride, loop, shared, autoregressive)


def model_options(cfg: SampleConfig, vae: AutoencoderConfig) -> dict[str, Any]:
    """Return the model options as arguments of `load`; None stands for the value of the checkpoint."""
    names = ("model_name", "condition", "num_classes", "hidden_size", "depth", "num_heads", "patch_size", "num_frames")
    asked = {name: getattr(cfg, name) for name in (*names, *CHOICES)}
    if cfg.by_windows:
        asked["num_frames"] = cfg.window
    return asked | {"input_size": cfg.image_size and cfg.image_size // vae.downsampling}


def trained_config(cfg: TrainConfig, vae: AutoencoderConfig) -> LatteConfig:
    """Return the Latte that the options of a training name, for the latents of an autoencoder."""
    names = ("hidden_size", "depth", "num_heads", "patch_size", *CHOICES)
    asked = {name: getattr(cfg, name) for name in names if getattr(cfg, name)}
    return LatteConfig(
        **(named_sizes(cfg.model_name or DEFAULT_MODEL, asked.get("variant", 1)) | asked),
        input_size=(cfg.image_size or DEFAULT_SIZE) // vae.downsampling,
        num_frames=cfg.num_frames or DEFAULT_FRAMES,
        in_channels=vae.latent_channels,
        condition=cfg.condition,
        num_classes=cfg.num_classes,
        condition_frames=cfg.condition_frames,
        distill_steps=cfg.distill_steps,
    )


def read_network(cfg: SampleConfig, parts: Parts, vae: AutoencoderConfig) -> Weights:
    """Return the weights of the network, read but not loaded; raises UserError if they do not fit the model options."""
    if parts.prompts is None:
        return read(parts.network, "latte", **model_options(cfg, vae))
    return read(parts.network, "latte_t2v")


def choose_solver(
    scheduler: dict[str, Any], default: str | Solver | None, solver: str | Solver | None, eta: float
) -> Solver:
    """Return the requested solver, or that of a diffusers scheduler configuration, or without one the default.

    A requested one has the settings of the configuration, or of a default of the same name. Raises UserError if the
    solver or a setting is unknown.
    """
    if isinstance(solver, Solver):
        return solver
    if solver is not None and not isinstance(solver, str):
        raise UserError(f"sampler is {solver!r}, but must be the name of a solver, or a Solver")
    if not scheduler:
        if isinstance(default, Solver) and solver in (None, default.name):
            return replace(default, eta=eta)
        return Solver(solver or (default if isinstance(default, str) else "ddpm"), eta=eta)
    name, options = solver_of(scheduler, solver)
    return Solver(name, **options, eta=eta)


def check_options(cfg: SampleConfig, text: bool) -> None:
    """Raise UserError for options that do not fit the checkpoint; `text`: it is a text-to-video folder."""
    checkpoint = Path(cfg.require_checkpoint())
    if not text:
        check_there(checkpoint, LATTE, LATTE_1)
        for name in ("height", "width", "quantize", "enable_vae_temporal_decoder"):
            if getattr(cfg, name):
                hint = "" if checkpoint.is_dir() else "; tools/t2v_export.py makes a folder of a checkpoint of train.py"
                raise UserError(f"{name} is for text-to-video folders; {cfg.checkpoint} has no {INDEX}{hint}")
        if not cfg.vae_checkpoint and not checkpoint.is_dir() and run_of(checkpoint) is None:
            raise UserError("vae_checkpoint is not set; name a file in the YAML or with --vae_checkpoint")
        return
    if cfg.prompts is None:
        raise UserError(f"{cfg.checkpoint} makes videos from text: give prompts, in the YAML or with --prompts")
    for name in ("class_labels", "text_embeddings", "model_name", "condition", "num_classes"):
        if getattr(cfg, name) is not None:
            raise UserError(f"{name} is for other checkpoints; {cfg.checkpoint} makes videos from prompts")
    if cfg.image_size and (cfg.height or cfg.width):
        raise UserError("image_size is given beside height or width; give either")


def check_inputs(cfg: SampleConfig, config: Config) -> None:
    """Raise UserError if labels, prompts, text embeddings or guidance do not fit the network."""
    kind, guided = config.conditioning, guidance(cfg, config) != 1
    if cfg.prompts is not None:
        _list([*cfg.prompts, cfg.negative_prompt], "prompts")
    if kind in ("none", "class") and (cfg.prompts or cfg.negative_prompt):
        shown = "nothing" if kind == "none" else "classes"
        raise UserError(f"prompts are for networks conditioned on text; {cfg.checkpoint} is conditioned on {shown}")
    if cfg.class_labels and kind != "class":
        raise UserError(f"class_labels are given, but {cfg.checkpoint} is not a class-conditional model")
    if cfg.class_labels and max(cfg.class_labels) >= _classes(config):
        raise UserError(
            f"class_labels go up to {max(cfg.class_labels)}, but {cfg.checkpoint} has classes 0 to "
            f"{_classes(config) - 1}"
        )
    if guided and kind == "none":
        raise UserError(f"guidance_scale {cfg.guidance_scale:g} needs a conditional model; {cfg.checkpoint} is not one")
    if kind != "text" and cfg.text_embeddings:
        raise UserError(f"{cfg.checkpoint} is not conditioned on text; leave out --text_embeddings")
    if kind == "text" and bool(cfg.prompts) == bool(cfg.text_embeddings):
        raise UserError(f"{cfg.checkpoint} is conditioned on text; give either --prompts or --text_embeddings")
    if cfg.text_embeddings and read_text_embeddings(Path(cfg.text_embeddings))[1] is None and guided:
        raise UserError(f"text_embeddings {cfg.text_embeddings} has no 'null', which guidance needs")


def choose_inputs(cfg: SampleConfig, config: Config, numbers: list[int]) -> dict[str, Any]:
    """Return the pipeline's arguments for what the videos with these numbers show.

    Labels and text embeddings repeat if there are more videos. Without labels, each video's seed draws one.
    """
    if config.conditioning == "prompt":
        prompts = cfg.prompts or []  # `check_options` has raised UserError if there are none
        names = ("negative_prompt", "mask_feature", "enable_temporal_attentions")
        return {"prompt": [prompts[k // cfg.num_samples] for k in numbers]} | {
            name: getattr(cfg, name) for name in names
        }
    if config.conditioning == "class":
        labels = cfg.class_labels
        drawn = [random_label(cfg.seed + k, _classes(config)) for k in numbers]
        return {"class_labels": [labels[k % len(labels)] for k in numbers] if labels else drawn}
    if config.conditioning == "text" and cfg.prompts:
        return {
            "prompt": [cfg.prompts[k // cfg.num_samples] for k in numbers],
            "negative_prompt": cfg.negative_prompt,
        }
    if config.conditioning == "text":
        text, null = read_text_embeddings(Path(cfg.text_embeddings or ""))  # `check_inputs` asks for it
        return {"prompt_embeds": text[[k % len(text) for k in numbers]], "negative_prompt_embeds": null}
    return {"num_videos_per_prompt": len(numbers)}


def stem(number: int, seed: int, frames: int, given: dict[str, Any], row: int) -> str:
    """Return the file name of a video without its suffix: its number, its seed, and its class or words of its prompt.

    Another seed never takes the place of the first. A video of one frame is an image.
    """
    kind = "image" if frames == 1 else "video"
    return f"{kind}-{number:04d}-seed{seed}{_shown(given, row)}"


def _shown(given: dict[str, Any], row: int) -> str:
    """Return the part of a file name that tells a video's class or prompt, in safe characters only."""
    if "class_labels" in given:
        return f"-class{given['class_labels'][row]}"
    prompt = given["prompt"][row] if "prompt" in given else ""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    parts = [words[:LONGEST_NAME].strip("-")] if words else []
    if not prompt.isascii() or len(words) > LONGEST_NAME:  # what is left out tells it from other prompts
        parts.append(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8])
    return "".join(f"-{part}" for part in parts)


def read_text_embeddings(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `text` (N, 77, 768) and `null` (1, 77, 768), which may be None, of an .npz file.

    Raises UserError if the file cannot be read or its arrays have other shapes or are not floating point.
    """
    try:
        file = read_npz(path, ("text",), ("null",))
    except UserError as error:
        raise UserError(f"text_embeddings {error}; see docs/sample.md") from error
    text, null = file["text"], file["null"][None] if "null" in file else None
    for name, array in (("text", text), ("null", null)):
        if array is not None and (array.shape[1:] != CLIP_TEXT or array.dtype.kind != "f"):
            raise UserError(f"text_embeddings {path}: {name!r} is {array.dtype} {array.shape}; see docs/sample.md")
        if array is not None and not np.isfinite(array).all():
            raise UserError(f"text_embeddings {path}: {name!r} holds values that are not finite; make it again")
    return text, null


def make_conditions(
    config: Config,
    prompts: Prompts | None,
    texts: tuple[Prompt, Prompt],
    labels: int | Sequence[int] | None,
    embeds: Embeds,
    guided: bool,
    mask_feature: bool = True,
) -> tuple[Conditions, Conditions]:
    """Return the conditions that a network takes after x and t, and the null conditions for guidance.

    Each array has one row per video; without guidance the null conditions are empty. `texts` are prompt and negative
    prompt, which `prompts` encodes; `embeds` are their embeddings.
    Raises UserError if labels, texts or embeddings do not fit what the network is conditioned on.
    """
    if config.conditioning == "prompt":
        if labels is not None:
            raise UserError("class_labels are given, but this network is conditioned on text; give a prompt")
        return text_conditions(config, prompts, texts, embeds, guided, mask_feature)
    if texts[0] is not None and config.conditioning != "text":
        raise UserError("a prompt is given, but this network has no text encoder")
    if texts[0] is not None and embeds[0] is None:
        embeds = _clip_embeds(prompts, texts, embeds[1], guided)
    return label_conditions(config, labels, embeds, guided)


def _clip_embeds(prompts: Prompts | None, texts: tuple[Prompt, Prompt], negative: Any, guided: bool) -> Embeds:
    """Return CLIP's embeddings (B, 77, 768) of prompts, and with guidance of the negative prompts, unless given."""
    if prompts is None:
        raise UserError("this pipeline has no text encoder; name CLIP's folder as text_encoder_path")
    follow = _list(texts[0], "prompt")
    against = _list(texts[1], "negative_prompt", len(follow)) if guided and negative is None else []
    encoded, _ = prompts.encode([*follow, *against])
    return encoded[: len(follow)], encoded[len(follow) :] if against else negative


def text_conditions(
    config: Config,
    prompts: Prompts | None,
    texts: tuple[Prompt, Prompt],
    embeds: Embeds,
    guided: bool,
    mask_feature: bool = True,
) -> tuple[Conditions, Conditions]:
    """Return text (B, S, D) float32 and mask (B, S) int32 of the prompts, and with guidance of the negative prompts.

    `texts` are prompt and negative prompt, `embeds` their embeddings. Both get the mask of the prompt, since the
    original cuts the negative prompt to its length; without mask_feature the mask is all ones.
    Raises UserError unless either texts or embeds are given and fit the network.
    """
    (prompt, negative_prompt), (given, negative) = texts, embeds
    if (prompt is None) == (given is None):
        raise UserError("give either a prompt or prompt_embeds")
    follow = [] if prompt is None else _list(prompt, "prompt")
    count = len(follow) if given is None else len(given)
    against = _list(negative_prompt, "negative_prompt", count) if guided and negative is None else []
    if follow or against:
        if prompts is None:
            raise UserError("this pipeline has no text encoder; give prompt_embeds and negative_prompt_embeds")
        encoded, masks = prompts.encode([*follow, *against])
    text = _checked(encoded[:count] if given is None else given, "prompt_embeds", count, config.text_width)
    mask = masks[:count] if given is None and mask_feature else np.ones(text.shape[:2], np.int32)
    if not guided:
        return (text, mask), ()
    null = _checked(
        encoded[-count:] if negative is None else negative, "negative_prompt_embeds", count, config.text_width
    )
    if null.shape != text.shape:
        raise UserError(f"negative_prompt_embeds are {null.shape}, but prompt_embeds are {text.shape}")
    return (text, mask), (null, mask)


def label_conditions(
    config: Config, labels: int | Sequence[int] | None, embeds: Embeds, guided: bool
) -> tuple[Conditions, Conditions]:
    """Return the conditions of a network without a text encoder, and with guidance the null conditions.

    They are labels (B,) int32, CLIP embeddings (B, 77, 768) float32, or nothing. Raises UserError if labels or embeds
    do not fit the network, or guidance lacks a condition.
    """
    text, null = embeds
    kind, wanted = config.conditioning, {"class": "class_labels", "text": "prompt_embeds"}
    given = {"class_labels": labels, "prompt_embeds": text}
    for name, value in given.items():
        if value is not None and wanted.get(kind) != name:
            raise UserError(
                f"{name} are given, but this network is conditioned on {'nothing' if kind == 'none' else kind}"
            )
    if kind == "none":
        if guided:
            raise UserError("guidance_scale other than 1 needs a conditional model; this one has no condition")
        return (), ()
    if given[wanted[kind]] is None:
        raise UserError(f"this model is conditioned on {kind}: give {wanted[kind]}, one per video")
    if kind == "class":
        classes, rows = _classes(config), np.atleast_1d(np.asarray(labels))
        known = rows.dtype.kind in "iu" and ((rows >= 0) & (rows <= classes)).all()  # the last one is the null class
        if rows.ndim != 1 or not rows.size or not known:
            raise UserError(f"class labels are whole numbers from 0 to {classes - 1}; got {rows.tolist()}")
        rows = rows.astype(np.int32)
        return (rows,), (np.full_like(rows, classes),) if guided else ()
    text = np.asarray(text, np.float32)
    if text.shape[1:] != CLIP_TEXT:
        raise UserError(f"prompt_embeds are {text.shape}; this network takes (B, {CLIP_TEXT[0]}, {CLIP_TEXT[1]})")
    if not guided:
        return (text,), ()
    if null is None:
        raise UserError("guidance of a text model needs the embedding of the empty prompt as negative_prompt_embeds")
    return (text,), (np.array(np.broadcast_to(np.asarray(null, np.float32), text.shape)),)


def _classes(config: Config) -> int:
    """Return the number of classes of a class-conditional network, without the null class."""
    assert config.num_classes is not None
    return config.num_classes


def _list(prompt: Prompt, name: str, count: int | None = None) -> list[str]:
    """Return texts as a list; a single text may stand for `count`."""
    if isinstance(prompt, str):
        texts = [prompt] * (count or 1)
    else:
        texts = list(prompt) if isinstance(prompt, list | tuple | np.ndarray) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a text or a list of one or more texts")
    for text in texts:
        if not is_unicode(text):
            raise UserError(f"{name} {text!r} is no valid Unicode: it holds half of a surrogate pair; type it in UTF-8")
    if count is not None and len(texts) != count:
        raise UserError(f"there are {count} prompts, but {len(texts)} of {name}")
    return texts


def _checked(values: Any, name: str, count: int, width: int) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.ndim != 3 or values.shape[2] != width or len(values) != count:
        raise UserError(f"{name} are {values.shape}; this network takes ({count}, tokens, {width})")
    return values
