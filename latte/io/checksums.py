"""Checksums of files, and of facts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 of files, one after the other, read in parts; raises OSError if one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def sha256_of_facts(facts: Any) -> str:
    """Return the SHA-256 of values that JSON can hold; file names in them need not be Unicode."""
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
