"""What a training or a sampling is predicted to take on a card: operations, bytes, launches, memory and time.

`latte.runtime.roofline` has the model; here are the options of a run, and the lines that `latte estimate` and every
`--dry_run` print. docs/estimate.md says what the predictions rest on.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import mindspore as ms

from latte.components import runs
from latte.components.loading import open_weights
from latte.config import TEXT_TO_VIDEO
from latte.diffusion.distillation import SUBSTEPS
from latte.errors import UserError
from latte.inference.inputs import (
    DEFAULT_FRAMES,
    DEFAULT_MODEL,
    DEFAULT_SIZE,
    Config,
    asked_solver,
    asked_steps,
    asked_windows,
    choose_solver,
    guidance,
    latent_shape,
    model_options,
    trained_config,
)
from latte.io.json_files import exists
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import LatteConfig, named_sizes
from latte.models.latte_t2v import LatteT2VConfig
from latte.models.t5 import T5Config
from latte.runtime import device, graphs, layout, roofline
from latte.runtime.roofline import Card, Sizes, Times

if TYPE_CHECKING:
    from latte.config import SampleConfig, TrainConfig
    from latte.diffusion.solvers import Solver

GIB = 2**30
SLICE = 8  # frames that the autoencoder takes at once on an accelerator, unless vae_slice says otherwise
FITS = 0.94  # of a card's memory is MindSpore's to use
MANY = 2**16  # a batch that memory does not limit
MILLION = 10**6  # steps of the official trainings
LORA = 24  # matrices of LoRA adapters (rank, width) in a pair of blocks
MOMENTS = 8  # bytes of AdamW's moments per weight
# Bytes per weight that an update on the host moves: over the link down and up, and in the host's memory: the gradient
# twice, both moments and the weights read and written, and copied for the way up; and what EMA weights add.
OFFLOAD_LINK, OFFLOAD_MEMORY, OFFLOAD_EMA = 4, 44, 12
# Bytes per weight of a block, where ranks share weights: of the one that is at work its row and its weights in halves,
# their gradients, the row of these, and that in float32; the next one's row; the last one's row that is being summed.
BYTES_GATHERED = 2 + 2 + 2 + 2 + 4 + 2 + 4
CPU_CARD = "cpu"
# A CPU's run time, measured in float32 (docs/devices.md): bytes of the process and of what compiling a training leaves;
# tensors as large as the tokens that a block keeps for its backward pass; bytes per element of the tokens of the one
# block that sampling has, per attention score, and per pixel and channel of a frame in the autoencoder.
BYTES_BASE, BYTES_COMPILER, KEPT = int(0.5 * GIB), int(0.7 * GIB), 24
BYTES_TOKEN, BYTES_SCORE, BYTES_PIXEL = 4 * 45, 4 * 3, 4 * 50
PRODUCTS = 0.75  # of a CPU's time is in products, at the speed of the one that is measured


@dataclasses.dataclass(frozen=True)
class Work:
    """A step to predict, and how often it is done."""

    kind: str  # of its launches, in the tables
    config: Config
    sizes: Sizes
    grid: float  # of 16 x 16 pixels, that is of latents of the autoencoder, of a frame
    dtype: str = "fp16"
    fused: bool = True  # the fused attention kernel
    vae: AutoencoderConfig = dataclasses.field(default_factory=AutoencoderConfig)
    encoded: float = 0  # frames that the autoencoder encodes in a step
    decoded: float = 0  # frames that it decodes after the last step
    vae_dtype: str = "fp32"  # of its convolutions
    vae_slice: int = 0  # frames at once; 0 = as suits the device
    vae_tile: int = 0  # pixels a side of what is decoded at once; 0 = whole frames
    calls: int = 0  # of the network for a batch of videos; 0 in a training
    accumulation: int = 1  # batches of a training step
    trained: float = 0  # weights
    ema: bool = True
    recompute: bool = False
    recomputed: float = 1  # share of the pairs of blocks that are, with `recompute`
    zero_stage: int = 0  # 1: ranks share AdamW's moments, 2: gradients and EMA weights too, 3: weights of blocks too
    taught: bool = False  # by a second network, which makes SUBSTEPS passes
    offload: bool = False  # AdamW and EMA weights are on the host
    total_steps: int | None = None  # of this training; None = not known
    videos: int = 1  # to sample
    int8: bool = False
    text_encoder: float = 0  # bytes that are there at once of one that runs before the first step only
    text_encoder_read: float = 0  # and bytes of all its weights
    halves: int = 1  # groups of ranks that share guidance

    @property
    def together(self) -> int:
        """The number of ranks that have the same videos."""
        return self.sizes.ranks * self.halves

    @property
    def streams(self) -> float:
        """The number of videos in a pass: with guidance in one batch, twice those that are made."""
        return self.sizes.batch * (2 if "guided" in self.kind else 1)

    @property
    def in_blocks(self) -> float:
        """The number of trained weights that are a block's."""
        sizes, text = self.sizes, self.config.conditioning == "prompt"
        of_blocks = sizes.pairs * roofline.pair_weights(sizes.width, sizes.padded, text)
        return self.trained * min(1.0, of_blocks / max(sizes.weights, 1))

    @property
    def exchanges(self) -> float:
        """The number of exchanges between ranks that share frames, in a pass and, in a training, back."""
        return 0 if self.sizes.ranks == 1 else 2 * self.config.blocks_over_frames * (2 if self.trains else 1)

    @property
    def exchanged(self) -> float:
        """The bytes of tokens that a rank has in one of these exchanges, of which it keeps its own part."""
        sizes = self.sizes
        patches = math.ceil(sizes.grid**2 / sizes.ranks)  # of a rank, where it has all frames
        return self.streams * sizes.filled * patches * sizes.width * _itemsize(self.dtype)

    @property
    def table(self) -> str:
        """The name of the launches in the tables: a video by itself is computed otherwise than several."""
        single = f"{self.kind} single"
        return single if self.sizes.batch == 1 and single in roofline.tables() else self.kind

    @property
    def grid_at_once(self) -> float:
        """The side, as `grid` has it, of what the autoencoder takes of a frame at once."""
        return min(self.grid, self.vae_tile / 16) if self.vae_tile else self.grid

    @property
    def trains(self) -> bool:
        """Whether this is a training."""
        return not self.calls

    def of_batch(self, batch: float) -> Work:
        """Return the same with another number of videos at once."""
        factor = batch / self.sizes.batch
        sizes = dataclasses.replace(self.sizes, batch=batch)
        return dataclasses.replace(self, sizes=sizes, encoded=self.encoded * factor, decoded=self.decoded * factor)


