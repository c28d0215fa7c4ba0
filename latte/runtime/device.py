"""The one place, with `latte.ops`, that knows how Ascend, GPU and CPU differ; everything else asks for a capability."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import os
import platform
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
import psutil

from latte.errors import UserError, first_line
from latte.runtime import cuda, layout, ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

log = logging.getLogger("latte")

TARGETS = ("Ascend", "GPU", "CPU")  # best first
DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}
ONEDNN_BF16 = 1  # dnnl_fpmath_mode_bf16
DOCTOR = "`python tools/doctor.py`"
DEVICE_FILES = {"Ascend": "/dev/davinci_manager", "GPU": "/dev/nvidiactl"}
# Kernel of fused attention by what it is for, and the cards' names by what their kernels are for. CANN's pages have
# FlashAttentionScore for Atlas A2 (910B) and A3 (910_93) that train, and not for Atlas 800I A2 (910B4), where
# PromptFlashAttention has no gradient; other cards have neither.
FUSED_ATTENTION = {"train": "FlashAttentionScore", "infer": "PromptFlashAttention"}
CARDS = {"infer": r"Ascend910B4.*", "train": r"Ascend910(B[1-9]|_93).*"}


_VERSION = tuple(int(number) for number in ms.__version__.split(".")[:2])


@dataclasses.dataclass(frozen=True)
class Device:
    """What the device in use can do; the rest of the code reads these fields and never the device's name."""

    target: str = "CPU"
    rank: int = 0
    world_size: int = 1
    jit_level: str | None = None  # how far the compiler fuses; None is MindSpore's own choice
    graph_mode: bool = True  # False: PyNative everywhere, for debugging
    chip: str | None = None  # an Ascend's name, Ascend910B2; None where there is none: graphs are for one that trains
    sequence: int = 1  # ranks that share the frames of their videos; see `latte.runtime.layout`
    guidance: int = 1  # 2: one group of ranks has the conditional half of guidance, another the unconditional one

    @property
    def part(self) -> int:
        """Which part of the frames this rank has."""
        return self.rank % self.sequence

    @property
    def half(self) -> int:
        """Which half of guidance this rank has, if they are shared: 0 is the conditional one."""
        return self.rank // self.sequence % self.guidance

    @property
    def data_rank(self) -> int:
        """Which share of all videos this rank has, together with the ranks that share frames or guidance with it."""
        return self.rank // (self.sequence * self.guidance)

    @property
    def data_ranks(self) -> int:
        """Into how many shares all videos go."""
        return self.world_size // (self.sequence * self.guidance)

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes for those that have the same videos."""
        return self.rank % (self.sequence * self.guidance) == 0

    @property
    def compile_scope(self) -> str:
        """What becomes one compiled graph: "step" (a whole denoising or training step), "block", or "none".

        The CPU run time frees no activation inside a graph, so a whole 28-block graph would hold 21 GB and take
        a minute to compile; one graph per kind of block, shared by all blocks of that kind, holds one block.
        """
        if not self.graph_mode:
            return "none"
        return "block" if self.target == "CPU" else "step"

    @property
    def batches_videos(self) -> bool:
        """Whether videos (and the two halves of guidance) go through the network in one batch or one by one.

        A single video already fills a CPU; one by one, the memory and the result do not depend on the batch size.
        """
        return self.target != "CPU"

    @property
    def fused_attention(self) -> str | None:
        """What the fused attention kernel is for: "train" (with its gradient), "infer", or None where it is missing."""
        if self.target != "Ascend":
            return None
        if self.chip is None:
            return "train"
        return next((use for use, names in CARDS.items() if re.fullmatch(names, self.chip)), None)

    @property
    def multiplies_int8(self) -> bool:
        """Whether a kernel multiplies halves by int8 weights with scales; CANN has it where it has fused attention."""
        return self.fused_attention is not None

    @property
    def stacks_weights(self) -> bool:
        """Whether like weights have one float32 buffer for all that changes them, and are copied from it.

        An Ascend is launched for each operation, and takes the copies in the dtype that it multiplies in.
        """
        return self.target == "Ascend"

    @property
    def compiler_recomputes(self) -> bool:
        """Whether to leave recomputation to MindSpore: on Ascend it starts all blocks before the backward pass."""
        return _VERSION < (2, 10)  # before, nothing else compiles

    @property
    def tensor_dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that tensors may have in all operations of the networks."""
        return ("fp32", "fp16") if self.target != "Ascend" or self.first_generation else ("fp32", "fp16", "bf16")

    @property
    def first_generation(self) -> bool:
        """Whether this is an Ascend 910A or its kin, which have no bfloat16."""
        return self.chip is not None and re.fullmatch(r"Ascend910(Pro|Premium)?[AB]?", self.chip) is not None

    @property
    def card(self) -> str | None:
        """The name under which `latte estimate` knows this device, or None if it does not."""
        if self.target == "Ascend":
            others = "A3" if "910_93" in (self.chip or "") else "910B4" if self.chip == "Ascend910B4" else "910B"
            return "910A" if self.first_generation else others
        return "cpu" if self.target == "CPU" else None

    @property
    def sinks_data(self) -> bool:
        """Whether the device can fetch batches itself, many a call (data sinking)."""
        return self.target != "CPU"

    @property
    def channels_last(self) -> bool:
        """Whether images are (N, H, W, C) inside the autoencoder, because convolutions are matrix products there."""
        return self.target == "CPU"

    @property
    def frames_per_slice(self) -> int:
        """Frames that the autoencoder takes at once by default."""
        return 1 if self.target == "CPU" else 8


