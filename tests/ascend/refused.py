"""A program for tests: calls MindSpore's fused attention as no card takes it, and prints its errors."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
from mindspore import ops


def score(n: int, width: int, dtype: ms.Type, rows: int | None = None) -> ms.Tensor:
    """Attend by FlashAttentionScore, with a mask of some rows."""
    x = ms.Tensor(np.zeros((n, 2, 2 * width), np.float32)).astype(dtype)
    mask = None if rows is None else ms.Tensor(np.zeros((n, 1, rows, 2), bool))
    return ops.flash_attention_score(x, x, x, 2, attn_mask=mask, sparse_mode=int(rows is not None))


def prompt(n: int, width: int, dtype: ms.Type) -> ms.Tensor:
    """Attend by PromptFlashAttention."""
    x = ms.Tensor(np.zeros((n, 2, 2 * width), np.float32)).astype(dtype)
    return ops.prompt_flash_attention(x, x, x, num_heads=2, next_tokens=2**31 - 1, inner_precise=0)


CASES = {
    "training": (score, (1, 16, ms.float16)),
    "float32 in training": (score, (1, 16, ms.float32)),
    "a mask of one row": (score, (1, 16, ms.float16, 1)),
    "float32": (prompt, (1, 16, ms.float32)),
    "a width of 72 in bfloat16": (prompt, (1, 72, ms.bfloat16)),
    "a width of 72 in a batch of 129": (prompt, (129, 72, ms.float16)),
    "a batch of 65537": (prompt, (65537, 16, ms.float16)),
    "what it takes": (prompt, (128, 72, ms.float16)),
}


def main() -> None:
    """Print a line of JSON: for each case the error, or an empty one."""
    ms.set_device("Ascend")
    ms.runtime.launch_blocking()  # or an error is raised by a later call
    said = {}
    for name, (attend, arguments) in CASES.items():
        try:
            attend(*arguments).asnumpy()
            said[name] = ""
        except (RuntimeError, TypeError, ValueError) as error:
            said[name] = str(error)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
