"""LoRA adapters of a loaded network: added to its weights in place with a scale each, and taken out again bit for bit.

W + sum of scale * up down is computed once, when adapters change, not in every step; a compiled graph sees it because
the parameters keep their memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from latte.components.quantize import holds_int8
from latte.components.runs import newest_weights, run_of
from latte.config.parser import nearest
from latte.errors import UserError, quoted
from latte.models.precision import pad_heads
from latte.runtime import tensors
from latte.weights.dtypes import numpy_dtype
from latte.weights.fingerprint import base_fingerprint
from latte.weights.lora import read_adapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mindspore import nn

    from latte.weights.lora import Adapter


class Adapters:
    """The LoRA adapters that were loaded for a network, and the scales of those that are in use."""

    def __init__(self, net: nn.Cell):
        self.net = net
        self.weights = dict(net.parameters_and_names())
        self.loaded: dict[str, Adapter] = {}
        self.scales: dict[str, float] = {}  # of the adapters in use
        self.fused: dict[str, float] = {}  # of those that `fuse` made a part of the weights
        self._base: dict[str, np.ndarray] = {}  # the weights without adapters, float32, of those that are changed
        self._before: dict[str, np.ndarray] = {}  # the weights before `fuse`

    def load(self, path: str | Path, name: str) -> None:
        """Read adapters under a new name and use them with scale 1, beside those in use.

        path: see `read_adapter`; or the folder of a run. Raises UserError if they do not fit the network, which then
        stays as it is.
        """
        if not isinstance(name, str) or not name or name in self.loaded:
            raise UserError(f"adapter_name {name!r} must be a text that no other adapter has; choose another one")
        if holds_int8(self.net):
            raise UserError(
                "LoRA adapters cannot be added to int8 weights; merge them into a folder with tools/t2v_export.py, and "
                "load that with quantize"
            )
        run = run_of(path) if Path(path).is_dir() else None
        adapter, base = read_adapter(newest_weights(run) if run else path)
        self._check(adapter, base, str(path))
        self.loaded[name] = adapter
        self.use({**self.scales, name: 1.0})

    def use(self, scales: Mapping[str, float]) -> None:
        """Use these adapters with these scales and no others; if one is unknown, raises UserError."""
        for name, scale in scales.items():
            self._known(name)
            if name in self.fused:
                raise UserError(f"adapter {name!r} is fused into the weights; call unfuse_lora() first")
            if not _is_finite(scale):
                raise UserError(f"the weight of adapter {name!r} is {scale!r}, but must be a finite number")
        new = {name: float(scale) for name, scale in scales.items()}
        self._set(self._sums(new), new)

    def fuse(self, scale: float = 1.0, names: Iterable[str] | None = None) -> None:
        """Make the adapters in use, or those of them with these names, a part of the weights, until `unfuse`."""
        chosen = list(self.scales if names is None else names)
        if not chosen or any(name not in self.scales for name in chosen):
            raise UserError(f"adapters to fuse must be in use, which {sorted(self.scales) or 'none'} are")
        if self.fused:
            raise UserError("adapters are fused already; call unfuse_lora() first")
        rest = {name: value for name, value in self.scales.items() if name not in chosen}
        fused = self._sums({name: self.scales[name] * scale for name in chosen})
        self.fused = {name: self.scales[name] * scale for name in chosen}
        self._before = {key: self._without(key) for key in fused}
        self._base |= fused
        self._set(self._sums(rest), rest)

    def unfuse(self) -> None:
        """Take what `fuse` added out again, bit for bit, and use those adapters as before."""
        if not self.fused:
            raise UserError("no adapter is fused")
        self._base |= self._before
        again, self.fused, self._before = {**self.scales, **self.fused}, {}, {}
        self.use(again)

    def remove(self, names: Iterable[str]) -> None:
        """Forget adapters; fused ones stay in the weights. Raises UserError if one is unknown."""
        names = list(names)
        for name in names:
            self._known(name)
        self.use({name: scale for name, scale in self.scales.items() if name not in names})
        for name in names:
            del self.loaded[name]
            self.fused.pop(name, None)
        if not self.fused:
            self._before = {}

    def _known(self, name: str) -> None:
        if name not in self.loaded:
            hint = f"; the nearest is {nearest(name, self.loaded)!r}" if self.loaded and isinstance(name, str) else ""
            raise UserError(f"there is no adapter {name!r}{hint}; load it with load_lora_weights(path, adapter_name)")

    def _check(self, adapter: Adapter, base: str | None, source: str) -> None:
        weights, padded = self.weights, self.net.prepared and self.net.flash
        for layer, (down, up) in adapter.items():
            name = f"{layer}.weight"
            shape: tuple[int, ...] = (up.shape[0], down.shape[1])
            if padded:
                shape = pad_heads(name, np.empty(shape, np.int8), self.net.config.attention_heads).shape
            if name not in weights or tuple(weights[name].shape) != shape:
                there = tuple(weights[name].shape) if name in weights else "no such weight"
                raise UserError(
                    f"{source} adds {up.shape[0]} x {down.shape[1]} elements to {quoted(name)}, but this network has "
                    f"{there}; name adapters that were trained on it"
                )
        exact = not self.net.flash and all(w.dtype in (ms.float32, ms.float16) for w in weights.values())
        if base and exact and base != base_fingerprint({key: w.asnumpy() for key, w in weights.items()}):
            raise UserError(f"{source} was trained on another network; load the one that it started from")

    def _without(self, key: str) -> np.ndarray:
        """Return a weight without the adapters in use, float32."""
        return self._base[key] if key in self._base else self.weights[key].astype(ms.float32).asnumpy().copy()

    def _sums(self, scales: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Return the weights that adapters with these scales change, by name, summed in float64, in float32."""
        added: dict[str, Any] = {}
        for name, scale in scales.items():
            for layer, (down, up) in self.loaded[name].items():
                key = f"{layer}.weight"
                added[key] = added.get(key, 0.0) + scale * (up.astype(np.float64) @ down.astype(np.float64))
        result = {}
        for key, delta in added.items():
            if self.net.flash:
                delta = pad_heads(key, delta, self.net.config.attention_heads)
            result[key] = (self._without(key).astype(np.float64) + delta).astype(np.float32)
            dtype = numpy_dtype(str(self.weights[key].dtype).lower())
            if not np.isfinite(result[key].astype(dtype).astype(np.float32)).all():
                raise UserError(f"with these adapters {key} does not fit {dtype.name}; lower their weights")
        return result

    def _set(self, changed: Mapping[str, np.ndarray], scales: dict[str, float]) -> None:
        """Give the weights these values, and all others that adapters had changed the values that they had before."""
        self._base |= {key: self._without(key) for key in changed}
        for key, base in list(self._base.items()):
            weight = self.weights[key]
            tensors.assign(weight, ms.Tensor(changed.get(key, base)).astype(weight.dtype))
            if key not in changed and key not in self._before:
                del self._base[key]
        self.scales = scales


def _is_finite(scale: Any) -> bool:
    return isinstance(scale, int | float | np.number) and not isinstance(scale, bool) and bool(np.isfinite(scale))