_current: Device | None = None


def current() -> Device:
    """Return the device in use; without an earlier `init_device` it is what MindSpore is set to."""
    global _current
    if _current is None:
        target = ms.get_context("device_target")
        _current = Device(target, chip=_chip(target))
    return _current


def alone() -> AbstractContextManager[Device]:
    """Let this rank compute whole videos by itself inside, as where other ranks do something else meanwhile."""
    return use(sequence=1, guidance=1)


@contextmanager
def use(target: str | None = None, **fields: Any) -> Iterator[Device]:
    """Pretend another device: the one in use, with the given fields of `Device` in place of its own.

    For tests and exports: graphs are built as for that device, but operations run on the one that MindSpore is set to.
    The device before is back at the end, whatever `init_device` chose inside. Raises TypeError for an unknown field.
    """
    global _current
    saved = _current
    if target is not None:
        fields["target"] = target
    _current = dataclasses.replace(current(), **fields)
    try:
        yield _current
    finally:
        _current = saved


def best_target() -> str:
    """Return the best of Ascend, GPU and CPU that this machine and this MindSpore have."""
    for target, file in DEVICE_FILES.items():
        if Path(file).exists():
            reason = why_unavailable(target)
            if not reason:
                return target
            warn_once(f"this machine has a {target} that MindSpore cannot use: {reason}. {DOCTOR} says more")
    return "CPU"


def why_unavailable(target: str) -> str | None:
    """Return None if MindSpore can use such a device here, or why not; what a GPU needs is loaded for that."""
    reason = cuda.load() if target == "GPU" and not ms.hal.is_available(target) else None
    if reason or ms.hal.is_available(target):
        return reason
    return "its driver, its libraries or their environment are missing"


def init_device(
    device_target: str | None = None,
    device_id: int = 0,
    mode: int = 0,
    jit_level: str | None = None,
    use_parallel: bool = False,
    connect: bool = False,
    sequence: int = 1,
    guidance: int = 1,
) -> Device:
    """Choose the device and how graphs are compiled, once at the start of a program.

    With `use_parallel` the rank and the number of ranks are read from the launcher (mpirun, msrun, srun or a rank
    table), and with `connect` the ranks join into a group, as training needs it. `sequence` ranks share the frames of
    a video, and `guidance` groups of them, 1 or 2, its halves; they are connected too.
    Raises UserError if the device is not there, a parallel launch is not, or the ranks cannot be laid out like this.
    """
    global _current
    target = device_target or best_target()
    connect = connect or sequence * guidance > 1
    if use_parallel:
        ranks.serve_if_scheduler(connect, target)
    rank, world_size, local_rank = ranks.read_ranks() if use_parallel else (0, 1, 0)
    layout.check(world_size, sequence, guidance)
    chip = None
    if target != "CPU":
        if reason := why_unavailable(target):
            raise UserError(
                f"device_target {target} is not available to this MindSpore: {reason}. {DOCTOR} says what to do; "
                f"or pass --device_target {best_target()}"
            )
        chip = _set_device(target, device_id + local_rank)
    elif ms.get_context("device_target") != "CPU":
        ms.set_device("CPU")
    if connect and world_size > 1:
        ranks.connect(target)
    # Everything that is to be a graph is compiled by `compile_step` or `block_graph`; the rest is glue.
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if target == "CPU":
        # Its queues of operations wait by spinning: with two cores each small operation outside graphs takes 4 ms.
        ms.runtime.launch_blocking()
    _current = Device(target, rank, world_size, jit_level, mode == 0, chip, sequence, guidance)
    if sequence * guidance > 1:
        layout.make_groups(_current)
    return _current


