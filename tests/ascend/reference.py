"""What operators of CANN compute, in float64 by NumPy, for the tests that need it in several places."""

import numpy as np


def hf32(values):
    """Return values rounded to HF32: 8 bits of exponent, 11 of mantissa."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.int64)
    kept = (bits + 0x7FF + (bits // 0x1000 & 1)) // 0x1000 * 0x1000
    return np.asarray(kept, np.uint32).view(np.float32).astype(np.float64)


class Convolution:
    """A convolution in float64 and its gradients, tap by tap; padding (before, after) per axis."""

    def __init__(self, kernel, stride, padding, dilation, groups):
        self.kernel, self.stride, self.dilation, self.groups = kernel, stride, dilation, groups
        axes = len(kernel)
        pairs = (
            [(p, p) for p in padding] if len(padding) == axes else list(zip(padding[::2], padding[1::2], strict=True))
        )
        self.padding = [(0, 0), (0, 0), *pairs]

    def windows(self, padded, places):
        """Yield every tap of the kernel with what it sees of the padded image, per group, at every place."""
        grouped = padded.reshape(padded.shape[0], self.groups, -1, *padded.shape[2:])
        for tap in np.ndindex(*self.kernel):
            steps = zip(tap, self.dilation, self.stride, places, strict=True)
            seen = tuple(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in steps)
            yield tap, grouped[(slice(None), slice(None), slice(None), *seen)]

    def places(self, dims):
        sizes = zip(dims[2:], self.padding[2:], self.dilation, self.kernel, self.stride, strict=True)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)

    def weights(self, weight):
        return weight.reshape(self.groups, -1, *weight.shape[1:])

    def features(self, image, weight):
        places, grouped = self.places(image.shape), self.weights(weight)
        found = np.zeros((image.shape[0], self.groups, grouped.shape[1], *places))
        for tap, seen in self.windows(np.pad(image, self.padding), places):
            found += np.einsum("goi,ngi...->ngo...", grouped[(..., *tap)], seen)
        return found.reshape(image.shape[0], -1, *places)

    def image(self, features, weight, dims):
        padded = np.zeros([n + sum(p) for n, p in zip(dims, self.padding, strict=True)])
        split = features.reshape(features.shape[0], self.groups, -1, *features.shape[2:])
        for tap, seen in self.windows(padded, features.shape[2:]):
            seen += np.einsum("goi,ngo...->ngi...", self.weights(weight)[(..., *tap)], split)
        return padded[tuple(slice(p[0], p[0] + n) for n, p in zip(dims, self.padding, strict=True))]

    def weight(self, image, features, dims):
        found = np.zeros((self.groups, dims[0] // self.groups, *dims[1:]))
        split = features.reshape(features.shape[0], self.groups, -1, features[0, 0].size)
        for tap, seen in self.windows(np.pad(image, self.padding), features.shape[2:]):
            found[(..., *tap)] = np.einsum("ngop,ngip->goi", split, seen.reshape(*seen.shape[:3], -1))
        return found.reshape(dims)


def normal(x, axes, eps):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps), mean, 1 / np.sqrt(variance + eps)
