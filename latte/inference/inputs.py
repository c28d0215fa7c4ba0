"""From what a user gives - options, prompts, labels, seeds - to the arrays that a network takes, a row per video."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.components.folders import INDEX
from latte.diffusion.scheduler_config import solver_of
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.models.latte import CLIP_TEXT, LatteConfig
from latte.models.latte_t2v import LatteT2VConfig

if TYPE_CHECKING:
    from latte.components.text_encoder import Prompts
    from latte.config import SampleConfig
    from latte.inference.latents import Conditions
    from latte.models.autoencoder import AutoencoderConfig

Config = LatteConfig | LatteT2VConfig
LONGEST_NAME = 60  # characters of a prompt in the name of a file

Prompt = str | Sequence[str] | None
Embeds = tuple[Any, Any]  # of the prompts and of what guidance steers away from; either may be None


def random_label(seed: int, num_classes: int) -> int:
    """Return the class that a video draws from its seed, by a stream of its own beside that of the noise."""
    return int(np.random.Generator(np.random.Philox(key=[seed, 1])).integers(num_classes))


def seeds_of(seed: int | Sequence[int] | None, generator: np.random.Generator | None, count: int) -> list[int]:
    """Return a seed a video: counted up from one, as listed, or drawn; raises UserError for too few."""
    if seed is None:
        drawn = (generator or np.random.default_rng()).integers(2**32, size=count)
        return [int(value) for value in drawn]
    if generator is not None:
        raise UserError("give either a seed or a generator")
    seeds = [seed + k for k in range(count)] if isinstance(seed, int | np.integer) else [int(value) for value in seed]
    if len(seeds) != count or min(seeds) < 0:
        raise UserError(f"there are {count} videos, but {len(seeds)} seeds: {seeds[:8]}; they count from 0 on")
    return seeds


def guidance(cfg: SampleConfig, config: Config) -> float:
    """Return the guidance scale that is asked for, or the network's own."""
    return config.default_guidance if cfg.guidance_scale is None else cfg.guidance_scale


def latent_shape(cfg: SampleConfig, config: Config, side: int) -> tuple[int, int, int, int]:
    """Return the shape (F, C, h, w) of a video's latents, of which each spans `side` pixels; raises UserError."""
    return config.latent_shape(cfg.num_frames, cfg.height or cfg.image_size, cfg.width or cfg.image_size, side)