def choose_device(device_target: str | None = None) -> Device:
    """Choose the device for a library call as `init_device` does for a program, unless it has been chosen already.

    It counts as chosen after `init_device` or `mindspore.set_device`, and where MindSpore is set to something else than
    the CPU; None then takes that device, otherwise the best one, and says once which.
    Raises UserError if another device is asked for than the one in use, or it is not there.
    """
    if _current is None and not _is_set():
        here = init_device(device_target)
        warn_once(f"computing on {here.target}; device_target chooses another device, before the first one is used")
    if device_target not in (None, current().target):
        raise UserError(
            f"device_target is {device_target}, but this process computes on {current().target}; "
            "name the device in the first call, or start a new process"
        )
    return current()


def _is_set() -> bool:
    """Return whether the user has told MindSpore which device to use."""
    try:
        from mindspore._c_expression import DeviceManagerConf  # nothing public tells whether set_device was called
    except ImportError:
        return ms.get_context("device_target") != "CPU"
    return DeviceManagerConf.get_instance().is_device_enable() or ms.get_context("device_target") != "CPU"


def init_for_export(device_target: str | None = None, device_id: int = 0, jit_level: str | None = None) -> Device:
    """Choose the device that graphs are exported for; as nothing is run, it need not be on this machine.

    For an Ascend that is not here, the graphs are for a card that trains: their fused attention is FlashAttentionScore.
    """
    global _current
    if device_target in (None, "CPU") or ms.hal.is_available(device_target):
        return init_device(device_target, device_id, jit_level=jit_level)
    here = init_device("CPU", jit_level=jit_level)
    warn_once(f"there is no {device_target} here: the graph gets its settings, but cannot be run on this machine")
    _current = dataclasses.replace(here, target=device_target)  # its chip stays unknown: one that trains
    return _current


def _chip(target: str, device_id: int = 0) -> str | None:
    """Return an Ascend's name as CANN tells it, or None for another device or a MindSpore that does not ask."""
    if target != "Ascend" or not hasattr(ms.hal, "get_device_name"):
        return None
    return ms.hal.get_device_name(device_id, target) or None


def _set_device(target: str, device_id: int) -> str | None:
    """Make MindSpore use a device and return its chip; raises UserError if it cannot be used."""
    try:
        ms.set_device(target, device_id)
        chip = _chip(target, device_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{target} device {device_id} cannot be used: {first_line(error)}; check --device_id"
        ) from error
    if target == "Ascend":  # MindSpore's own choice for float32 in convolutions is HF32, with 11 bits of mantissa
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)
        ms.device_context.ascend.op_precision.matmul_allow_hf32(False)
    return chip


def landmark() -> Callable[[], None]:
    """Return a function that waits until the device has done what it was given before this call."""
    if ms.get_context("device_target") == "CPU":  # whatever device is pretended
        return synchronize
    event = ms.runtime.Event()
    event.record()
    return event.synchronize


def synchronize() -> None:
    """Wait until the device has done what was handed over to it; on a CPU that is done already."""
    if current().target != "CPU":
        ms.runtime.synchronize()