class Memory(NamedTuple):
    """Predicted bytes at the peak; `peak` is less than the sum where the parts are not there at once."""

    weights: float
    optimizer: float  # AdamW's moments, EMA, gradients that stay
    activations: float
    autoencoder: float
    peak: float


class Prediction(NamedTuple):
    """What is predicted of some work on a card."""

    flops: float
    bytes: float
    launches: float
    times: Times  # of a step: of all batches that it accumulates
    after: float  # seconds of decoding, after the last step of a sampling
    memory: Memory
    compiling: float


def training(
    cfg: TrainConfig, config: Config, shape: tuple[int, ...], vae: AutoencoderConfig, trained: float | None = None
) -> Work:
    """Return the work of a training; shape: (F, C, h, w) of a video's latents without its single images."""
    frames, _, h, w = shape
    frames += cfg.images_per_video
    text, fused = config.conditioning == "prompt", cfg.enable_flash_attention and cfg.dtype != "fp32"
    parts = cfg.sequence_parallel
    sizes = _sizes(config, cfg.train_batch_size, frames, h, w, fused, parts)
    return Work(
        kind=("t2v train" if text else "train") + (" recomputed" if cfg.use_recompute else ""),
        config=config,
        sizes=sizes,
        grid=_vae_grid(h, w, vae),
        dtype=cfg.dtype,
        fused=fused,
        vae=vae,
        vae_dtype=cfg.vae_dtype,
        encoded=0 if cfg.cache_folder else cfg.train_batch_size * frames / parts,
        vae_slice=cfg.vae_slice,
        accumulation=cfg.gradient_accumulation_steps,
        trained=_trained(cfg, config, sizes) if trained is None else trained,
        ema=cfg.use_ema,
        recompute=cfg.use_recompute,
        recomputed=math.ceil(sizes.pairs / cfg.recompute_every) / max(sizes.pairs, 1),
        zero_stage=cfg.zero_stage,
        taught=cfg.distill_steps > 0,
        offload=cfg.offload_optimizer,
        total_steps=cfg.max_steps,
    )


