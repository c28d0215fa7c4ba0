"""How ranks share work: data x guidance x sequence, one small table, and the groups in which they communicate.

Ranks of a sequence group hold frames of the same videos and are neighbours, then come those of the other half of
guidance, then those of other videos: rank = (data * guidance + half) * sequence + part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latte.errors import UserError

if TYPE_CHECKING:
    from latte.runtime.device import Device

Kind = Literal["sequence", "guidance", "video"]  # parts of videos; halves of guidance; all ranks of the same videos


def check(world_size: int, sequence: int, guidance: int) -> None:
    """Raise UserError, which names the nearest sizes that do, if so many ranks cannot be laid out like this."""
    together = sequence * guidance
    if world_size % together == 0:
        return
    fitting = [n for n in range(1, world_size + 1) if world_size % (n * guidance) == 0]
    below, above = ([n for n in fitting if n < sequence][-1:], [n for n in fitting if n > sequence][:1])
    ranks = [n for n in (world_size // together * together, (world_size // together + 1) * together) if n]
    halves = " with cfg_parallel" if guidance > 1 else ""
    nearest = f"take sequence_parallel {' or '.join(map(str, below + above))}, or " if below + above else "take "
    raise UserError(
        f"sequence_parallel {sequence}{halves} needs a multiple of {together} ranks, and there "
        f"{'is 1' if world_size == 1 else f'are {world_size}'}; {nearest}start {' or '.join(map(str, ranks))} ranks, "
        "with use_parallel"
    )


def members(here: Device, kind: Kind) -> list[int]:
    """Return the ranks of this rank's group of a kind, in order."""
    together = here.sequence * here.guidance
    first = here.rank // together * together  # of the ranks with the same videos
    if kind == "video":
        return list(range(first, first + together))
    if kind == "sequence":
        start = first + here.half * here.sequence
        return list(range(start, start + here.sequence))
    return [first + half * here.sequence + here.part for half in range(here.guidance)]


def name(ranks: list[int], world_size: int) -> str | None:
    """Return the name of the group of these ranks in MindSpore, or None for that of all ranks."""
    return None if len(ranks) == world_size else "latte_" + "_".join(map(str, ranks))


def make_groups(here: Device) -> None:
    """Make this rank's groups known to MindSpore; the ranks are connected."""
    from mindspore import communication

    kinds: tuple[Kind, ...] = ("sequence", "guidance", "video")
    groups = [members(here, kind) for kind in kinds]
    for ranks in {tuple(ranks): ranks for ranks in groups if 1 < len(ranks) < here.world_size}.values():
        communication.create_group(name(ranks, here.world_size), ranks)


def table(here: Device) -> str:
    """Return the layout as a table of all ranks, one line for those of the same videos."""
    parts, halves = here.sequence, here.guidance
    lines = [f"{here.world_size} ranks = {here.data_ranks} data x {halves} guidance x {parts} sequence"]
    for data in range(here.data_ranks):
        first = data * halves * parts
        groups = [range(first + half * parts, first + (half + 1) * parts) for half in range(halves)]
        named = [" ".join(map(str, ranks)) for ranks in groups]
        which = f"with condition {named[0]}, without {named[1]}" if halves > 1 else named[0]
        lines.append(f"  videos {data} of {here.data_ranks}: ranks {which}")
    return "\n".join(lines)
