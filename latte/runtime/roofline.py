"""How long a step is predicted to take on a card: a roofline over its launches (Williams et al., 2009).

`tables/launches.json` has every launch of each kind of step, as products of sizes; `make_estimate_tables.py` makes it
from plans of MindSpore's own Ascend back end. `tables/cards.json` has the cards and the assumptions, with
their sources. Nothing here imports MindSpore, allocates a weight or reads one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

TABLES = Path(__file__).resolve().parent / "tables"
LAUNCHES, CARDS = TABLES / "launches.json", TABLES / "cards.json"
HEAD_MULTIPLE = 16  # heads are padded to a multiple of this for the fused kernel, as in `latte.models.precision`
VAE_CHANNELS = (128, 256, 512, 512)  # of the autoencoder in the tables, Stable Diffusion's
CLASSES = (  # of operators: the first that its name matches
    ("exchange", r"Hccl|All(Reduce|Gather|ToAll)"),
    ("attention", r"FlashAttention|FusedInferAttention"),
    ("convolution", r"Convolution"),
    ("product", r"Mm|M[Mm]$|[Mm]at[Mm]ul|Addmm|Baddbmm|^aclnn(Mv|Dot)$|FFN"),
    ("norm", r"Norm|Softmax"),
    ("reduction", r"Reduce|Mean|^aclnn(Max|Min|Amax|Amin|All|Any)$|IsFinite"),
    ("copy", r"Memcpy|Cast|Copy|Permute|Split|Cat|Stack|Slice|Gather|Index|Repeat|Expand|Pad|Zero|One$|Fill|Upsample"),
    ("elementwise", r""),
)
COMPUTING = ("product", "attention", "convolution")


class Launch(NamedTuple):
    """Equal launches of a step: how many, and the operations and bytes of one."""

    op: str
    kind: str  # its class
    dtype: str
    number: float
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a step works on; `grid` is the side of a square of as many patches as a frame has."""

    batch: float
    frames: float
    grid: float
    width: int = 0
    heads: int = 1
    pairs: float = 0  # of a block over patches and one over frames
    text: int = 0  # tokens
    weights: float = 0  # elements, with padded heads
    pads: bool = True  # whether heads are padded, for the fused attention kernel
    ranks: int = 1  # that share the tokens, by frames or, where frames see each other, by patches

    @property
    def padded(self) -> int:
        """The width of all heads, each padded for the fused attention kernel if that is used."""
        return padded(self.width, self.heads) if self.pads else self.width

    @property
    def tokens(self) -> float:
        """The number of a rank's tokens."""
        return self.batch * self.filled * self.grid**2 / self.ranks

    @property
    def filled(self) -> float:
        """The frames, filled up so that the ranks divide them."""
        return math.ceil(self.frames / self.ranks) * self.ranks if self.ranks > 1 else self.frames

    def product(self, names: str) -> float:
        """Return a product of sizes by their letters, as the tables have them; of what has frames, a rank's share."""
        letters = names.split()
        return math.prod(getattr(self, LETTERS[letter]) for letter in letters) / (self.ranks if "F" in letters else 1)


