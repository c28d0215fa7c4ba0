"""Functions of MindSpore that reach an operator of CANN each; run on the stand-in, saves their results and gradients.

python tests/ascend/standin.py python tests/ascend/calls.py FILE DTYPE [--hf32] [NAME...]
"""

import argparse
import sys

import mindspore as ms
import numpy as np
from mindspore import mint, ops


def layer_norm(x, w, b):
    return mint.nn.functional.layer_norm(x, (16,), w, b, 1e-6)


def layer_norm_without_weights(x):
    return mint.nn.functional.layer_norm(x, (16,), None, None, 1e-6)


def group_norm(x, w, b):
    return mint.nn.functional.group_norm(x, 4, w, b, 1e-5)


def rms_norm(x, w):
    return ops.rms_norm(x, w, 1e-6)[0]


def softmax(x):
    return mint.nn.functional.softmax(x, 1)


def log_softmax(x):
    return mint.nn.functional.log_softmax(x, -1)


def conv2d(x, w, b):
    return mint.nn.functional.conv2d(x, w, b, 1, 1)


def conv2d_of_patches(x, w, b):
    return mint.nn.functional.conv2d(x, w, b, 2)


def conv3d(x, w, b):
    return mint.nn.functional.conv3d(x, w, b, 1, 1)


def linear(x, w, b):
    return mint.nn.functional.linear(x, w, b)


def matmul(a, b):
    return mint.matmul(a, b)


def matmul_with_a_matrix(a, b):
    return mint.matmul(a, b)


def matmul_transposed(a, b):
    return ops.MatMul(transpose_b=True)(a, b)


def batch_matmul_transposed(a, b):
    return ops.BatchMatMul(transpose_b=True)(a, b)


def bmm(a, b):
    return mint.bmm(a, b)


def addmm(c, a, b):
    return mint.addmm(c, a, b, beta=1, alpha=2)


def baddbmm(c, a, b):
    return mint.baddbmm(c, a, b, beta=1, alpha=2)


def mv(a, b):
    return mint.mv(a, b)


def dot(a, b):
    return mint.dot(a, b)


# Without a backend, MindSpore takes the graph engine on the 910A, whatever the level.
KERNEL_BY_KERNEL = {"jit_level": "O0", "backend": "ms_backend"}
# The shapes of their arguments.
CALLS = {
    layer_norm: [(3, 5, 16), (16,), (16,)],
    layer_norm_without_weights: [(3, 5, 16)],
    group_norm: [(2, 8, 4, 4), (8,), (8,)],
    rms_norm: [(3, 5, 16), (16,)],
    softmax: [(3, 4, 7)],
    log_softmax: [(3, 4, 7)],
    conv2d: [(2, 4, 6, 6), (8, 4, 3, 3), (8,)],
    conv2d_of_patches: [(2, 4, 6, 6), (8, 4, 2, 2), (8,)],
    conv3d: [(1, 2, 3, 4, 4), (3, 2, 3, 3, 3), (3,)],
    linear: [(2, 5, 8), (6, 8), (6,)],
    matmul: [(2, 3, 5, 8), (2, 3, 8, 6)],
    matmul_with_a_matrix: [(2, 5, 8), (8, 6)],
    matmul_transposed: [(5, 8), (6, 8)],
    batch_matmul_transposed: [(2, 3, 5, 8), (2, 3, 6, 8)],
    bmm: [(2, 5, 8), (2, 8, 6)],
    addmm: [(6,), (5, 8), (8, 6)],
    baddbmm: [(2, 5, 6), (2, 5, 8), (2, 8, 6)],
    mv: [(5, 8), (8,)],
    dot: [(8,), (8,)],
}


def run(function, shapes, dtype):
    """Return arguments, output, the gradient of the output that is taken, and those of the arguments, as float32."""
    draws = np.random.default_rng(0)
    arguments = [ms.Tensor(draws.normal(size=shape).astype(np.float32), dtype) for shape in shapes]

    def weighted(*values):
        return mint.sum(function(*values[:-1]) * values[-1])

    output = ms.jit(function, **KERNEL_BY_KERNEL)(*arguments)
    weights = ms.Tensor(draws.normal(size=output.shape).astype(np.float32), dtype)
    gradients = ms.jit(ms.grad(weighted, tuple(range(len(shapes)))), **KERNEL_BY_KERNEL)(*arguments, weights)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [each.astype(ms.float32).asnumpy() for each in (*arguments, output, weights, *gradients)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("dtype")
    parser.add_argument("--hf32", action="store_true", help="leave MindSpore its own choice: convolutions in HF32")
    parser.add_argument("names", nargs="*")
    given = parser.parse_intermixed_args()
    ms.set_device("Ascend")
    if not given.hf32:
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)
    results = {}
    for function, shapes in CALLS.items():
        if given.names and function.__name__ not in given.names:
            continue
        try:
            found = run(function, shapes, getattr(ms, given.dtype))
        except RuntimeError as failure:
            sys.stderr.write(f"{function.__name__}: {failure}\n")
            continue
        results |= {f"{function.__name__}/{i}": each for i, each in enumerate(found)}
    np.savez(given.file, **results)


if __name__ == "__main__":
    main()
