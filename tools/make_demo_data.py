"""Make a small data set of moving clouds: frame folders, videos and a table with classes and captions.

Nothing is downloaded; equal options give equal clips. Under FOLDER:
frames/<class>/<clip>/<clip>_0001.jpg ..., videos/<class>/<clip>.mp4, and demo.csv with the columns video,class,caption.
Running it again makes only the clips that are missing.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Literal

import jsonargparse
import numpy as np
from PIL import Image
from tqdm import tqdm

from latte.data.demo import CLASSES, caption, make_clip
from latte.errors import UserError, run_main
from latte.files import atomic_path
from latte.video import save_mp4

QUALITY = 95  # of the jpg files


def make(
    folder: str = "datasets/demo",
    clips: int = 300,
    num_frames: int = 40,
    size: int = 64,
    seed: int = 0,
    formats: list[Literal["frames", "mp4"]] | None = None,
) -> None:
    """Write the data set.

    Args:
        folder: where to write.
        clips: clips of each class.
        num_frames: frames a clip.
        size: pixels a side, even.
        seed: of the first clip; the others count up from it.
        formats: frames, mp4 or both, which is the default.
    """
    for name, value, least in (
        ("clips", clips, 1),
        ("num_frames", num_frames, 1),
        ("size", size, 16),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}, but must be at least {least}")
    if size % 2:
        raise UserError(f"size is {size}, but must be even")
    formats = formats or ["frames", "mp4"]
    root, rows = Path(folder), []
    with tqdm(total=clips * len(CLASSES), desc=str(root), unit="clip") as bar:
        for number in range(clips):
            for label, kind in enumerate(CLASSES):
                name = f"{kind}-{seed + number:04d}"
                _write_clip(root, kind, name, formats, (label, seed + number, num_frames, size))
                where = f"videos/{kind}/{name}.mp4" if "mp4" in formats else f"frames/{kind}/{name}"
                rows.append((where, kind, caption(label, seed + number)))
                bar.update()
    with atomic_path(root / "demo.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("video", "class", "caption"), *rows])
    print(f"{len(rows)} clips of {num_frames} frames, {size} x {size} pixels, in {root}")


def _write_clip(root: Path, kind: str, name: str, formats: list[str], clip: tuple[int, int, int, int]) -> None:
    frames_folder, video = root / "frames" / kind / name, root / "videos" / kind / f"{name}.mp4"
    wants_frames = "frames" in formats and not frames_folder.exists()
    wants_video = "mp4" in formats and not video.exists()
    if not (wants_frames or wants_video):
        return
    pixels = make_clip(*clip)
    if wants_video:
        save_mp4(pixels, video)
    if wants_frames:
        _write_frames(pixels, frames_folder, name)


def _write_frames(pixels: np.ndarray, folder: Path, name: str) -> None:
    """Write the images into a folder that gets its name when it is whole."""
    partial = folder.with_name(f".{name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for i, frame in enumerate(pixels):
            data = io.BytesIO()
            Image.fromarray(frame).save(data, format="JPEG", quality=QUALITY, subsampling=0)
            (partial / f"{name}_{i + 1:04d}.jpg").write_bytes(data.getvalue())
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error


if __name__ == "__main__":
    run_main(lambda: jsonargparse.auto_cli(make, as_positional=False, description=__doc__))