LETTERS = {
    "B": "batch",
    "F": "filled",
    "P": "grid",
    "D": "width",
    "A": "padded",
    "S": "text",
    "H": "heads",
    "W": "weights",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """A card's published peaks and what of them is assumed to be had; `tables/cards.json` says where from."""

    name: str
    half: float  # operations per second of products in fp16 and bf16
    single: float  # in float32
    tensor: float  # in HF32 or TF32, from float32 tensors
    bandwidth: float  # bytes per second
    memory: float  # bytes
    link: float  # bytes per second of a ring through the cards of a host, one way
    network: float  # bytes per second of a card to other hosts
    fused_attention: bool
    efficiency: dict[str, float]  # by class: of the peak for those that compute, and of the bandwidth for all
    traffic: float  # share of the bandwidth
    launch: float  # seconds of the host per launch
    shortest: float  # seconds of a launch on the device, however little it does
    collective: float  # seconds to start an exchange between cards
    mesh: float = 0  # bytes per second from a card to each other one of a host, all at once; 0 = they share `link`
    trains_fused: bool = True  # whether that kernel, if there is one, has a gradient
    host_link: float = math.inf  # bytes per second between card and host, one way
    host_memory: float = math.inf  # bytes per second that a card's share of the host's cores read and write


class Times(NamedTuple):
    """Predicted seconds of a step, part by part."""

    products: float  # on the device, in launches that compute: products, attention, convolutions
    passes: float  # in those that only read and write
    launching: float  # what launching adds: short launches, and the host where it is slower than the device
    exchange: float  # between cards
    offload: float = 0.0  # on the host and to and from it

    @property
    def total(self) -> float:
        """The sum."""
        return sum(self)


def class_of(op: str) -> str:
    """Return the class of an operator by its name."""
    return next(kind for kind, pattern in CLASSES if re.search(pattern, op))


def padded(width: int, heads: int) -> int:
    """Return the width of all heads when each is padded for the fused attention kernel."""
    return heads * HEAD_MULTIPLE * math.ceil(width // heads / HEAD_MULTIPLE)


def pair_weights(width: int, inner: int, text: bool) -> int:
    """Return the elements of a block over patches and one over frames; inner: the width of padded heads."""
    products = 4 * width * inner + 3 * inner + width + 8 * width * width + 5 * width  # attention and MLP
    if text:  # attention to the text besides, and two tables of modulation
        return 2 * products + 4 * width * inner + 3 * inner + width + 12 * width
    return 2 * (products + 6 * width * (width + 1))


@functools.cache
def tables() -> dict[str, Any]:
    """Return the launches of each kind of step, as they are stored."""
    return json.loads(LAUNCHES.read_text(encoding="utf-8"))


@functools.cache
def cards() -> dict[str, Any]:
    """Return `cards.json`."""
    return json.loads(CARDS.read_text(encoding="utf-8"))


def card(name: str, **changes: Any) -> Card:
    """Return a card by its name in `cards.json`, with fields changed; raises KeyError for an unknown one."""
    stored = cards()
    own = {key: value for key, value in stored["cards"][name].items() if key != "source"}
    assumed = {key: value for key, value in stored["assumed"].items() if key != "source"}
    return Card(**({"name": name} | assumed | own | changes))


def launches(kind: str, sizes: Sizes, dtype: str = "fp16", fused: bool = True, times: float = 1) -> list[Launch]:
    """Return the launches of a kind of step, `times` over.

    In fp32 what is in halves takes twice the bytes, and casts between the two are gone. Without the fused kernel the
    scores go through memory: as `latte.ops.blockwise` computes them, in a product, a softmax and a product.
    """
    found, table = [], tables()[kind]
    for op, group, stored, fixed, pair, flops, plain, halves in table["launches"]:
        count = (fixed + pair * sizes.pairs) * times * (sizes.batch if op in table.get("per_video", ()) else 1)
        wide = dtype == "fp32" and halves
        if not count or (wide and op == "aclnnCast" and plain):
            continue
        work = sum(factor * sizes.product(names) for names, factor in flops.items())
        moved = sum(factor * sizes.product(names) for names, factor in plain.items())
        moved += sum(factor * sizes.product(names) for names, factor in halves.items()) * (2 if wide else 1)
        launch = Launch(op, group, "float32" if wide else stored, count, work, moved)
        found += [launch] if fused or group != "attention" else _exact(launch, sizes)
    return found


def _exact(launch: Launch, sizes: Sizes) -> list[Launch]:
    """Return what exact attention has in place of a launch of the fused kernel: its scores are read and written."""
    scores = launch.flops / (10 if launch.op.endswith("Grad") else 4) / sizes.padded * sizes.heads  # N x heads x L x S
    products = 5 if launch.op.endswith("Grad") else 2
    bytes_score = 2 if launch.dtype != "float32" else 4
    share = launch.flops / products
    passes = [Launch("softmax", "norm", "float32", launch.number * (products - 1), 0, scores * (4 + bytes_score))]
    own = (launch.bytes + products * scores * bytes_score) / products
    return [Launch("BatchMatMul", "product", launch.dtype, launch.number * products, share, own), *passes]


def scaled(found: list[Launch], factor: float) -> list[Launch]:
    """Return launches of as many kernels with another amount of work."""
    return [each._replace(flops=each.flops * factor, bytes=each.bytes * factor) for each in found]


def shared(found: list[Launch], share: float) -> list[Launch]:
    """Return a share of launches, which are as large as before."""
    return [each._replace(number=each.number * share) for each in found]


def halved(found: list[Launch]) -> list[Launch]:
    """Return launches of float32 as they would be in halves: half of the bytes, products at the rate of halves."""
    return [each._replace(dtype="float16", bytes=each.bytes / 2) for each in found]


def seconds(found: list[Launch], on: Card, exchange: float = 0.0, sunk: bool = False, tensor: bool = False) -> Times:
    """Return the predicted time of launches on a card; exchange: seconds between cards that nothing hides.

    The device takes for a launch the longer of its operations and its bytes; the step takes the longer of the device
    and the host, which launches without waiting. `sunk`: one graph on the device, which the host does not launch piece
    by piece. `tensor`: float32 is multiplied in HF32 or TF32.
    """
    products = passes = short = 0.0
    for each in found:
        peak = on.half if each.dtype in ("float16", "bfloat16") else on.tensor if tensor else on.single
        ideal = max(each.flops / (peak * on.efficiency.get(each.kind, 1)), each.bytes / (on.bandwidth * on.traffic))
        short += each.number * max(0.0, on.shortest - ideal)
        if each.kind in COMPUTING:
            products += each.number * ideal
        else:
            passes += each.number * ideal
    host = 0.0 if sunk else on.launch * sum(each.number for each in found)
    device = products + passes + short
    return Times(products, passes, short + max(0.0, host - device), exchange)


def all_reduce(count: float, on: Card, ranks: int, hosts: int = 1) -> float:
    """Return the seconds of a ring that sums `count` bytes over ranks: each sends 2 (n - 1) / n of them.

    Over several hosts the cards of a host first sum among themselves, so that each sends its part over the network.
    """
    inside = ranks // hosts
    seconds_inside = 2 * (inside - 1) / inside * count / on.link
    return seconds_inside + (2 * (hosts - 1) / hosts * count / inside / on.network if hosts > 1 else 0)


def all_gather(count: float, on: Card, ranks: int) -> float:
    """Return the seconds of a ring in which each rank gets all of `count` bytes but its own part."""
    return (ranks - 1) / ranks * count / on.link


def all_to_all(count: float, on: Card, ranks: int, inside: int | None = None) -> float:
    """Return the seconds in which each rank sends all of `count` bytes but its own part, to each other one as many.

    inside: how many of the ranks are in one host; what is for the others goes over the network, after the rest.
    """
    inside, part = min(inside or ranks, ranks), count / ranks  # to each
    outside = (ranks - inside) * part / on.network
    if on.mesh and inside > 1:
        return part / on.mesh + outside
    return (inside - 1) * part / on.link + outside


def vae_scale(channels: tuple[int, ...]) -> float:
    """Return about how much an autoencoder of these channels computes, in terms of that in the tables."""

    def work(widths: tuple[int, ...]) -> float:
        return sum(width**2 / 4**level for level, width in enumerate(widths))

    return work(tuple(channels)) / work(VAE_CHANNELS)
