"""The pipeline: prompts, labels and seeds in, videos out; the argument names are those of diffusers' LattePipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import mindspore as ms
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from latte.components import runs, saving
from latte.components.codec import Codec
from latte.components.folders import Parts, read_scheduler
from latte.components.loading import Source, load
from latte.components.text_encoder import Prompts
from latte.data.transforms import pixels_of
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference import caches
from latte.inference.callbacks import Follower, InterruptedSampling, check_wanted, ordered_latents
from latte.inference.captions import check_packages, clean_caption
from latte.inference.from_diffusers import missing_attribute, unknown_argument
from latte.inference.inputs import (
    Prompt,
    check_interval,
    choose_solver,
    effective_guidance,
    make_conditions,
    seeds_of,
    windows_for,
)
from latte.inference.latents import LatentSampler, Request
from latte.inference.lora import LoraMixin
from latte.inference.windows import refuse_in_turn
from latte.io.json_files import check_numbers
from latte.models.latte import LatteConfig
from latte.runtime import device

if TYPE_CHECKING:
    from pathlib import Path

    from latte.diffusion.timesteps import StepCount
    from latte.models import Latte, LatteT2V

BOUNDS = {
    "feature_cache": (0.0, 1.0),
    "decode_chunk_size": (1, 1 << 16),
    "guidance_rescale": (0.0, 1.0),
    "video_length": (1, 1 << 16),
    "window": (2, 1 << 16),
    "window_stride": (1, 1 << 16),
}
OutputType = Literal["pil", "np", "ms", "uint8", "latent"]
OUTPUT_TYPES = ("pil", "np", "ms", "uint8", "latent")
TILE = 256  # pixels per side, as most autoencoders were trained with
DTYPE_NAMES = {"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
MODEL_OPTIONS = {field.name for field in fields(LatteConfig)} | {"model_name", "patch_embedder"}
StepCallback = Callable[["LattePipeline", int, float, dict[str, np.ndarray]], "dict[str, Any] | None"]


@dataclass
class LatteOutput:
    """The result of a pipeline; `frames` has one entry per video."""

    # "pil": a list of PIL images per video; "np": (B, F, H, W, 3) float32 in [0, 1]; "uint8": (B, F, H, W, 3) uint8;
    # "ms": a tensor of MindSpore (B, F, 3, H, W) float32 in [0, 1], as the "pt" of diffusers;
    # "latent": (B, F, C, h, w) float32 scaled latents
    frames: Any
    seeds: tuple[int, ...] = ()  # one per video; each makes its video again

    def __getitem__(self, index: int) -> Any:
        """Return the frames for 0, as the outputs of diffusers do."""
        return (self.frames,)[index]


class LattePipeline(LoraMixin):
    """A Latte network with its autoencoder and, for text to video, its text encoder.

    Load one with `LattePipeline.from_pretrained(path, vae)` and call it: `pipe("a prompt", seed=0).frames[0]`.

    What the videos show:

    - prompt: a text or a list of texts; class_labels: a number or a list; or prompt_embeds (B, S, D) float32.
    - num_images_per_prompt or num_videos_per_prompt: videos per prompt or label.
    - negative_prompt or negative_prompt_embeds: what guidance leads away from; a class-conditional network takes its
      null class.
    - guidance_scale: the scale of classifier-free guidance; 1 and less is no guidance, with half the network calls.
      Default: 7.5 for text to video, else 1.

    Size:

    - height, width: in pixels; video_length: in frames. Default: the sizes of the training. One frame is an image.
    - window, window_stride: longer videos are made by windows of so many frames, that begin so many frames one after
      the other; where they overlap, their predictions are averaged. Default: a window is as long as trained, the stride
      a quarter of it. A Latte makes every video by windows that is longer than trained, a text-to-video network if
      one of these arguments or loop asks for it.
    - loop: the end of the video meets its start.
    - shared_noise: all windows have the noise of the first one, its frames in another order; False draws new noise.
    - autoregressive: windows are made one after the other, each given the last frames of the one before it: as many
      as a training with condition_frames gave at most, else a quarter of a window, if window_stride leaves no others.

    Random numbers:

    - seed: the seed of the first video, and the next videos count up from it; or a list with one seed per video.
      Without it the seeds are drawn at random; the result has them in `seeds`. A video depends only on its seed and
      condition. The seeds of diffusers make other videos.
    - generator: a generator of NumPy to draw the seeds from; a number, as `seed`; or a list of these, one per video.
    - latents (B, F, C, h, w), or (B, C, F, h, w) as in diffusers: standard normal noise to start from, in place of the
      first noise of the seeds. Where there are as many frames as channels, latents_layout ("BFCHW" or "BCFHW") says it.

    Denoising:

    - num_inference_steps: denoising steps; without a text-to-video folder also "ddim50" or sections such as "10,15,20".
      Default: 50 for text to video, else 250.
    - timesteps: the timesteps themselves, falling from at most 999, in place of num_inference_steps.
    - sampler: the name of a solver in `latte.diffusion.solvers.SOLVERS`, or a `Solver`. Default: the
      solver of the text-to-video folder, else ddpm.
    - eta: noise that ddim adds, from 0 (none) to 1 (as much as ddpm).
    - cache: skip blocks in some steps: "every2" computes all of them in every second step, "calls20" in 20 steps;
      "every2-order1" extrapolates what they add; a file of `latte schedule`; or "threshold:0.05", see docs/sample.md.
    - feature_cache: 0.05 is the same as cache="threshold:0.05"; 0 = no cache.
    - guidance_rescale: from 0 (none) to 1, how far the guided noise gets the standard deviation that it has without
      guidance (Lin et al., 2024), against colours that are too strong.
    - guidance_interval: (low, high), the timesteps between which there is guidance; the others take half the time.
    - clean_caption: take addresses, file names and the like out of the prompts, as diffusers does; needs beautifulsoup4
      and ftfy. Prompts are stripped and in lower case anyway.
    - mask_feature: attend only to the tokens of a prompt, not to its padding.
    - enable_temporal_attentions: False skips the temporal blocks, so that every frame is an independent image.

    Conditioning frames, for image to video and video continuation:

    - frames (n, H, W, 3) uint8: frames of the videos that are given and do not change.
    - frame_indices: their n positions in the video. Default: the first n.
    - strength: above 0, at most 1. Below 1 the other frames start as noisy copies of the nearest conditioning frame;
      the lower, the more similar they stay to it and the less they move.

    Output:

    - output_type: "pil", "np", "ms", "uint8" or "latent"; see `LatteOutput`.
    - decode_chunk_size: frames that the autoencoder decodes at once. Default: as suits the device.
    - progress: show progress bars, in a notebook as widgets; `set_progress_bar_config` changes all of them.
    - return_dict: False returns the tuple (frames,).
    - callback_on_step_end(pipeline, step, timestep, arrays): called after each step with copies of the arrays that
      callback_on_step_end_tensor_inputs names: "latents" (B, F, C, h, w) float32, and the embeddings of the prompts. It
      may return a dictionary whose "latents" take their place, and set `pipeline.interrupt = True`, which decodes what
      there is. Where the device takes videos one by one it is called for each alone, and an interrupted sampling
      returns those that have begun.

    Between calls: `load_lora_weights` and its relatives, `scheduler`, `enable_vae_tiling`, `enable_vae_slicing`,
    `save_pretrained`. docs/from-diffusers.md compares all with diffusers.
    """

    def __init__(
        self,
        net: Latte | LatteT2V,
        codec: Codec,
        prompts: Prompts | None = None,
        scheduler: dict[str, Any] | None = None,
    ):
        self.net, self.codec, self.prompts = net, codec, prompts
        self.latents = LatentSampler(net)
        self.interrupt = False  # a callback sets it to end the sampling
        self._scheduler_config = scheduler or {}  # a diffusers scheduler_config.json
        self._solver: Solver | None = None  # what was set as `scheduler`
        self._bar_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Return what a notebook shows of a pipeline: network, autoencoder, solver, adapters, device."""
        vae, lines = self.codec.vae.config, [f"LattePipeline on {device.current().target}"]
        tiles = f", tiles of {self.codec.tile}" if self.codec.tile else ""
        lines.append(f"  network: {self.net.config.describe()}, {str(self.net.dtype).lower()}")
        lines.append(
            f"  autoencoder: {vae.latent_channels} channels, {vae.downsampling} pixels per latent, "
            f"scale {self.codec.scale_factor:g}{tiles}"
        )
        lines.append(f"  text encoder: {self.prompts.folder if self.prompts else 'none'}")
        lines.append(f"  scheduler: {self.scheduler.name}")
        if self._adapters and self._adapters.loaded:
            scales = {**self._adapters.fused, **self._adapters.scales}
            lines.append(
                "  adapters: " + ", ".join(f"{name} {scales.get(name, 0.0):g}" for name in self._adapters.loaded)
            )
        return "\n".join(lines)

    if not TYPE_CHECKING:  # editors and type checkers find misspelt names by themselves

        def __getattr__(self, name: str) -> NoReturn:
            """Raise AttributeError, with what takes the place of an attribute of diffusers' pipelines."""
            raise missing_attribute(name, (known for known in dir(type(self)) if not known.startswith("_")))

    @property
    def scheduler(self) -> Solver:
        """The solver that is used unless a call names another one; its `config` is one of diffusers."""
        return self._choose_solver(None, 0.0)

    @scheduler.setter
    def scheduler(self, solver: Solver) -> None:
        if not isinstance(solver, Solver):
            raise UserError(
                f"pipe.scheduler is a {type(solver).__name__}, but must be a Solver: "
                "Solver.from_config(pipe.scheduler.config, 'unipc')"
            )
        self._solver = solver

    def enable_vae_tiling(self, tile: int = TILE) -> None:
        """Decode in overlapping tiles of so many pixels a side, which saves memory; a multiple of a latent's pixels."""
        side = self.codec.vae.config.downsampling
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < side or tile % side:
            raise UserError(f"tile is {tile!r}, but must be a multiple of {side} pixels")
        self.codec.tile = tile

    def disable_vae_tiling(self) -> None:
        """Decode whole frames again."""
        self.codec.tile = 0

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """Encode and decode so many frames at a time, which saves memory."""
        check_numbers({"frames": frames}, {"frames": (1, 1 << 16)})
        self.codec.frames_per_slice = frames

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at a time as suits the device."""
        self.codec.frames_per_slice = device.current().frames_per_slice

    def set_progress_bar_config(self, **options: Any) -> None:
        """Give every progress bar these options of tqdm, such as disable=True."""
        self._bar_options = options

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write the pipeline into a new folder that `from_pretrained` takes, and return the folder.

        A text-to-video folder is one of diffusers again; CLIP's text encoder stays where it is, and is named again as
        text_encoder_path. LoRA adapters in use are merged into the weights.
        Raises UserError if the folder exists or cannot be written.
        """
        base = self.prompts.folder if self.prompts and self.prompts.kind == "t5" else None
        scheduler = self._solver.config if self._solver else self._scheduler_config if base is None else {}
        return saving.save(save_directory, self.net, self.codec, base, scheduler)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | None = None,
        *,
        device_target: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        quantize: str | None = None,
        enable_flash_attention: bool = False,
        enable_vae_temporal_decoder: bool = False,
        vae_slice: int = 0,
        vae_tile: int = 0,
        vae_dtype: str = "fp32",
        sd_scale_factor: float | None = None,
        keep_text_encoder: bool = False,
        text_encoder_path: str | Path | None = None,
        **model: Any,
    ) -> LattePipeline:
        """Load a pipeline from a folder or from checkpoints.

        - path: a text-to-video folder of diffusers, as downloaded or converted; a folder with latte.* and vae.*; the
          folder of a training run, of which the newest EMA weights are taken; or the checkpoint of a class-conditional
          or unconditional network, with its autoencoder in `vae`.
        - device_target: "Ascend", "GPU" or "CPU"; None = the device in use, or else the best one of this machine.
        - dtype or torch_dtype: arithmetic inside the blocks, "fp32" (the default), "fp16" or "bf16", or a dtype of
          MindSpore or NumPy. On a CPU a process takes either fp32 or bf16, whichever is asked for first.
        - quantize: "int8" keeps the matrices of a text-to-video network and of its text encoder in 8 bits.
        - enable_flash_attention: use the device's fused attention kernel, if it has one.
        - enable_vae_temporal_decoder: decode with the folder's vae_temporal_decoder.
        - vae_slice: frames that the autoencoder processes at once; 0 = as suits the device.
        - vae_tile: width and height in pixels of the tiles to decode, to save memory; 0 = whole frames.
        - vae_dtype: arithmetic of the autoencoder's convolutions, "fp32", or on an accelerator "fp16" or "bf16".
        - sd_scale_factor: factor that gives latents unit variance; None = the autoencoder's own.
        - keep_text_encoder: keep the text encoder in memory; otherwise it is loaded each time there are new prompts,
          and freed after that.
        - text_encoder_path: folder of CLIP's text encoder and tokenizer, for prompts of a network with condition text;
          None = that of its training run.
        - model: options of the network such as num_frames, for checkpoints that are not text-to-video folders.

        Raises UserError if a file is missing or damaged, or does not fit the options.
        """
        if unknown := [name for name in model if name not in MODEL_OPTIONS]:
            raise unknown_argument("from_pretrained", unknown[0], {*FROM_PRETRAINED, *MODEL_OPTIONS})
        name = dtype_name(dtype, torch_dtype)
        device.choose_device(device_target)
        parts = runs.find(path, vae, enable_vae_temporal_decoder, text_encoder_path)
        if parts.prompts is None and quantize:
            raise UserError(f"quantize {quantize} is for text-to-video folders, and {path} is not one; leave it out")
        if parts.prompts is not None and model:
            if "variant" in model:  # diffusers' name of a form of the weights
                raise unknown_argument("from_pretrained", "variant", FROM_PRETRAINED)
            raise UserError(f"{', '.join(model)}: a text-to-video folder determines this; leave it out")
        options: dict[str, Any] = {"dtype": name, "quantize": quantize, **model}
        options |= {"enable_flash_attention": enable_flash_attention, "keep_text_encoder": keep_text_encoder}
        codec: dict[str, Any] = {"vae_slice": vae_slice, "vae_tile": vae_tile, "vae_dtype": vae_dtype}
        codec["sd_scale_factor"] = sd_scale_factor
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
        vae_dtype: str = "fp32",
        sd_scale_factor: float | None = None,
        keep_text_encoder: bool = False,
        **model: Any,
    ) -> LattePipeline:
        """Load a pipeline from parts that were found or read before; the options are those of `from_pretrained`."""
        factor = sd_scale_factor or parts.scale_factor
        codec = Codec(load(vae, "autoencoder"), factor, vae_slice, vae_tile, vae_dtype)
        prompts = None
        if home := parts.prompts or parts.clip:
            kind = "t5" if parts.prompts else "clip"
            prompts = Prompts(home, dtype, quantize, keep_text_encoder, kind)
        options = {"dtype": dtype, "quantize": quantize, "flash": enable_flash_attention, **model}
        net = load(network, "latte_t2v" if parts.prompts else "latte", **options)
        return cls(net, codec, prompts, read_scheduler(parts.scheduler))

    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = "",
        num_inference_steps: int | str | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
        video_length: int | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: Any = None,
        latents: np.ndarray | None = None,
        prompt_embeds: np.ndarray | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        clean_caption: bool = False,
        mask_feature: bool = True,
        enable_temporal_attentions: bool = True,
        decode_chunk_size: int | None = None,
        *,
        class_labels: int | Sequence[int] | None = None,
        num_videos_per_prompt: int | None = None,
        seed: int | Sequence[int] | None = None,
        sampler: str | Solver | None = None,
        frames: np.ndarray | None = None,
        frame_indices: Sequence[int] | None = None,
        strength: float = 1.0,
        feature_cache: float = 0.0,
        cache: caches.Cache = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        window: int | None = None,
        window_stride: int | None = None,
        loop: bool = False,
        shared_noise: bool = True,
        autoregressive: bool = False,
        latents_layout: Literal["BFCHW", "BCFHW"] | None = None,
        progress: bool = True,
        **unknown: NoReturn,
    ) -> LatteOutput | Any:
        """Return videos; help(LattePipeline) explains the arguments, whose order is that of diffusers.

        Raises UserError if arguments are unknown, contradict each other or do not fit the network.
        """
        if unknown:
            raise unknown_argument("LattePipeline", next(iter(unknown)), ARGUMENTS)
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type {output_type!r} is not known; choose one of {', '.join(OUTPUT_TYPES)}")
        numbers = {"feature_cache": feature_cache, "guidance_rescale": guidance_rescale, "video_length": video_length}
        numbers |= {"window": window, "window_stride": window_stride, "decode_chunk_size": decode_chunk_size}
        check_numbers(numbers, BOUNDS)
        config, side = self.net.config, self.codec.vae.config.downsampling
        scale = effective_guidance(config.default_guidance if guidance_scale is None else guidance_scale)
        windows = windows_for(
            config, video_length, window, window_stride, loop=loop, shared=shared_noise, autoregressive=autoregressive
        )
        if windows and windows.autoregressive:
            refuse_in_turn({"latents": latents, "callback_on_step_end": callback_on_step_end}, strength)
        shape = config.latent_shape(windows.length if windows else video_length, height, width, side)
        shape = (windows.frames, *shape[1:]) if windows else shape
        per_prompt = _per_prompt(num_images_per_prompt, num_videos_per_prompt)
        steps, solver = _steps(num_inference_steps, timesteps, config.default_steps), self._choose_solver(sampler, eta)
        walk = solver.steps(steps, strength).timesteps.tolist()  # before prompts are encoded, which takes long
        method = caches.choose(
            cache, feature_cache, caches.Walk.of(solver, steps, strength, len(self.net.blocks), scale != 1)
        )
        interval = check_interval(guidance_interval, scale)
        texts, embeds = (prompt, negative_prompt), (prompt_embeds, negative_prompt_embeds)
        if clean_caption:
            texts = cleaned(*texts)
        both = make_conditions(config, self.prompts, texts, class_labels, embeds, scale != 1, mask_feature)
        conditions, null = ([np.repeat(values, per_prompt, axis=0) for values in part] for part in both)
        count = len(conditions[0]) if conditions else per_prompt
        request = Request(
            seeds=seeds_of(seed, generator, count),
            shape=shape,
            conditions=conditions,
            null=null,
            num_inference_steps=steps,
            solver=solver,
            guidance_scale=scale,
            guidance_rescale=float(guidance_rescale) if scale != 1 else 0.0,
            temporal=enable_temporal_attentions,
            latents=None if latents is None else ordered_latents(latents, (count, *shape), latents_layout),
            cache=method,
            guidance_interval=interval,
            strength=strength,
            windows=windows,
            **self._held(frames, frame_indices, shape, count, strength),
        )

        calls = count * solver.calls(steps, strength) * (len(windows.starts) if windows else 1)
        with _bar(progress, calls, "denoising", "call", self._bar_options) as bar:
            follow = callback_on_step_end and self._follower(
                callback_on_step_end, callback_on_step_end_tensor_inputs, request, walk
            )
            made: Any = self._sample(request, bar.update, follow)
        if output_type != "latent":
            made = self.decode(made, output_type, decode_chunk_size, progress)
        return LatteOutput(made, tuple(request.seeds[: len(made)])) if return_dict else (made,)

    def _sample(self, request: Request, on_step: Callable[[int], object], follower: Follower | None) -> np.ndarray:
        """Return latents (B, F, C, h, w); of a sampling that was interrupted, those of the videos that have begun."""
        self.interrupt = False
        if follower is None:
            return self.latents.sample(request, on_step)
        try:
            return self.latents.sample(request, on_step, follower.after)
        except InterruptedSampling:
            made = np.concatenate(follower.newest)
            if request.held is not None:
                made[:, list(request.held_frames)] = request.held[: len(made)]
            return made

    def _follower(
        self, call: StepCallback, wanted: Sequence[str] | None, request: Request, walk: list[float]
    ) -> Follower:
        """Return what calls a callback; raises UserError if it is no function or wants to be told what there is not."""
        if not callable(call):
            raise UserError(f"callback_on_step_end is a {type(call).__name__}, but must be a function")
        there = {}
        if self.net.config.conditioning != "class" and request.conditions:
            there["prompt_embeds"] = request.conditions[0]
            if request.null:
                there["negative_prompt_embeds"] = request.null[0]
        names = check_wanted(getattr(call, "tensor_inputs", wanted), there)
        return Follower(partial(call, self), lambda: self.interrupt, walk, there, names)

    def decode(
        self,
        latents: np.ndarray,
        output_type: OutputType = "uint8",
        decode_chunk_size: int | None = None,
        progress: bool = False,
    ) -> Any:
        """Return the videos of scaled latents (B, F, C, h, w) as "pil", "np", "ms" or "uint8"; see `LatteOutput`."""
        as_bytes = output_type in ("pil", "uint8")
        with _bar(progress, latents.shape[0] * latents.shape[1], "decoding", "frame", self._bar_options) as bar:
            videos = [self.codec.decode_together(video, bar.update, decode_chunk_size, as_bytes) for video in latents]
        if output_type == "pil":
            return [[Image.fromarray(frame) for frame in video] for video in videos]
        stacked = np.stack(videos)
        return ms.Tensor(np.ascontiguousarray(np.moveaxis(stacked, -1, 2))) if output_type == "ms" else stacked

    def _choose_solver(self, solver: str | Solver | None, eta: float) -> Solver:
        if solver is None and self._solver is not None:
            return replace(self._solver, eta=eta) if eta else self._solver
        config = self._solver.config if self._solver else self._scheduler_config
        return choose_solver(config, self.net.config.default_solver, solver, eta)

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
        mean = np.split(self.codec.moments(pixels_of(frames)), 2, axis=1)[0] * np.float32(self.codec.scale_factor)
        return {"held": np.repeat(mean[None], count, axis=0), "held_frames": places}


