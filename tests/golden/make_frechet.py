"""Record Frechet distances by SciPy's sqrtm, as the official code takes it: python tests/golden/make_frechet.py.

Needs SciPy, and tests/ on PYTHONPATH. Only the distances are kept: the test draws the features again.
"""

from pathlib import Path

import numpy as np
import scipy.linalg
from support.features import CASES, features

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "frechet.npz"


def sqrtm_formula(a, b):
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False, bias=True)) for x in (a, b)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return np.real(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


if __name__ == "__main__":
    np.savez(FILE, **{name: sqrtm_formula(*(x.astype(np.float64) for x in features(name))) for name in CASES})