def sampling(
    cfg: SampleConfig,
    config: Config,
    vae: AutoencoderConfig,
    solver: Solver | None = None,
    text_encoder: tuple[float, float] | None = None,
) -> Work:
    """Return the work of a sampling: one video, or as many as batch_size, of all that are asked for.

    text_encoder: the bytes of its weights that are there at once, and of all; None takes those of T5-XXL for prompts.
    Raises UserError if the options do not fit the network.
    """
    frames, _, h, w = latent_shape(cfg, config, vae.downsampling)
    windows = asked_windows(cfg, config)
    text, guided = config.conditioning == "prompt", guidance(cfg, config) != 1
    steps = asked_steps(cfg, config)
    solver = solver or choose_solver({}, config.default_solver or "ddim", asked_solver(cfg), 0.0)
    videos = cfg.num_samples * len(cfg.prompts or [None])
    batch = min(cfg.batch_size, videos)
    fused = cfg.enable_flash_attention and cfg.dtype != "fp32"
    if text_encoder is None:
        itemsize = _itemsize(cfg.dtype, bool(cfg.quantize)) if text else 0
        text_encoder = T5Config().smallest().parameter_count * itemsize, T5Config().parameter_count * itemsize
    both = guided and not cfg.cfg_parallel  # halves of guidance in a pass
    # Texts are planned with guidance only; without it there is half of it.
    halves, parts = 0.5 if text and not both else 1.0, cfg.sequence_parallel
    return Work(
        kind="t2v sample guided" if text else "sample guided" if both else "sample",
        config=config,
        sizes=_sizes(config, batch * halves, windows.length if windows else frames, h, w, fused, parts),
        grid=_vae_grid(h, w, vae),
        dtype=cfg.dtype,
        fused=fused,
        vae=vae,
        vae_dtype=cfg.vae_dtype,
        decoded=batch * math.ceil(frames / (parts * (2 if cfg.cfg_parallel else 1))),
        halves=2 if cfg.cfg_parallel else 1,
        vae_slice=cfg.vae_slice,
        vae_tile=cfg.vae_tile,
        calls=solver.calls(steps) * (len(windows.starts) if windows else 1),
        videos=videos,
        int8=bool(cfg.quantize),
        text_encoder=text_encoder[0],
        text_encoder_read=text_encoder[1],
    )


def described(cfg: TrainConfig) -> tuple[Config, tuple[int, int, int, int], AutoencoderConfig]:
    """Return network, (F, C, h, w) of its latents and autoencoder that options of a training name; reads no file."""
    vae = AutoencoderConfig()
    size, frames = cfg.image_size or DEFAULT_SIZE, cfg.num_frames or DEFAULT_FRAMES
    if cfg.model_name == TEXT_TO_VIDEO:
        config: Config = LatteT2VConfig()
        return config, config.latent_shape(cfg.num_frames, cfg.image_size, cfg.image_size, vae.downsampling), vae
    config = trained_config(cfg, vae)
    return config, config.latent_shape(frames, size, size, vae.downsampling), vae


