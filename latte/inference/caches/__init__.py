"""Ways to skip work in some steps of a sampling, one file per method; `choose` finds the one that is asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte.errors import UserError
from latte.inference.caches.base import Denoiser, Graphs, Method, Nothing, Step, Walk
from latte.inference.caches.fastercache import FasterCache
from latte.inference.caches.pab import PAB
from latte.inference.caches.schedule import NAMED, Schedule, named, read_schedule
from latte.inference.caches.teacache import TeaCache
from latte.inference.caches.threshold import Threshold
from latte.io.checksums import sha256_of
from latte.io.json_files import check_numbers, exists

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Cache",
    "Denoiser",
    "Graphs",
    "Method",
    "Nothing",
    "Schedule",
    "Step",
    "Threshold",
    "Walk",
    "choose",
    "facts",
    "is_name",
    "opened",
]

Cache = str | Path | Method | None  # what users give: a name, a file of latte schedule, or a method
# The methods with a number as their only setting: its default, and its bounds.
METHODS: dict[str, tuple[Callable[[Any], Method], float, tuple[float, float]]] = {
    "threshold": (Threshold, 0.05, (0.0, 1.0)),
    "teacache": (TeaCache, 0.1, (0.0, 100.0)),
    "fastercache": (FasterCache, 5, (1, 1000)),
    "pab": (PAB, 235, (111, 999)),
}
NAME = re.compile(r"([a-z]+)(?::([0-9.eE+-]+))?")
WITH_HALVES = re.compile(r"(.+)\+(fastercache(?::[0-9.eE+-]+)?)")  # another method, in each half of guidance


def choose(cache: Cache, feature_cache: float, walk: Walk) -> Method:
    """Return the method that is asked for, checked against the walk of a sampling.

    cache: every<k> or calls<n>, see `named`; a method, maybe with its number as in threshold:0.05; or a file of latte
    schedule. With "+fastercache:5" behind it, it works within that method. feature_cache: the threshold of the method
    `threshold`, 0 for none. Raises UserError if both are given, there is no such method or file, or the schedule is of
    another solver or number of steps.
    """
    if feature_cache:
        if cache is not None:
            raise UserError("feature_cache is the same as cache: threshold, and cache is given too; leave one out")
        return Threshold(feature_cache)
    if cache is None:
        return Nothing()
    if not isinstance(cache, str | Path):
        if isinstance(cache, Schedule):
            return cache.check(walk)
        if hasattr(cache, "start"):
            return cache
        raise UserError(f"cache is {cache!r}, but must be a name such as every2, or a file of latte schedule")
    if found := WITH_HALVES.fullmatch(str(cache)):
        outer = choose(found[2], 0, walk)
        return replace(outer, within=choose(found[1], 0, walk))  # type: ignore[type-var]
    if schedule := named(str(cache), walk):
        return schedule
    if method := _method(str(cache)):
        return method
    if not exists(cache):
        known = ", ".join(("every2", "calls20", *METHODS))
        raise UserError(f"cache {str(cache)!r} is neither a file nor a method; name a file, or one such as {known}")
    return read_schedule(cache).check(walk)


def opened(cache: str | None) -> str | Schedule | None:
    """Return the option `cache`, or the schedule in the file that it names, so that many batches read it once.

    Raises UserError if the file is missing or damaged.
    """
    if cache is None or WITH_HALVES.fullmatch(cache) or is_name(cache):
        return cache
    return read_schedule(cache)


def facts(cache: str | None) -> str | None:
    """Return what videos depend on of the option `cache`: the name, or a hash of what is in the file."""
    if cache and (found := WITH_HALVES.fullmatch(cache)):
        return f"{facts(found[1])}+{found[2]}"
    return cache if cache is None or is_name(cache) else sha256_of(Path(cache))[:16]


def is_name(cache: str) -> bool:
    """Return whether a text names a method, not a file."""
    return bool(NAMED.fullmatch(cache) or ((found := NAME.fullmatch(cache)) and found[1] in METHODS))


def _method(name: str) -> Method | None:
    found = NAME.fullmatch(name)
    if not found or found[1] not in METHODS:
        return None
    make, default, bounds = METHODS[found[1]]
    try:
        value = default if found[2] is None else type(default)(found[2])
    except ValueError:
        what = "whole number" if isinstance(default, int) else "number"
        raise UserError(f"cache {name!r} has no {what} behind its colon; write {found[1]}:{default:g}") from None
    check_numbers({"number": value}, {"number": bounds}, f"cache {name}")
    return make(value)