def dtype_name(*given: Any) -> str:
    """Return fp32, fp16 or bf16 for the first dtype that is not None: such a name, or a dtype of some library.

    Raises UserError if two differ or one is not known.
    """
    names = {_short(dtype) for dtype in given if dtype is not None} or {"fp32"}
    if len(names) > 1:
        raise UserError(f"dtype and torch_dtype are {' and '.join(sorted(names))}; give one of them")
    return names.pop()


def _short(dtype: Any) -> str:
    """Return the short name of a dtype such as "fp16", "float16", mindspore.float16 or numpy.float16."""
    name = str(getattr(dtype, "__name__", dtype)).rpartition(".")[2].lower()
    name = DTYPE_NAMES.get(name, name)
    if name not in device.DTYPES:
        raise UserError(f"dtype {dtype!s} is not known; choose one of {', '.join(device.DTYPES)}")
    return name


def cleaned(prompt: Prompt, negative_prompt: Prompt) -> tuple[Prompt, Prompt]:
    """Return the prompts without what web pages leave in captions; raises UserError if a package for it is missing."""
    check_packages()

    def each(texts: Prompt) -> Prompt:
        if isinstance(texts, str):
            return clean_caption(texts)
        return texts if texts is None else [clean_caption(text) for text in texts]

    return each(prompt), each(negative_prompt)


