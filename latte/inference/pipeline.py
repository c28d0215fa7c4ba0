"""From prompts, labels and seeds to videos, in one call, with the names of diffusers' LattePipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from latte.components.codec import Codec
from latte.components.folders import Parts, find_parts, read_scheduler
from latte.components.loading import Source, load
from latte.components.text_encoder import Prompts
from latte.errors import UserError
from latte.inference.inputs import Prompt, choose_solver, make_conditions, seeds_of
from latte.inference.latents import LatentSampler, Request

if TYPE_CHECKING:
    from pathlib import Path

    from latte.diffusion.solvers import Solver
    from latte.models import Latte, LatteT2V

OUTPUT_TYPES = ("pil", "np", "uint8", "latent")
StepCallback = Callable[["LattePipeline", int, float, dict[str, np.ndarray]], Any]


@dataclass
class LatteOutput:
    """What a pipeline returns; `frames` has an entry a video."""

    frames: Any  # by output_type: lists of PIL images; (B, F, H, W, 3) float32 0 to 1 or uint8; (B, F, C, h, w) latents


class LattePipeline:
    """A Latte network, its autoencoder and, for text, its encoder. Called, it returns videos.

    - prompt, or class_labels, or prompt_embeds (B, S, D): what the videos show; num_videos_per_prompt of each.
    - guidance_scale: 1 is none; by default 7.5 for text to video, 1 otherwise. What it steers away from is the
      negative_prompt, the null label, or negative_prompt_embeds.
    - num_inference_steps: by default 50 for text to video, 250 otherwise; or what else the solver's spacing takes.
    - height, width (pixels), video_length (frames): by default those of the training; a single frame is an image.
    - seed: of the first video, the others count up; or one a video. Without it, `generator` draws them, or chance. A
      video depends on its seed and its condition only.
    - latents (B, F, C, h, w): the noise to start from, in place of the seeds' first.
    - sampler: a solver's name (`latte.diffusion.solvers.SOLVERS`), or one with options; by default the folder's. eta is
      the noise of ddim.
    - mask_feature: attend to the prompt's own tokens only, not to those that fill it up.
    - enable_temporal_attentions: without them, and for a single frame, the blocks over frames are left out.
    - frames (n, H, W, 3) uint8: given frames, kept at frame_indices (by default the first) while the others are made
      to go with them. With a strength below 1 the others begin as copies of the nearest given one, with that part of
      the noise's way before them: they keep more of it, and move less.
    - feature_cache: how much tokens may change for the inner blocks to be skipped: 0.02 to 0.1.
    - callback_on_step_end(pipeline, step, timestep, {"latents": ...}) looks on; it cannot change the latents.
    - decode_chunk_size: frames that the autoencoder takes at once.
    - output_type: "pil", "np", "uint8" or "latent"; see `LatteOutput`.
    """

    def __init__(
        self,
        net: Latte | LatteT2V,
        codec: Codec,
        prompts: Prompts | None = None,
        scheduler: dict[str, Any] | None = None,
    ):
        self.net, self.codec, self.prompts = net, codec, prompts
        self.scheduler = scheduler or {}  # a diffusers scheduler_config.json
        self.latents = LatentSampler(net)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | None = None,
        *,
        dtype: str = "fp32",
        quantize: str | None = None,
        enable_flash_attention: bool = False,
        enable_vae_temporal_decoder: bool = False,
        vae_slice: int = 0,
        vae_tile: int = 0,
        sd_scale_factor: float | None = None,
        **model: Any,
    ) -> LattePipeline:
        """Load a pipeline from files that stay as they are.

        path: a diffusers text-to-video folder, as it is or converted; a folder with latte.* and vae.*; or a checkpoint
        of a class-conditional or unconditional network, with its autoencoder in `vae`. quantize: "int8" keeps the
        matrices of a text-to-video network and of its text encoder in 8 bits. The text encoder is loaded when there are
        prompts to encode. model: for `load`, such as num_frames. Raises UserError for what cannot be loaded.
        """
        parts = find_parts(path, vae, enable_vae_temporal_decoder)
        if parts.prompts is None and quantize:
            raise UserError(f"quantize {quantize} is for text-to-video folders; {path} is none")
        if parts.prompts is not None and model:
            raise UserError(f"{', '.join(model)}: a text-to-video network takes no such option when it is loaded")
        options = {"dtype": dtype, "quantize": quantize, "enable_flash_attention": enable_flash_attention, **model}
        codec = {"vae_slice": vae_slice, "vae_tile": vae_tile, "sd_scale_factor": sd_scale_factor}
        return cls.from_parts(parts, parts.network, parts.vae, **codec, **options)

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        network: Source,
        vae: Source,
        *,
        dtype: str = "fp32",
        quantize: str | None = None,
        enable_flash_attention: bool = False,
        vae_slice: int = 0,
        vae_tile: int = 0,
        sd_scale_factor: float | None = None,
        **model: Any,
    ) -> LattePipeline:
        """Load a pipeline whose parts were found, and maybe read, before; see `from_pretrained`."""
        codec = Codec(load(vae, "autoencoder"), sd_scale_factor, vae_slice, vae_tile)
        prompts = Prompts(parts.prompts, dtype, quantize) if parts.prompts else None
        options = {"dtype": dtype, "quantize": quantize, "flash": enable_flash_attention, **model}
        net = load(network, "latte_t2v" if prompts else "latte", **options)
        return cls(net, codec, prompts, read_scheduler(parts.scheduler))

    def __call__(
        self,
        prompt: Prompt = None,
        *,
        negative_prompt: Prompt = "",
        class_labels: int | Sequence[int] | None = None,
        num_inference_steps: int | str | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        video_length: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: np.random.Generator | None = None,
        latents: np.ndarray | None = None,
        prompt_embeds: np.ndarray | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        sampler: str | Solver | None = None,
        output_type: str = "pil",
        mask_feature: bool = True,
        enable_temporal_attentions: bool = True,
        decode_chunk_size: int | None = None,
        frames: np.ndarray | None = None,
        frame_indices: Sequence[int] | None = None,
        strength: float = 1.0,
        feature_cache: float = 0.0,
        callback_on_step_end: StepCallback | None = None,
        progress: bool = True,
    ) -> LatteOutput:
        """Return videos; the arguments are explained at the class. Raises UserError for impossible settings."""
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type {output_type!r} is not known; choose one of {', '.join(OUTPUT_TYPES)}")
        config, side = self.net.config, self.codec.vae.config.downsampling
        scale = float(config.default_guidance if guidance_scale is None else guidance_scale)
        shape = config.latent_shape(video_length, height, width, side)
        texts, embeds = (prompt, negative_prompt), (prompt_embeds, negative_prompt_embeds)
        both = make_conditions(config, self.prompts, texts, class_labels, embeds, scale != 1, mask_feature)
        conditions, null = ([np.repeat(values, num_videos_per_prompt, axis=0) for values in part] for part in both)
        count = len(conditions[0]) if conditions else num_videos_per_prompt
        steps, solver = num_inference_steps or config.default_steps, self._solver(sampler, eta)
        request = Request(
            seeds=seeds_of(seed, generator, count),
            shape=shape,
            conditions=conditions,
            null=null,
            num_inference_steps=steps,
            sampler=solver,
            guidance_scale=scale,
            temporal=enable_temporal_attentions,
            latents=latents,
            feature_cache=feature_cache,
            strength=strength,
            **self._held(frames, frame_indices, shape, count, strength),
        )
        timesteps = solver.steps(steps, strength).timesteps.tolist()

        def after(step: int, latents: np.ndarray) -> None:
            told = {"latents": latents.copy()} if callback_on_step_end else {}
            if callback_on_step_end and callback_on_step_end(self, step, timesteps[step], told):
                raise UserError("callback_on_step_end returned something, but latents cannot be changed on their way")

        with _bar(progress, count * solver.calls(steps, strength), "denoising", "call") as bar:
            made = self.latents.sample(request, bar.update, after)
        if output_type == "latent":
            return LatteOutput(made)
        return LatteOutput(self.decode(made, output_type, decode_chunk_size, progress))

    def decode(
        self,
        latents: np.ndarray,
        output_type: str = "uint8",
        decode_chunk_size: int | None = None,
        progress: bool = False,
    ) -> Any:
        """Return the videos of scaled latents (B, F, C, h, w) in the form of an output_type other than "latent"."""
        as_bytes = output_type != "np"
        with _bar(progress, latents.shape[0] * latents.shape[1], "decoding", "frame") as bar:
            videos = [self.codec.decode(video, bar.update, decode_chunk_size, as_bytes) for video in latents]
        if output_type == "pil":
            return [[Image.fromarray(frame) for frame in video] for video in videos]
        return np.stack(videos)

    def _solver(self, solver: str | Solver | None, eta: float) -> Solver:
        return choose_solver(self.scheduler, self.net.config.default_solver, solver, eta)

    def _held(
        self, frames: Any, indices: Sequence[int] | None, shape: tuple, count: int, strength: float
    ) -> dict[str, Any]:
        """Return the latents of given frames, for all videos, and their places."""
        if frames is None:
            if strength != 1:
                raise UserError(f"strength {strength:g} says how much of given frames to keep; give frames")
            return {}
        if not 0 < strength <= 1:
            raise UserError(f"strength must be above 0 and at most 1; it is {strength:g}")
        frames, side = np.asarray(frames), self.codec.vae.config.downsampling
        places = list(range(len(frames))) if indices is None else [int(place) for place in indices]
        size = (shape[2] * side, shape[3] * side, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != size:
            raise UserError(
                f"frames are {frames.dtype} {frames.shape}; these videos take uint8 (n, {size[0]}, {size[1]}, 3)"
            )
        if len(set(places)) != len(frames) or min(places) < 0 or max(places) >= shape[0]:
            raise UserError(f"frame_indices {places} are no {len(frames)} different frames of 0 to {shape[0] - 1}")
        pixels = frames.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        mean = np.split(self.codec.moments(pixels), 2, axis=1)[0] * np.float32(self.codec.scale_factor)
        return {"held": np.repeat(mean[None], count, axis=0), "held_frames": places}


def _bar(shown: bool, total: int, what: str, unit: str) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, leave=False, smoothing=0.1, disable=not shown)
