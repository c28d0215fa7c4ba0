"""Latte, the Latent Diffusion Transformer for video generation (Ma et al., 2024, arXiv:2401.03048), on MindSpore."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

# Before anything imports MindSpore: it warns of every optional library that is missing. Its errors are kept,
# unless the user chose a level.
os.environ.setdefault("GLOG_v", "3")
warnings.filterwarnings("ignore", message="The value of the smallest subnormal")

__version__ = "0.1.0"

# Loaded on first use, so that `sample.py --help` and the file tools do not wait for MindSpore.
_HOMES = {
    "create_model": "latte.models",
    "load": "latte.components.loading",
    "load_model": "latte.components.loading",
    "load_vae": "latte.components.loading",
    "load_weights": "latte.components.loading",
    "load_t2v": "latte.components.loading",
    "LattePipeline": "latte.inference.pipeline",
    "export_to_gif": "latte.io.video",
    "export_to_video": "latte.io.video",
    "init_device": "latte.runtime.device",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latte' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
