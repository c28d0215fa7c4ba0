"""Read a video at one rate and size through ffmpeg's program, and ask its scene filter where another scene begins."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np

from latte.errors import UserError, quoted
from latte.io.video_file import CONTAINERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_SCORE = "lavfi.scene_score"
_TICKS = 90000  # per second, of the times that the filters see
_CLOCK = f"settb=1/{_TICKS}"


def find_scenes(path: Path, fps: float, side: int, threshold: float, most: int) -> list[range]:
    """Return which of the frames that `square_frames` yields are a scene each, in order.

    A scene begins where the score of ffmpeg's scene filter, 0 to 1, is above the threshold: how much a frame of the
    video differs from the one before, where that is more than a frame earlier. Scenes of more than `most` frames
    become several of nearly the same length. Raises UserError if the video cannot be read to its end.
    """
    scored = f"select='gte(scene,0)',metadata=mode=print:key={_SCORE}:file=scores.txt"
    filters = f"{_CLOCK},{_square(side)},{scored},{_rate(fps)}"
    with tempfile.TemporaryDirectory() as folder:
        with _running(path, filters, "-f", "framecrc", "-", folder=folder) as lines:
            count = sum(not line.startswith(b"#") for line in lines)
        text = (Path(folder) / "scores.txt").read_text(encoding="ascii")
    found = re.findall(rf"pts:(-?\d+) .*\n{_SCORE}=([\d.]+)", text)
    places = [math.floor(int(time) * fps / _TICKS + 0.5) for time, _ in found]  # as the filter fps rounds
    cuts = {place - places[0] for place, (_, score) in zip(places, found, strict=True) if float(score) > threshold}
    return _split([0, *sorted(cuts & {*range(1, count)}), count], most)


def square_frames(path: Path, fps: float, side: int) -> Iterator[np.ndarray]:
    """Yield the frames of a video upright, `fps` per second, the centre of each as uint8 (side, side, 3).

    A faster video loses frames, a slower one shows some twice. Raises UserError if it cannot be read to its end.
    """
    size = side * side * 3
    with _running(path, f"{_CLOCK},{_rate(fps)},{_square(side)}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-") as pipe:
        while len(frame := pipe.read(size)) == size:
            yield np.frombuffer(frame, np.uint8).reshape(side, side, 3)


def _split(edges: list[int], most: int) -> list[range]:
    """Return the ranges between edges, those longer than `most` in several parts."""
    parts = []
    for first, end in pairwise(edges):
        inner = np.linspace(first, end, -(-(end - first) // most) + 1).astype(int).tolist()
        parts += [range(*pair) for pair in pairwise(inner)]
    return parts


def _rate(fps: float) -> str:
    return f"fps={fps:g}"


def _square(side: int) -> str:
    """Return ffmpeg's filters to square pixels, and the centre at one size."""
    return (
        "scale=w='max(2,trunc(iw*sar/2)*2)':h=ih,"
        f"scale={side}:{side}:force_original_aspect_ratio=increase:flags=area,crop={side}:{side},setsar=1"
    )


@contextlib.contextmanager
def _running(path: Path, filters: str, *output: str, folder: str | None = None) -> Iterator[IO[bytes]]:
    """Run ffmpeg, in a folder, on a file and yield what it writes; raises UserError if it fails."""
    # As in `video_file`: no list of files, no protocol but that of files.
    reading = ["-format_whitelist", CONTAINERS, "-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", *reading]
    command += ["-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough", *output]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=folder) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
            code = process.wait()
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read(4096).decode(errors="replace").strip()
        if code:
            why = quoted(said.splitlines()[-1]) if said else f"it ended with {code}"
            raise UserError(f"{path} cannot be read to its end; ffmpeg says: {why}")
