"""The pipeline: prompts, labels and seeds in, videos out; the argument names are those of diffusers' LattePipeline."""

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
    """The result of a pipeline; `frames` has one entry per video."""

    # "pil": a list of PIL images per video; "np": (B, F, H, W, 3) float32 in [0, 1]; "uint8": (B, F, H, W, 3) uint8;
    # "latent": (B, F, C, h, w) float32 scaled latents
    frames: Any


class LattePipeline:
    """A Latte network with its autoencoder and, for text to video, its text encoder.

    Load one with `LattePipeline.from_pretrained(path, vae)` and call it: `pipe("a prompt", seed=0).frames[0]`.

    What the videos show:
    - prompt: a text or a list of texts; class_labels: a number or a list; or prompt_embeds (B, S, D) float32.
    - num_videos_per_prompt: videos per prompt or label.
    - negative_prompt or negative_prompt_embeds: what guidance leads away from; a class-conditional network takes its
      null class.
    - guidance_scale: the scale of classifier-free guidance; 1 is no guidance. Default: 7.5 for text to video, else 1.

    Size:
    - height, width: in pixels; video_length: in frames. Default: the sizes of the training. One frame is an image.

    Random numbers:
    - seed: the seed of the first video, and the next videos count up from it; or a list with one seed per video.
      Without it the seeds are drawn from `generator`, or at random. A video depends only on its seed and condition.
    - latents (B, F, C, h, w) float32: standard normal noise to start from, in place of the first noise of the seeds.

    Denoising:
    - num_inference_steps: denoising steps; without a text-to-video folder also "ddim50" or sections such as "10,15,20".
      Default: 50 for text to video, else 250.
    - sampler: the name of a solver in `latte.diffusion.solvers.SOLVERS`, or a `Solver`. Default: the
      solver of the text-to-video folder, else ddpm.
    - eta: noise that ddim adds, from 0 (none) to 1 (as much as ddpm).
    - feature_cache: reuse the inner blocks while the relative change of the tokens stays below this, such as 0.05;
      0 = never.
    - mask_feature: attend only to the tokens of a prompt, not to its padding.
    - enable_temporal_attentions: False skips the temporal blocks, so that every frame is an independent image.

    Conditioning frames, for image to video and video continuation:
    - frames (n, H, W, 3) uint8: frames of the videos that are given and do not change.
    - frame_indices: their n positions in the video. Default: the first n.
    - strength: above 0, at most 1. Below 1 the other frames start as noisy copies of the nearest conditioning frame;
      the lower, the more similar they stay to it and the less they move.

    Output:
    - output_type: "pil", "np", "uint8" or "latent"; see `LatteOutput`.
    - decode_chunk_size: frames that the autoencoder decodes at once. Default: as suits the device.
    - progress: show progress bars.
    - callback_on_step_end(pipeline, step, timestep, {"latents": array}): called after each step with a copy of the
      latents. It cannot change them and must return nothing or an empty value.
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
        """Load a pipeline from a folder or from checkpoints.

        - path: a text-to-video folder of diffusers, as downloaded or converted; a folder with latte.* and vae.*; or the
          checkpoint of a class-conditional or unconditional network, with its autoencoder in `vae`.
        - dtype: arithmetic inside the blocks, "fp32", "fp16" or "bf16".
        - quantize: "int8" keeps the matrices of a text-to-video network and of its text encoder in 8 bits.
        - enable_flash_attention: use the device's fused attention kernel, if it has one.
        - enable_vae_temporal_decoder: decode with the folder's vae_temporal_decoder.
        - vae_slice: frames that the autoencoder processes at once; 0 = as suits the device.
        - vae_tile: width and height in pixels of the tiles to decode, to save memory; 0 = whole frames.
        - sd_scale_factor: factor that gives latents unit variance; None = the autoencoder's own.
        - model: options of the network such as num_frames, for checkpoints that are not text-to-video folders.

        The text encoder is loaded each time there are prompts to encode, and freed after that.
        Raises UserError if a file is missing or damaged, or does not fit the options.
        """
        parts = find_parts(path, vae, enable_vae_temporal_decoder)
        if parts.prompts is None and quantize:
            raise UserError(f"quantize {quantize} is for text-to-video folders, and {path} is not one; leave it out")
        if parts.prompts is not None and model:
            raise UserError(f"{', '.join(model)}: a text-to-video folder determines this; leave it out")
        options: dict[str, Any] = {"dtype": dtype, "quantize": quantize, **model}
        options["enable_flash_attention"] = enable_flash_attention
        codec: dict[str, Any] = {"vae_slice": vae_slice, "vae_tile": vae_tile, "sd_scale_factor": sd_scale_factor}
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
        """Load a pipeline from parts that were found or read before; the options are those of `from_pretrained`."""
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
        """Return videos; help(LattePipeline) explains the arguments.

        Raises UserError if arguments contradict each other or do not fit the network.
        """
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
            solver=solver,
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
                raise UserError(
                    "callback_on_step_end returned something, but it cannot change the latents; let it return None"
                )

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
        """Return the videos of scaled latents (B, F, C, h, w) as "pil", "np" or "uint8"; see `LatteOutput`."""
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
        """Return the latents (B, n, C, h, w) of conditioning frames, repeated for every video, and their positions."""
        if frames is None:
            if strength != 1:
                raise UserError(f"strength {strength:g} is for conditioning frames; give frames, or leave it out")
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
        if not places or len(set(places)) != len(frames) or min(places) < 0 or max(places) >= shape[0]:
            raise UserError(
                f"frame_indices {places} must be one different position from 0 to {shape[0] - 1} for each of the "
                f"{len(frames)} frames, at least one"
            )
        pixels = frames.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        mean = np.split(self.codec.moments(pixels), 2, axis=1)[0] * np.float32(self.codec.scale_factor)
        return {"held": np.repeat(mean[None], count, axis=0), "held_frames": places}


def _bar(shown: bool, total: int, what: str, unit: str) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, leave=False, smoothing=0.1, disable=not shown)
