"""Features like those of a network, for distances between sets of them."""

import zlib

import numpy as np

CASES = {  # clips of two sets, and width of a feature
    "full_rank": (300, 260, 40),
    "few_clips": (60, 50, 400),
    "as_evaluated": (2048, 2048, 400),
    "one_is_few": (2048, 100, 400),
}


def features(name):
    """Return two sets of float32 features; a few directions have most of the variance, as logits have."""
    count_a, count_b, width = CASES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    mix = rng.normal(size=(width, width)) * np.exp(-np.arange(width) / (width / 6))[:, None]
    a = rng.normal(size=(count_a, width)) @ mix
    b = (1.2 * rng.normal(size=(count_b, width))) @ mix + rng.normal(size=width)
    return a.astype(np.float32), b.astype(np.float32)
