"""The affine map of every linear layer."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

_matmul = ops.MatMul(transpose_b=True)  # (out, in) weights as PyTorch keeps them; also oneDNN's fastest form
_bias_add = ops.BiasAdd()


def linear(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return x W^T + b in the dtype of `x`.

    x (..., in), weight (out, in), bias (out,); master weights of another dtype are cast, equal dtypes cost nothing.
    """
    y = _matmul(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))  # (N, out)
    y = _bias_add(y, bias.astype(x.dtype))
    return y.reshape(*x.shape[:-1], weight.shape[0])