def stored(cfg: SampleConfig) -> tuple[Config, AutoencoderConfig, str]:
    """Return network and autoencoder that options of a sampling name, and a line on what was assumed of them.

    Only names and shapes are read. Files that are not here yet are taken to be the official ones. Raises UserError if
    files are here that do not fit the options.
    """
    checkpoint = cfg.require_checkpoint()
    if exists(checkpoint) and (not cfg.vae_checkpoint or exists(cfg.vae_checkpoint)):
        parts = runs.find(checkpoint, cfg.vae_checkpoint, cfg.enable_vae_temporal_decoder)
        state, kind = open_weights(parts.vae, "autoencoder")
        vae: Any = kind.config.from_weights(state.tensors, state.metadata, state.path)
        state, kind = open_weights(parts.network, "latte_t2v" if parts.prompts else "latte")
        asked = {} if parts.prompts else model_options(cfg, vae)
        found: Any = kind.config.from_weights(state.tensors, state.metadata, state.path, **asked)
        return found, vae, ""
    vae = AutoencoderConfig()
    if cfg.prompts and cfg.condition != "text":
        config: Config = LatteT2VConfig()
    else:
        asked = {key: value for key, value in model_options(cfg, vae).items() if value is not None}
        if cfg.condition or (cfg.guidance_scale or 1) != 1:
            asked |= {"condition": cfg.condition or "class", "num_classes": cfg.num_classes or 101}
        name = asked.pop("model_name", DEFAULT_MODEL)
        config = LatteConfig(**(named_sizes(name, asked.get("variant", 1)) | asked))
    missing = next(path for path in (checkpoint, cfg.vae_checkpoint) if path and not exists(path))
    return config, vae, f"{missing} is not here: the sizes of the official files are assumed, {config.describe()}"


def _sizes(config: Config, batch: float, frames: float, h: int, w: int, pads: bool, ranks: int = 1) -> Sizes:
    width, heads, frames = config.hidden_size, config.attention_heads, frames / config.tubelet
    text, inner = config.conditioning == "prompt", roofline.padded(width, heads)
    extra = roofline.pair_weights(width, inner, text) - roofline.pair_weights(width, width, text)
    patches = h * w / config.patch_size**2 + config.added_tokens
    return Sizes(
        batch=batch,
        frames=frames,
        ranks=ranks,
        grid=math.sqrt(patches),
        width=width,
        heads=heads,
        pairs=config.pairs(patches, frames),
        text=120 if text else 0,
        weights=config.parameter_count + config.blocks_over_frames * (extra if pads else 0),
        pads=pads,
    )


def _vae_grid(h: int, w: int, vae: AutoencoderConfig) -> float:
    return math.sqrt(h * w) * vae.downsampling / 16


def _trained(cfg: TrainConfig, config: Config, sizes: Sizes) -> float:
    if cfg.trainable == "lora":
        return LORA * cfg.lora_rank * config.hidden_size * sizes.pairs
    if cfg.trainable == "temporal":
        return sizes.weights * 12 / 26  # of a pair's products, those of the block over frames
    return sizes.weights


