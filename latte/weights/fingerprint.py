"""Whose weights these are: hashes of tensors that do not depend on the file they came from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from latte.weights.mapped import verified

if TYPE_CHECKING:
    from collections.abc import Mapping


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named float32 tensors, whatever their order and the file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(verified(tensors[name]), np.float32).data)
    return digest.hexdigest()


def base_fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the biases of a base, which identifies it; float16 and float32 files give the same.

    Every training changes the biases, and they are a thousandth of the parameters.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, values in tensors.items() if values.ndim == 1):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(verified(tensors[name]).astype(np.float16)).data)
    return digest.hexdigest()
