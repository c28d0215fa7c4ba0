"""How a step is predicted to become faster with the cards that share its videos: frames, and halves of guidance."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from latte.config import SampleConfig
from latte.errors import UserError
from latte.inference import estimate

if TYPE_CHECKING:
    from latte.config import TrainConfig
    from latte.inference.estimate import Prediction, Work

CARDS = (1, 2, 4, 8, 16, 64)
PER_HOST = 8


class Row(NamedTuple):
    """The fastest layout of so many cards that is predicted."""

    cards: int
    halves: int
    sequence: int
    seconds: float  # of a video with decoding, or of a training step
    sent: float  # bytes of tokens that a card sends in a step
    work: Work
    found: Prediction


def rows(cfg: SampleConfig | TrainConfig, name: str) -> list[Row]:
    """Return a row for each number of cards on which the frames can be shared; raises UserError for an unknown card."""
    if name == estimate.CPU_CARD:
        raise UserError("--scaling is for accelerators, and --card is cpu; name one such as 910B3")
    on = estimate.card(name)
    found = []
    for cards in CARDS:
        layouts = [_row(cfg, on, cards, halves) for halves in _halves(cfg, cards)]
        if fitting := [row for row in layouts if row]:
            found.append(min(fitting, key=lambda row: row.seconds))
    return found


def _halves(cfg: SampleConfig | TrainConfig, cards: int) -> tuple[int, ...]:
    guided = isinstance(cfg, SampleConfig) and _work(cfg).kind.endswith("guided") and _work(cfg).sizes.batch >= 1
    return (1, 2) if guided and cards % 2 == 0 else (1,)


def _work(cfg: SampleConfig | TrainConfig) -> Work:
    if isinstance(cfg, SampleConfig):
        config, vae, _ = estimate.stored(cfg)
        return estimate.sampling(cfg, config, vae)
    return estimate.training(cfg, *estimate.described(cfg))


def _row(cfg: SampleConfig | TrainConfig, on: estimate.Card, cards: int, halves: int) -> Row | None:
    """Return the row of a layout; None if there are more ranks than frames."""
    parts = cards // halves
    frames = _work(dataclasses.replace(cfg, sequence_parallel=1)).sizes.frames
    if parts > frames:
        return None
    changes: dict[str, Any] = {"sequence_parallel": parts} | (
        {"cfg_parallel": halves > 1} if isinstance(cfg, SampleConfig) else {}
    )
    work = _work(dataclasses.replace(cfg, **changes))
    found = estimate.predict(work, on, cards, max(1, cards // PER_HOST))
    seconds = found.times.total if work.trains else work.calls * found.times.total + found.after
    sent = work.accumulation * work.exchanges * work.exchanged * (parts - 1) / parts
    return Row(cards, halves, parts, seconds, sent, work, found)


def report(cfg: SampleConfig | TrainConfig, name: str) -> str:
    """Return the rows as a table of docs/estimate.md."""
    found = rows(cfg, name)
    what = "training step" if found[0].work.trains else f"video of {found[0].work.calls} calls"
    lines = [
        f"predicted on {name}, {PER_HOST} cards in a host, per {what} and card:",
        "",
        "| cards | guidance x sequence | seconds | speed-up | GB sent per step | peak memory, GiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        speed, peak = found[0].seconds / row.seconds, row.found.memory.peak / estimate.GIB
        figures = f"{row.seconds:.3g} | {speed:.2f} | {row.sent / 1e9:.3f} | {peak:.1f}"
        lines.append(f"| {row.cards} | {row.halves} x {row.sequence} | {figures} |")
    return "\n".join(lines)