def _per_prompt(images: int | None, videos: int | None) -> int:
    """Return the number of videos per prompt, which has two names; raises UserError if it is below 1 or differs."""
    given = {count for count in (images, videos) if count is not None} or {1}
    if len(given) > 1:
        raise UserError(
            "num_images_per_prompt and num_videos_per_prompt are two names for one number; give one of them"
        )
    count = given.pop()
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise UserError(f"num_images_per_prompt is {count!r}, but must be a whole number from 1 on")
    return int(count)


def _steps(count: int | str | None, timesteps: Sequence[int] | None, default: int | str) -> StepCount:
    """Return the number of steps or the timesteps to take; raises UserError if both are given, or steps are none."""
    if timesteps is not None:
        if count is not None:
            raise UserError("give either num_inference_steps or timesteps")
        return list(np.asarray(timesteps).ravel().tolist())
    if count is None:
        return default
    if not isinstance(count, str) and (
        isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= 1000
    ):
        raise UserError(f"num_inference_steps is {count!r}, but must be a whole number from 1 to 1000")
    return count if isinstance(count, str) else int(count)


ARGUMENTS, FROM_PRETRAINED = (
    [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    for function in (LattePipeline.__call__, LattePipeline.from_pretrained)
)


def _bar(shown: bool, total: int, what: str, unit: str, options: dict[str, Any]) -> tqdm:
    usual: dict[str, Any] = {"desc": what, "unit": unit, "leave": False, "smoothing": 0.1, "disable": not shown}
    return tqdm(total=total, **(usual | options))
