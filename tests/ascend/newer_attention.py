"""A program for tests: prints the error of FusedInferAttentionScore in a graph, and of what it computes there instead.

It is why latte calls PromptFlashAttention.
"""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
from mindspore import ops


def attend(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
    """Attend with one head of 16."""
    return ops.fused_infer_attention_score(q, k, v, num_heads=1, scale=0.25, inner_precise=0)[0]


def error(given: ms.Tensor, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> float:
    """Return the largest relative error of softmax(q k^T / 4) v."""
    p = np.exp(0.25 * q @ k.swapaxes(-1, -2))
    wanted = p / p.sum(-1, keepdims=True) @ v
    return float(np.abs(given.astype(ms.float32).asnumpy() - wanted).max() / np.abs(wanted).max())


def main() -> None:
    """Print a line of JSON: the errors without a graph, in one, and in one of softmax(q q^T / 4) k."""
    ms.set_device("Ascend")
    arrays = list(np.random.default_rng(0).normal(size=(3, 2, 8, 16)).astype(np.float16))
    tensors = [ms.Tensor(each) for each in arrays]
    q, k, v = (each.astype(np.float64) for each in arrays)
    graph = ms.jit(attend, jit_level="O0")(*tensors)
    errors = {
        "without": error(attend(*tensors), q, k, v),
        "graph": error(graph, q, k, v),
        "shifted": error(graph, q, q, k),
    }
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