def predict(work: Work, on: Card, ranks: int = 1, hosts: int = 1) -> Prediction:
    """Return what a step of some work is predicted to take on each of `ranks` cards."""
    found, after = steps(work, on), []
    if work.decoded:
        after = autoencoder(work, "decode", work.decoded)
    exchange = 0.0
    if work.trains and ranks > 1:
        # Stage 1 gathers weights besides; stage 2 too, but its sum is only the first half of one, and costs as much.
        ahead = work.zero_stage == 3
        exchange = roofline.all_reduce(4 * (work.trained - work.in_blocks * ahead), on, ranks, hosts)
        exchange += roofline.all_gather(4 * work.trained, on, ranks) if work.zero_stage == 1 else 0.0
        exchange += gathering(work, on, ranks, hosts) if ahead else 0.0
    once = roofline.seconds(found, on, exchange + exchanging(work, on, ranks // hosts))
    table = roofline.tables()[work.table]
    return Prediction(
        flops=work.accumulation * sum(each.number * each.flops for each in found),
        bytes=work.accumulation * sum(each.number * each.bytes for each in found),
        launches=work.accumulation * sum(each.number for each in found),
        times=Times(*(work.accumulation * each for each in once))._replace(offload=offloading(work, on, ranks)),
        after=roofline.seconds(after, on).total,
        memory=memory(work, ranks) if on.name != CPU_CARD else memory_of_cpu(work),
        compiling=table["compile"][0] + table["compile"][1] * work.sizes.pairs,
    )


def gathering(work: Work, on: Card, ranks: int, hosts: int) -> float:
    """Return the seconds of what stage 3 of ZeRO exchanges for blocks, without those in which a block computes.

    While one computes forward, the weights of the next one are gathered, and in the backward pass the gradient of the
    last one is summed besides; each takes max(computing, exchanging). The first gathering of each pass and the last sum
    are hidden by no block. With recomputation a fourth of a block's computing is forward.
    """
    blocks = 2 * work.sizes.pairs
    count = work.in_blocks / blocks  # weights of a block; a gathering and the sum are each half of a ring
    gathered = roofline.all_reduce(_itemsize(work.dtype) * count, on, ranks, hosts) / 2 + on.collective
    summed = roofline.all_reduce(4 * count, on, ranks, hosts) / 2 + on.collective
    computing = roofline.seconds(steps(dataclasses.replace(work, encoded=0), on), on).total / blocks
    forward, backward = max(0.0, gathered - computing / 4), max(0.0, gathered + summed - 3 * computing / 4)
    return (blocks - 1) * (forward + backward) + 2 * gathered + summed


def exchanging(work: Work, on: Card, inside: int) -> float:
    """Return the seconds of exchanges between ranks that share frames; inside: ranks of a host."""
    each = on.collective + roofline.all_to_all(work.exchanged, on, work.sizes.ranks, inside)
    return work.exchanges * each if work.exchanges else 0.0


def offloading(work: Work, on: Card, ranks: int) -> float:
    """Return the seconds that an update on the host adds to a step: down, there, and up, one after another."""
    if not work.offload:
        return 0.0
    own = work.trained / (ranks if work.zero_stage else 1)  # weights of a rank
    averaged = work.ema * (own if work.zero_stage > 1 else work.trained)
    whole = averaged if work.zero_stage == 1 else 0  # come down from the cards, which gather them
    link = OFFLOAD_LINK * (2 * own + whole) / on.host_link
    return link + (OFFLOAD_MEMORY * own + OFFLOAD_EMA * averaged) / on.host_memory


def steps(work: Work, on: Card) -> list[roofline.Launch]:
    """Return the launches of one call of the step: of a batch, or of a denoising step."""
    fused = work.fused and on.fused_attention and (on.trains_fused or not work.trains)
    sizes = dataclasses.replace(work.sizes, pads=fused)
    found = roofline.launches(work.table, sizes, work.dtype, fused)
    if work.recompute and work.recomputed < 1:
        others = roofline.launches(_kept(work.table), sizes, work.dtype, fused)
        found, others = roofline.shared(found, work.recomputed), roofline.shared(others, 1 - work.recomputed)
        found += others
    if work.exchanges:  # rows for each rank are laid together, and with several videos laid apart again
        copies = work.exchanges * (2 if work.streams > 1 else 1)
        found = [*found, roofline.Launch("Transpose", "copy", work.dtype, copies, 0, 2 * work.exchanged)]
    if work.taught:
        teacher = dataclasses.replace(work, kind="sample").table
        found += roofline.launches(teacher, sizes, work.dtype, fused, times=SUBSTEPS)
    return found + (autoencoder(work, "encode", work.encoded) if work.encoded else [])


def _kept(kind: str) -> str:
    """Return the name, in the tables, of a step whose blocks keep their activations."""
    return kind.replace(" recomputed", "")


def autoencoder(work: Work, kind: str, frames: float) -> list[roofline.Launch]:
    """Return the launches of encoding frames at once in a step, or of decoding them by slices."""
    slices = math.ceil(frames / (work.vae_slice or SLICE)) if kind == "decode" else 1
    sizes = Sizes(1, frames / slices, work.grid)
    found = roofline.launches(kind, sizes, times=slices)
    found = roofline.scaled(found, roofline.vae_scale(work.vae.block_out_channels))
    return found if work.vae_dtype == "fp32" else roofline.halved(found)


def memory(work: Work, ranks: int = 1) -> Memory:
    """Return the predicted memory of a card, from MindSpore's own plans of small networks."""
    table, sizes = roofline.tables()[work.kind]["memory"], work.sizes  # of several videos: activations count
    if work.recompute:
        kept, share = roofline.tables()[_kept(work.kind)]["memory"], work.recomputed
        table = {key: share * value + (1 - share) * kept[key] for key, value in table.items()}
    scale = roofline.vae_scale(work.vae.block_out_channels)
    elements = sizes.tokens * sizes.width * (2 if work.dtype == "fp32" else 1)
    activations = (table["fixed"] + table["pair"] * sizes.pairs) * elements
    coded, frames = ("encode", work.encoded) if work.trains else ("decode", min(work.decoded, work.vae_slice or SLICE))
    vae = roofline.tables()[coded]["memory"]
    images = frames * work.grid_at_once**2 * vae["fixed"] * math.sqrt(scale) * _itemsize(work.vae_dtype) / 4
    held = vae["resident"] * scale if frames else 0.0
    if not work.trains:
        weights = sizes.weights * _itemsize(work.dtype, work.int8)
        least = max(held + max(activations, images), work.text_encoder)
        return Memory(weights, 0, activations, held + images, weights + least)
    updated = 4 / (ranks if work.zero_stage else 1)  # the float32 weights that a rank updates
    weights = 4 * (sizes.weights - work.trained) + updated * work.trained
    weights += _itemsize(work.dtype) * sizes.weights * work.taught
    moments = MOMENTS / (ranks if work.zero_stage else 1)
    others = (4 * work.ema + 4 * (work.accumulation > 1)) / (ranks if work.zero_stage > 1 else 1)
    optimizer = work.trained * (moments + others)
    shared = work.in_blocks if work.zero_stage > 2 and ranks > 1 else 0.0
    # What the plan keeps besides, as 16 are the usual ones: weights to compute with, of which shared ones are gathered.
    optimizer += (work.trained - shared) * max(0.0, table["weight"] - 16)
    if work.offload:  # there are only the weights to compute with, and gradients that are accumulated
        weights += work.trained * (_itemsize(work.dtype) - 4)
        optimizer = 4 * work.trained * (work.accumulation > 1) / (ranks if work.zero_stage > 1 else 1)
    # Gradients take the place of activations, block by block, until all of them are there, and copies of them.
    passing = max(activations, images, table["gradient"] * (work.trained - shared + shared / ranks))
    passing += BYTES_GATHERED * shared / max(2 * sizes.pairs, 1)
    return Memory(weights, optimizer, activations, held + images, weights + optimizer + held + passing)


def memory_of_cpu(work: Work) -> Memory:
    """Return the predicted memory of the process on a CPU, in float32; docs/train.md compares it with runs."""
    sizes, vae = work.sizes, work.vae
    itemsize = 2 if work.dtype == "fp16" else 4
    pixels = (16 * work.grid_at_once) ** 2
    if not work.trains:
        tokens = sizes.filled * sizes.grid**2 / sizes.ranks
        at_once = min(tokens, max(graphs.TOKENS_PER_CALL, sizes.grid**2))
        scores = sizes.heads * at_once * max(sizes.grid**2, sizes.frames)
        activations = at_once * sizes.width * BYTES_TOKEN + scores * BYTES_SCORE
        channels = vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)]
        images = min(work.decoded, work.vae_slice or 1) * pixels * channels * BYTES_PIXEL
        weights = work.config.parameter_count * (1 if work.int8 else 4)
        peak = BYTES_BASE + weights + max(activations + images, work.text_encoder)
        return Memory(weights, 0, activations, images, peak)
    # Recomputed, each block keeps its input; the run time has the tensors of several blocks at once nevertheless.
    kept = 2 * sizes.pairs * KEPT
    if work.recompute:
        kept = work.recomputed * min(2 * sizes.pairs + 4 * KEPT, kept) + (1 - work.recomputed) * kept
    activations = sizes.tokens * sizes.width * kept * itemsize
    images = min(work.encoded, work.vae_slice or 1) * pixels * vae.block_out_channels[0] * BYTES_PIXEL
    weights = 4 * work.config.parameter_count * (1 + work.taught)
    optimizer = work.trained * (MOMENTS + 4 + 4 * work.ema + 4 * (work.accumulation > 1))
    peak = BYTES_BASE + BYTES_COMPILER + weights + optimizer + activations + images
    return Memory(weights, optimizer, activations, images, peak)


