"""Whether a training is worth going on with: its tensors are finite, and its steps change something."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

SUMS = "sums"  # of losses since the last report: may be infinite after one overflow, and nothing depends on them
MAX_SKIPPED = 20  # steps in a row; a broken video spoils one, and fp16's loss scale finds its place in a few
REMEDY = "lower start_learning_rate, set clip_grad or choose another dtype, and go on with --resume auto"


def unsound(state: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of a tensor of a state with an element that is not finite, or None if there is no such tensor.

    A negative second moment counts as well, because AdamW takes its root.
    """

    def is_unsound(name: str) -> bool:
        array = state[name]
        if name == SUMS or not array.size:
            return False
        low, high = float(array.min()), float(array.max())  # NaN if there is one; no array is made
        return not (math.isfinite(low) and math.isfinite(high)) or (name.startswith("adam_v.") and low < 0)

    with ThreadPoolExecutor() as pool:
        return next((name for name, is_bad in zip(state, pool.map(is_unsound, state), strict=True) if is_bad), None)


class SkippedSteps:
    """Counts the steps in a row that an infinite gradient made skip; `total` is the count of a run so far.

    `now` says whether the newest steps were all skipped: the weights may then be spoiled.
    """

    def __init__(self, total: int):
        self.total, self.in_a_row, self.now = total, 0, False

    def note(self, steps: int, total: int, scale_can_fall: bool) -> bool:
        """Take the total after `steps` more steps; return whether there are too many in a row to go on.

        While the loss scale of fp16 can still fall, skipping is how it does so, and does not count.
        """
        skipped, self.total = total - self.total, total
        self.now = skipped >= steps
        self.in_a_row = self.in_a_row + steps if self.now and not scale_can_fall else 0
        return self.in_a_row >= MAX_SKIPPED