def model_options(cfg: SampleConfig, vae: AutoencoderConfig) -> dict[str, int | str | None]:
    """Return what the options ask of a Latte when it is loaded, as arguments of `load`."""
    names = ("model_name", "condition", "num_classes", "hidden_size", "depth", "num_heads", "patch_size", "num_frames")
    asked = {name: getattr(cfg, name) for name in names}
    return asked | {"input_size": cfg.image_size and cfg.image_size // vae.downsampling}


def choose_solver(scheduler: dict[str, Any], default: str | None, solver: str | Solver | None, eta: float) -> Solver:
    """Return the solver that is asked for, or the default; what a scheduler's configuration says holds for every one.

    Without a default it is the configuration's own. Raises UserError for what is not supported.
    """
    if isinstance(solver, Solver):
        return solver
    if not scheduler:
        return Solver(solver or default or "ddpm", eta=eta)
    name, options = solver_of(scheduler, solver or default)
    return Solver(name, **options, eta=eta)


def check_options(cfg: SampleConfig, text: bool) -> None:
    """Raise UserError for options that the checkpoint does not take, which is a text-to-video folder or is not."""
    if not text:
        if not Path(cfg.checkpoint).exists():
            raise UserError(f"{cfg.checkpoint} does not exist; check the name of the checkpoint")
        for name in ("prompts", "height", "width", "quantize", "enable_vae_temporal_decoder", "negative_prompt"):
            if getattr(cfg, name):
                raise UserError(f"{name} is for text-to-video folders; {cfg.checkpoint} has no {INDEX}")
        if not cfg.vae_checkpoint and not Path(cfg.checkpoint).is_dir():
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
    """Raise UserError if labels, text embeddings or guidance are not what the network takes."""
    kind, guided = config.conditioning, guidance(cfg, config) != 1
    if cfg.class_labels and kind != "class":
        raise UserError(f"class_labels are given, but {cfg.checkpoint} is not a class-conditional model")
    if cfg.class_labels and max(cfg.class_labels) >= config.num_classes:
        raise UserError(
            f"class_labels go up to {max(cfg.class_labels)}, but {cfg.checkpoint} has classes 0 to "
            f"{config.num_classes - 1}"
        )
    if guided and kind == "none":
        raise UserError(f"guidance_scale {cfg.guidance_scale:g} needs a conditional model; {cfg.checkpoint} is not one")
    if (kind == "text") != bool(cfg.text_embeddings):
        need = "name its CLIP embeddings with" if kind == "text" else "leave out"
        what = "is" if kind == "text" else "is not"
        raise UserError(f"{cfg.checkpoint} {what} conditioned on text; {need} --text_embeddings")
    if kind == "text" and read_text_embeddings(Path(cfg.text_embeddings))[1] is None and guided:
        raise UserError(f"text_embeddings {cfg.text_embeddings} has no 'null', which guidance needs")


def choose_inputs(cfg: SampleConfig, config: Config, numbers: list[int]) -> dict[str, Any]:
    """Return the arguments of the pipeline that say what the videos of these numbers show.

    A list of labels is gone through again and again; without one, a label is drawn from each video's seed.
    """
    if config.conditioning == "prompt":
        names = ("negative_prompt", "mask_feature", "enable_temporal_attentions")
        return {"prompt": [cfg.prompts[k // cfg.num_samples] for k in numbers]} | {
            name: getattr(cfg, name) for name in names
        }
    if config.conditioning == "class":
        labels = cfg.class_labels
        drawn = [random_label(cfg.seed + k, config.num_classes) for k in numbers]
        return {"class_labels": [labels[k % len(labels)] for k in numbers] if labels else drawn}
    if config.conditioning == "text":
        text, null = read_text_embeddings(Path(cfg.text_embeddings))
        return {"prompt_embeds": text[[k % len(text) for k in numbers]], "negative_prompt_embeds": null}
    return {"num_videos_per_prompt": len(numbers)}


def suffix(given: dict[str, Any], row: int) -> str:
    """Return what a video's condition adds to the name of its file: safe characters, whatever the prompt holds."""
    if "class_labels" in given:
        return f"-class{given['class_labels'][row]}"
    words = re.sub(r"[^a-z0-9]+", "-", given["prompt"][row].lower()).strip("-") if "prompt" in given else ""
    return f"-{words[:LONGEST_NAME].strip('-')}" if words else ""


def read_text_embeddings(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `text` (N, 77, 768) and `null` (1, 77, 768), or None, of an .npz file; raises UserError for others."""
    try:
        with np.load(path, allow_pickle=False) as file:
            text, null = file["text"], file["null"][None] if "null" in file else None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"text_embeddings {path} is not an .npz file with an array 'text': {error}") from error
    for name, array in (("text", text), ("null", null)):
        if array is not None and (array.shape[1:] != CLIP_TEXT or not len(array) or array.dtype.kind != "f"):
            raise UserError(f"text_embeddings {path}: '{name}' is {array.dtype} {array.shape}; see docs/sample.md")
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
    """Return what a network takes after x and t, a row per video, and the same of what guidance steers away from.

    The second is empty without guidance. `texts` are prompt and negative prompt, which `prompts` encodes; `embeds` are
    their embeddings. Raises UserError if what is given is not what the network is conditioned on.
    """
    if config.conditioning == "prompt":
        if labels is not None:
            raise UserError("class_labels are given, but this network is conditioned on text; give a prompt")
        return text_conditions(config, prompts, texts, embeds, guided, mask_feature)
    if texts[0] is not None:
        raise UserError("a prompt is given, but this network has no text encoder")
    return label_conditions(config, labels, embeds, guided)


def text_conditions(
    config: LatteT2VConfig,
    prompts: Prompts | None,
    texts: tuple[Prompt, Prompt],
    embeds: Embeds,
    guided: bool,
    mask_feature: bool = True,
) -> tuple[Conditions, Conditions]:
    """Return text (B, S, D) and mask (B, S) of what to follow, and of what guidance steers away from, or nothing.

    `texts` are prompt and negative prompt; either embeds or texts are given. The mask of both is that of the prompt,
    since the original cuts the negative prompt to its length; without mask_feature it is all ones.
    Raises UserError for anything else.
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
    text = _checked(encoded[:count] if given is None else given, "prompt_embeds", count, config.caption_channels)
    mask = masks[:count] if given is None and mask_feature else np.ones(text.shape[:2], np.int32)
    if not guided:
        return (text, mask), ()
    null = _checked(
        encoded[-count:] if negative is None else negative, "negative_prompt_embeds", count, config.caption_channels
    )
    if null.shape != text.shape:
        raise UserError(f"negative_prompt_embeds are {null.shape}, but prompt_embeds are {text.shape}")
    return (text, mask), (null, mask)


def label_conditions(
    config: LatteConfig, labels: int | Sequence[int] | None, embeds: Embeds, guided: bool
) -> tuple[Conditions, Conditions]:
    """Return the conditions of a network without a text encoder, and what guidance steers away from, or nothing.

    They are labels (B,), CLIP text (B, 77, 768) that comes as embeds, or nothing. Raises UserError if what is given is
    not what the network takes.
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
        raise UserError(f"this model is conditioned on {kind}: give {wanted[kind]}, one a video")
    if kind == "class":
        labels = np.atleast_1d(np.asarray(labels, np.int32))
        if labels.ndim != 1 or labels.min() < 0 or labels.max() > config.num_classes:
            raise UserError(f"class labels are 0 to {config.num_classes - 1}; got {labels.tolist()}")
        return (labels,), (np.full_like(labels, config.num_classes),) if guided else ()
    text = np.asarray(text, np.float32)
    if text.shape[1:] != CLIP_TEXT:
        raise UserError(f"prompt_embeds are {text.shape}; this network takes (B, {CLIP_TEXT[0]}, {CLIP_TEXT[1]})")
    if not guided:
        return (text,), ()
    if null is None:
        raise UserError("guidance of a text model needs the embedding of the empty prompt as negative_prompt_embeds")
    return (text,), (np.array(np.broadcast_to(np.asarray(null, np.float32), text.shape)),)


def _list(prompt: Prompt, name: str, count: int | None = None) -> list[str]:
    """Return texts as a list; a single one may stand for `count`."""
    texts = [prompt] * (count or 1) if isinstance(prompt, str) else list(prompt or ())
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a text or a list of one or more texts")
    for text in texts:
        if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            raise UserError(f"{name} {text!r} is no valid Unicode: it has half of a character")
    if count is not None and len(texts) != count:
        raise UserError(f"there are {count} prompts, but {len(texts)} of {name}")
    return texts


def _checked(values: Any, name: str, count: int, width: int) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.ndim != 3 or values.shape[2] != width or len(values) != count:
        raise UserError(f"{name} are {values.shape}; this network takes ({count}, tokens, {width})")
    return values
