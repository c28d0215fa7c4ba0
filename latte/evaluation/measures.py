"""What tells two videos apart, frame by frame: squared error, SSIM, VMAF; and how much a video moves and flickers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import imageio_ffmpeg
import numpy as np

from latte.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

LUMA = np.array([0.299, 0.587, 0.114])  # of BT.601, for R, G and B
SMALLEST = {"ssim": 11, "vmaf": 17}  # pixels: the window of SSIM; with fewer, libvmaf crashes
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()
# The low-pass filter in front of VMAF's motion feature; sums to 1.
_BLUR = np.array([0.054488685, 0.244201342, 0.402619947, 0.244201342, 0.054488685])


def luma(frame: np.ndarray) -> np.ndarray:
    """Return the luma (H, W) float64, from 0 to 255, of a frame (H, W, 3) uint8."""
    return frame @ LUMA


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean squared error of two frames (H, W, 3) uint8, over pixels and channels."""
    return float(np.square(a.astype(np.int32) - b).mean())


def psnr(error: float) -> float:
    """Return 10 log10(255^2 / mean squared error) in dB; infinite for no error."""
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the SSIM of two lumas (H, W), each 11 pixels or more in height and width.

    As Wang et al. (2004): a Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, population
    variances, the mean over all places where the window fits.
    """
    mean_a, mean_b, square_a, square_b, product = (_filtered(x, _WINDOW) for x in (a, b, a * a, b * b, a * b))
    both, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    variances, covariance = square_a + square_b - squares, product - both
    return float(((2 * both + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))).mean())


def flicker(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of neighbouring frames (H, W, 3) uint8, from 0 to 255.

    Temporal flickering of VBench (Huang et al., 2024) is 1 - its mean over a video / 255.
    """
    return float(np.abs(a.astype(np.int16) - b).mean())


def blurred(a: np.ndarray) -> np.ndarray:
    """Return a luma (H, W), mirrored at its borders, behind the filter of VMAF's motion feature."""
    return _filtered(np.pad(a, 2, mode="reflect" if min(a.shape) > 2 else "edge"), _BLUR)


def motion(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of the `blurred` lumas of neighbouring frames: VMAF's motion feature.

    Noise and fine flicker are mostly filtered out, so what moves is left.
    """
    return float(np.abs(a - b).mean())


def _filtered(x: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the convolution of (H, W) with a symmetric window (N,) along both axes, (H - N + 1, W - N + 1)."""
    for _ in range(2):
        x = x.T
        out = x[: len(x) - len(window) + 1] * window[0]
        for k in range(1, len(window)):
            out += x[k : k + len(out)] * window[k]
        x = out
    return x


class Vmaf:
    """VMAF of pairs of frames, by the libvmaf of ffmpeg and its model for 1080p, vmaf_v0.6.1."""

    def __init__(self, folder: Path, height: int, width: int):
        """Start ffmpeg; raises UserError if it is not there or has no libvmaf. Its log goes to `folder`."""
        self._folder, self._count = folder, 0
        # One pipe carries both: B below A. VMAF looks at luma only, so the planes may keep their size, odd or even.
        cut = "[{0}]crop={1}:{2}:0:{3},format=yuv444p[{4}]"
        graph = ";".join(
            (
                "split[x][y]",
                cut.format("x", width, height, 0, "a"),
                cut.format("y", width, height, height, "b"),
                f"[b][a]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads={min(8, os.cpu_count() or 1)}",
            )
        )
        self._errors = (folder / "ffmpeg.txt").open("wb")
        self._ffmpeg = subprocess.Popen(
            [
                *(ffmpeg_with_vmaf(), "-hide_banner", "-nostats", "-loglevel", "error"),
                *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}", "-i", "-"),
                *("-lavfi", graph, "-f", "null", "-"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd=folder,
        )

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._ffmpeg.stdin is not None  # asked for above
        return self._ffmpeg.stdin

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Give it the next frames (H, W, 3) uint8 of both; raises UserError if ffmpeg has failed."""
        try:
            self._pipe.write(a.tobytes() + b.tobytes())
        except OSError:
            self._fail()
        self._count += 1

    def scores(self) -> list[float]:
        """Return the score of each frame, 0 to 100; raises UserError if ffmpeg has failed.

        libvmaf compares a frame's motion with that of its predecessor, so the first one of a video gets 97.4 at most.
        """
        with contextlib.suppress(OSError):
            self._pipe.close()
        log = self._folder / "vmaf.json"
        if self._ffmpeg.wait() or not log.is_file():
            self._fail()
        found = [frame["metrics"]["vmaf"] for frame in json.loads(log.read_text(encoding="utf-8"))["frames"]]
        if len(found) != self._count:
            self._fail()
        return found

    def close(self) -> None:
        """End ffmpeg if it still runs."""
        self._ffmpeg.kill()
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._ffmpeg.wait()
        self._errors.close()

    def _fail(self) -> NoReturn:
        code = self._ffmpeg.wait()
        said = (self._folder / "ffmpeg.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(
            f"libvmaf of {ffmpeg_with_vmaf()} failed ({said[-1] if said else f'exit code {code}'}); leave vmaf out of "
            "--metrics"
        )


@contextlib.contextmanager
def measuring_vmaf(height: int, width: int) -> Iterator[Vmaf]:
    """Yield a Vmaf for frames of this size, which ends with the block; raises UserError as it does."""
    with tempfile.TemporaryDirectory(prefix="latte-vmaf-") as folder:
        vmaf = Vmaf(Path(folder), height, width)
        try:
            yield vmaf
        finally:
            vmaf.close()


@functools.lru_cache(maxsize=1)
def ffmpeg_with_vmaf() -> str:
    """Return the path of ffmpeg; raises UserError if it is not there or has no libvmaf."""
    remedy = "leave vmaf out of --metrics, or unset IMAGEIO_FFMPEG_EXE and reinstall imageio-ffmpeg"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [program, "-hide_banner", "-filters"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"VMAF needs ffmpeg, which cannot be run ({reason(error)}); {remedy}") from error
    if " libvmaf " not in listed:
        raise UserError(f"{program} was built without libvmaf, which VMAF needs; {remedy}")
    return program