def _itemsize(dtype: str, int8: bool = False) -> int:
    return 1 if int8 else 4 if dtype == "fp32" else 2


def largest_batch(work: Work, available: float, ranks: int = 1, on_cpu: bool = False) -> int:
    """Return the largest batch whose memory is predicted to fit; 0 if none does."""

    def fits(batch: int) -> bool:
        asked = work.of_batch(batch)
        return (memory_of_cpu(asked) if on_cpu else memory(asked, ranks)).peak <= available

    low, high = 0, 1
    while high <= MANY and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def card(name: str, dtype: str = "fp32", width: int = 1152) -> Card:
    """Return a card by name; of "cpu", this machine, a product as a block has it is measured for half a second.

    Raises UserError for a name that is not known.
    """
    known = [each for each in roofline.cards()["cards"] if each != "A100"]
    if name == CPU_CARD:
        speed = product_speed(dtype, width) * PRODUCTS
        fields: dict[str, Any] = dict.fromkeys(("half", "single", "tensor"), speed)
        rates: dict[str, Any] = dict.fromkeys(("bandwidth", "link", "network"), math.inf)
        free = device.free_memory() or math.inf
        return Card(CPU_CARD, **fields, **rates, memory=free, fused_attention=False, efficiency={}, **NO_LAUNCHES)
    if name not in known:
        raise UserError(f"--card is {name}, but must be one of {', '.join([*known, CPU_CARD])}")
    return roofline.card(name)


