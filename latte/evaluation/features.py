"""Features of clips on disk, so that a killed evaluation goes on, and a set is not computed twice.

A folder holds the features of one source, cut in one way, by one network; each file those of a few clips, with the
signature of each video, so that one which has changed is computed again. Files are whole or not there, and have
checksums.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latte.errors import UserError
from latte.io import resources
from latte.io.arrays import read_npz
from latte.io.atomic import atomic_path
from latte.io.checksums import sha256_of_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger("latte")
SHORT = "short"  # the problem of a video that is too short, as others are sentences


class Entry(NamedTuple):
    """What is known of a clip: its feature (D,) float32, or why it has none."""

    name: str
    signature: str
    problem: str = ""
    was: tuple[int, int] = (0, 0)  # height and width of the video
    flicker: float = float("nan")
    feature: np.ndarray | None = None


class FeatureStore:
    """The features in a folder, which `identity` tells apart from other folders below `root`."""

    def __init__(self, root: Path, identity: Mapping[str, Any]):
        content = json.dumps(identity, sort_keys=True, indent=1)
        self.folder = root / hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._content, self._entries = content, dict[tuple[str, str], Entry]()
        self._read: set[str] = set()
        self.reload()
        # What could not be read then, as a disk was away, perhaps can be now.
        self._entries = {key: entry for key, entry in self._entries.items() if entry.problem in ("", SHORT)}

    def find(self, name: str, signature: str) -> Entry | None:
        """Return the entry of a clip, None if there is none of this signature."""
        return self._entries.get((name, signature))

    def add(self, entries: Sequence[Entry]) -> None:
        """Write entries as one file; raises UserError if it cannot be written."""
        facts = [(entry.name, entry.signature, entry.problem, entry.was) for entry in entries]
        name = sha256_of_facts(facts)[:32]
        width = next((len(entry.feature) for entry in entries if entry.feature is not None), 1)
        none = np.full(width, np.nan, np.float32)
        rows = [none if entry.feature is None else entry.feature for entry in entries]
        if not (self.folder / "identity.json").exists():
            with atomic_path(self.folder / "identity.json") as temporary:
                temporary.write_text(self._content, encoding="utf-8", errors="surrogatepass")
        with atomic_path(self.folder / f"{name}.npz") as temporary:
            np.savez(
                temporary,
                features=np.stack(rows).astype(np.float32),
                flicker=np.array([entry.flicker for entry in entries], np.float64),
                clips=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            )
        self._note(entries)

    def reload(self) -> None:
        """Read the files that are new; of damaged ones it is said that their clips are computed again."""
        files = sorted(self.folder.glob("*.npz")) if self.folder.is_dir() else []
        for file in files:
            if file.name in self._read:
                continue
            self._read.add(file.name)
            try:
                self._note(_entries_of(read_npz(file, ("features", "flicker", "clips"))))
            except (UserError, ValueError, TypeError) as error:
                log.warning("%s is damaged, and its clips are computed again", file)
                log.debug("%s", error)

    def _note(self, entries: Iterable[Entry]) -> None:
        self._entries.update({(entry.name, entry.signature): entry for entry in entries})


def _entries_of(arrays: Mapping[str, np.ndarray]) -> list[Entry]:
    """Return the entries of a file; raises ValueError or TypeError if they do not fit together."""
    features, flicker, facts = arrays["features"], arrays["flicker"], json.loads(arrays["clips"].tobytes())
    if features.dtype != np.float32 or features.ndim != 2 or flicker.shape != (len(features),):
        raise ValueError(f"its features are {features.dtype} {features.shape}")
    found = []
    for row, change, (name, signature, problem, was) in zip(features, flicker, facts, strict=True):
        if not problem and not np.isfinite(row).all():
            raise ValueError(f"the feature of {name} is not finite")
        found.append(Entry(name, signature, problem, tuple(was), float(change), None if problem else row))
    return found


def default_root() -> Path:
    """Return the folder of all features: `latte/evaluation` in the user's cache folder."""
    return resources.user_cache() / "evaluation"
