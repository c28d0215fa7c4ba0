"""The LoRA methods of a pipeline, named as in diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latte.components.adapters import Adapters
from latte.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from latte.models import Latte, LatteT2V


class LoraMixin:
    """Loads LoRA adapters, scales and mixes them, and takes them out again."""

    net: Latte | LatteT2V
    _adapters: Adapters | None = None

    @property
    def adapters(self) -> Adapters:
        """The adapters that were loaded."""
        if self._adapters is None:
            self._adapters = Adapters(self.net)
        return self._adapters

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None) -> None:
        """Load LoRA adapters and use them with weight 1, beside those that are in use.

        path: a checkpoint or the folder of a training with `trainable: lora`; a file of diffusers or kohya; or a folder
        of peft, with adapter_config.json. Raises UserError if they do not fit the network.
        """
        count = len(self.adapters.loaded)
        self.adapters.load(path, f"default_{count}" if adapter_name is None else adapter_name)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these adapters and no others, each with its weight, or all with the same; None = 1.

        Raises UserError if one is unknown, or names and weights differ in number.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = list(given) if isinstance(given, Sequence) else [given] * len(names)
        if len(weights) != len(names) or len(set(names)) != len(names):
            raise UserError(
                f"{len(weights)} adapter_weights for the adapters {names}; give each adapter once, with one"
            )
        self.adapters.use(dict(zip(names, weights, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters in use."""
        return list(self.adapters.scales)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded adapters, for the one network that has them."""
        return {"transformer": list(self.adapters.loaded)} if self.adapters.loaded else {}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters; raises UserError if one is unknown."""
        self.adapters.remove([adapter_names] if isinstance(adapter_names, str) else adapter_names)

    def disable_lora(self) -> None:
        """Use no adapter, and keep those that are loaded."""
        self.adapters.use({})

    def unload_lora_weights(self) -> None:
        """Forget all adapters; the weights are again, bit for bit, as before, but for what `fuse_lora` added."""
        self.adapters.remove(list(self.adapters.loaded))

    def fuse_lora(self, lora_scale: float = 1.0, adapter_names: Sequence[str] | None = None) -> None:
        """Make the adapters in use, or some of them, times `lora_scale`, a part of the weights.

        They stay there when the adapters are unloaded; `unfuse_lora` before that takes them out again.
        """
        self.adapters.fuse(lora_scale, adapter_names)

    def unfuse_lora(self) -> None:
        """Take out again what `fuse_lora` added."""
        self.adapters.unfuse()
