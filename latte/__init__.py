"""Latte, the Latent Diffusion Transformer for video generation (Ma et al., 2024, arXiv:2401.03048), on MindSpore.

`LattePipeline.from_pretrained(...)` samples videos, `create_model(...)` and `load_model(...)` make networks,
`export_to_video(...)` writes what came out. The programs are `latte sample`, `latte train` and so on: `latte --help`.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

# Before anything imports MindSpore: it warns of every optional library that is missing. Its errors are kept,
# unless the user chose a level.
os.environ.setdefault("GLOG_v", "3")
warnings.filterwarnings("ignore", message="The value of the smallest subnormal")

__version__ = "0.1.0"  # the only place: the package and the commands read it here

__all__ = [
    "LattePipeline",
    "Solver",
    "create_model",
    "export_to_gif",
    "export_to_video",
    "init_device",
    "load",
    "load_model",
    "load_t2v",
    "load_vae",
    "load_weights",
]

if TYPE_CHECKING:
    from latte.components.loading import load, load_model, load_t2v, load_vae, load_weights
    from latte.diffusion.solvers import Solver
    from latte.inference.pipeline import LattePipeline
    from latte.io.video import export_to_gif, export_to_video
    from latte.models import create_model
    from latte.runtime.device import init_device

# The same names, imported on first use, so that `latte --help` and the file tools do not wait for MindSpore.
_HOMES = {
    "LattePipeline": "latte.inference.pipeline",
    "Solver": "latte.diffusion.solvers",
    "create_model": "latte.models",
    "export_to_gif": "latte.io.video",
    "export_to_video": "latte.io.video",
    "init_device": "latte.runtime.device",
    "load": "latte.components.loading",
    "load_model": "latte.components.loading",
    "load_t2v": "latte.components.loading",
    "load_vae": "latte.components.loading",
    "load_weights": "latte.components.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latte' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