# What launching costs a CPU is in the share that is not in products.
NO_LAUNCHES: dict[str, Any] = {"traffic": 1.0, "launch": 0.0, "shortest": 0.0, "collective": 0.0}


def product_speed(dtype: str, width: int) -> float:
    """Return the operations per second of a product as a block has it, (4096, width) by (width, 4 width)."""
    rows = 4096
    x, w = (ms.ops.ones(shape, device.compute_dtype(dtype)) for shape in ((rows, width), (width, 4 * width)))
    times: list[float] = []
    while sum(times) < 0.5 or len(times) < 3:
        start = time.perf_counter()
        ms.ops.matmul(x, w).asnumpy()
        times.append(time.perf_counter() - start)
    return 2 * rows * width * 4 * width / statistics.median(times[1:])


def report(work: Work, name: str, ranks: int = 1, hosts: int = 1) -> str:
    """Return the lines on some work on `ranks` cards of a name, on `hosts`; every figure is called predicted."""
    on = card(name, work.dtype, work.config.hidden_size)
    cpu = name == CPU_CARD
    layout.check(ranks, work.sizes.ranks, work.halves)
    found = predict(work, on, ranks, hosts)
    memory, step = found.memory, found.times.total
    available = on.memory if cpu else FITS * on.memory
    what = "step" if work.trains else "denoising step"
    counts = f"{found.flops / 1e12:.3g} TFLOP"
    if not cpu:
        counts += f", {found.bytes / 1e9:,.0f} GB read and written, {found.launches:,.0f} launches"
    if work.exchanges:
        sent = work.accumulation * work.exchanges * work.exchanged * (work.sizes.ranks - 1) / work.sizes.ranks
        counts += f", {sent / 1e9:,.3g} GB of tokens sent in {work.accumulation * work.exchanges:,.0f} exchanges"
    parts = [f"weights {_gib(memory.weights)}"]
    parts += [f"optimizer {_gib(memory.optimizer)}"] if work.trains else []
    parts += [f"activations {_gib(memory.activations)}", f"autoencoder {_gib(memory.autoencoder)}"]
    batch = largest_batch(work, available, ranks, cpu)
    best = "none" if not batch else "any" if batch >= MANY else f"{batch:,} videos"
    times = _short(step)
    if not cpu:
        named = zip(("products", "memory passes", "launch overhead", "exchange", "offload"), found.times, strict=True)
        shown = [f"{part} {_short(value)}" for part, value in named if value or part != "offload"]
        times += f" ({', '.join(shown)})"
    where = f"{ranks} x {name}" + (f" on {hosts} hosts" if hosts > 1 else "")
    lines = [
        f"predicted for {where} in {work.dtype}, per {what}: {counts}",
        f"predicted memory: {', '.join(parts)}; peak {_gib(memory.peak)} of {_gib(available)}; largest batch {best}",
        f"predicted time per {what}: {times}",
    ]
    if work.trains:
        frames = work.sizes.frames * work.config.tubelet
        images = work.sizes.batch * frames * work.accumulation * ranks / work.together / step
        own = f"; {_short(step * work.total_steps)} for {work.total_steps:,} steps" if work.total_steps else ""
        hours = step * MILLION / 3600
        lines.append(
            f"predicted speed: {images:,.4g} img/s; {hours:,.{0 if hours > 99 else 2}f} hours for a million steps{own}"
        )
    else:
        batch_seconds = work.calls * step + found.after
        per_video, shares = batch_seconds / max(1, work.sizes.batch), ranks // work.together
        lines.append(
            f"predicted speed: {_short(per_video)} per video, {work.calls} network calls and decoding "
            f"({_short(found.after)}); {_short(math.ceil(work.videos / shares) * per_video)} for {work.videos} videos"
        )
    if not cpu and work.text_encoder_read > work.text_encoder:
        going = f"{_gib(work.text_encoder_read)} go up in {_short(work.text_encoder_read / on.host_link)}"
        lines.append(f"predicted text encoder: {going} for new prompts, {_gib(work.text_encoder)} in memory at a time")
    if not cpu:
        lines.append(f"predicted time to compile: {_short(found.compiling)} of one core, once per shape")
    if memory.peak > available:
        lines.append(DOES_NOT_FIT[work.trains])
        offloaded = dataclasses.replace(work, offload=True)
        if work.trains and not cpu and (other := predict(offloaded, on, ranks, hosts)).memory.peak <= available:
            lines.append(
                f"with offload_optimizer it would fit: peak {_gib(other.memory.peak)}, {_short(other.times.total)} per "
                "step"
            )
    return "\n".join(lines)


DOES_NOT_FIT = {
    True: "this does not fit: take a smaller train_batch_size, image or model, use_recompute, a latent cache, or a "
    "machine with more memory",
    False: "this does not fit: take a smaller batch_size, image or model, or a machine with more memory",
}


def report_here(work: Work) -> str:
    """Return the lines on some work on the device in use, and as many more as there are ranks."""
    here = device.current()
    if here.card is None:
        return (
            f"nothing is predicted for this {here.target}; latte estimate --card H100 predicts for a card by its name"
        )
    return report(work, here.card, here.world_size)


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def _short(seconds: float) -> str:
    """Return a duration in the unit that a person would use."""
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"))
    size, name = next((unit for unit in units if seconds >= unit[0]), (0.001, "ms"))
    return f"{seconds / size:.3g} {name}"
