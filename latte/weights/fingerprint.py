"""Whose weights these are, and whether they are whole: hashes of tensors that do not depend on their file."""

from __future__ import annotations

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from latte.weights.dtypes import names_of, raw_bytes
from latte.weights.mapped import release_pages, verified

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mindspore import nn


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


def network_fingerprint(net: nn.Cell) -> str:
    """Return the `base_fingerprint` of a network's weights as they are now; only biases are copied from the device."""
    return base_fingerprint({name: w.asnumpy() for name, w in net.parameters_and_names() if w.ndim == 1})


def checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return a sum over names, dtypes, shapes, elements and metadata, which tells a flipped bit; fast, and no secret.

    The order of the names does not count. Elements go through CRC-32, several tensors at once.
    Raises UserError for a dtype that no file can have.
    """

    def describe(item: tuple[str, np.ndarray]) -> list:
        name, array = item
        found = [name, names_of(array, name).safetensors, list(array.shape), zlib.crc32(raw_bytes(array))]
        release_pages(array)
        return found

    with ThreadPoolExecutor() as pool:
        described = sorted(pool.map(describe, tensors.items()))
    return hashlib.sha256(json.dumps([sorted(metadata.items()), described]).encode()).hexdigest()