def keeps_graphs() -> bool:
    """Return whether MindSpore's compile cache keeps what the back end makes of a graph, too."""
    return _VERSION >= (2, 10)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time it is given."""
    log.warning(message)


@functools.cache
def inform_once(message: str) -> None:
    """Log a piece of information the first time it is given."""
    log.info(message)


def compute_dtype(name: str) -> ms.Type:
    """Return the dtype of tensors inside the blocks for `name` (fp32, fp16 or bf16) on this device.

    On CPU, bf16 lets oneDNN multiply all matrices of the process in bfloat16, the autoencoder's too, and keeps float32
    in memory: MindSpore has no bfloat16 kernels there. Where oneDNN does not, a warning says so.
    Raises UserError for an unknown name, or for a dtype that cannot be had on this device or any more.
    """
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    target = current().target
    if name == "bf16" and target == "GPU":
        raise UserError("dtype bf16 has no kernels in MindSpore's GPU back end; use --dtype fp16 or fp32")
    if name == "bf16" and current().first_generation:
        raise UserError(f"dtype bf16 does not exist on {current().chip}; use --dtype fp16 or fp32")
    if target == "CPU" and name in ("fp32", "bf16"):
        choose_cpu_products(name)
        if name == "bf16" and not multiplies_in_bfloat16():
            warn_once(
                "dtype bf16: oneDNN multiplies matrices in float32 on this CPU, as a product shows; x86 needs AMX"
            )
        return ms.float32
    if target == "CPU":
        warn_once("dtype fp16: float16 is slower than float32 on a CPU; fp32 or bf16 is the better choice here")
    return DTYPES[name]


def autoencoder_dtype(name: str) -> ms.Type:
    """Return the dtype of the images inside the autoencoder for `vae_dtype`; raises UserError if it cannot be had."""
    here = current()
    if name == "fp32":
        return ms.float32
    if here.target == "CPU":
        raise UserError(f"vae_dtype {name} is for accelerators, and this is a CPU; use --vae_dtype fp32")
    if name not in here.tensor_dtypes:
        known = ", ".join(here.tensor_dtypes)
        raise UserError(f"vae_dtype {name} has no kernels on {here.chip or here.target}; use one of {known}")
    return DTYPES[name]


@functools.cache
def multiplies_in_bfloat16() -> bool:
    """Return whether this process multiplies float32 matrices in bfloat16 on the CPU, as one product shows.

    It is measured, because the names of a CPU's units do not tell: allowed to, oneDNN does so with AMX, but not with
    AVX-512 BF16 alone.
    """
    x = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    exact = x.astype(np.float64) @ x
    product = ms.ops.matmul(ms.Tensor(x), ms.Tensor(x)).asnumpy()
    return bool(np.abs(product - exact).max() > 1e-4 * np.abs(exact).max())  # 2e-3 in bfloat16, 1e-7 in float32


def choose_cpu_products(name: str) -> None:
    """Settle whether oneDNN may multiply in bfloat16; it reads the variable once, when it is first used.

    Raises UserError if the process has settled for the other.
    """
    variable = "ONEDNN_DEFAULT_FPMATH_MODE"
    if name == "bf16":
        os.environ[variable] = "BF16"
    mode = ctypes.c_int(0)
    try:
        onednn = ctypes.CDLL(str(Path(ms.__file__).parent / "lib" / "libdnnl.so.3"))
        onednn.dnnl_get_default_fpmath_mode(ctypes.byref(mode))
    except (OSError, AttributeError):  # a build of MindSpore without oneDNN
        pass
    settled = "bf16" if mode.value == ONEDNN_BF16 else "fp32"
    if settled != name:
        raise UserError(
            f"dtype {name} is not possible any more: this process multiplies matrices in {settled} on the CPU; "
            f"start a new process (and unset {variable} for fp32)"
        )


def use_flash_attention(requested: bool, dtype: ms.Type, training: bool = False) -> bool:
    """Return whether the fused attention kernel is used, in `training` with its gradient.

    It is said once which kernel that is, or why exact attention stands in for what was asked for.
    """
    here = current()
    name = here.chip or here.target
    if not requested:
        return False
    if here.fused_attention is None:
        why = f"does not exist on {name}"
    elif dtype not in (ms.float16, ms.bfloat16):
        why = "takes fp16 and bf16 only"
    elif training and here.fused_attention == "infer":
        why = f"has no gradient on {name}"
    else:
        inform_once(f"enable_flash_attention: {name} attends by {FUSED_ATTENTION[here.fused_attention]}")
        return True
    warn_once(f"enable_flash_attention: the fused kernel {why}; exact attention computes the same")
    return False


def describe_machine() -> str:
    """Return what a log says about where something ran: device, ranks, cores, memory, MindSpore."""
    here, cpuinfo = current(), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    many = f" x {here.world_size} ranks" if here.world_size > 1 else ""
    host = f"{processor or platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    return f"{here.chip or here.target}{many} ({host}), MindSpore {ms.__version__}"


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the accelerator, or on CPU of the whole process."""
    if current().target == "CPU":
        return _peak_of_process()
    return ms.runtime.max_memory_allocated()


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset  # type: ignore[attr-defined, unused-ignore]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int | None:
    """Return the memory in bytes that is free on this machine (CPU), or None where MindSpore cannot tell."""
    return psutil.virtual_memory().available if current().target == "CPU" else None
