"""Draw a small data set of moving clouds: frame folders, videos, and a table with classes and captions.

Nothing is downloaded; the same options give the same clips. The files below the folder:

    frames/<class>/<clip>/<clip>_0001.jpg ...
    videos/<class>/<clip>.mp4
    demo.csv with the columns video,class,caption
    clip/ with text_encoder: a random text encoder, which tells the captions apart but knows no words

Running it again draws only the clips that are missing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from latte.config.parser import OptionError, Options, in_range, option, parse_config
from latte.data.demo import CLASSES, caption, clip_name, make_clip, write_frames
from latte.data.demo_clip import write_demo_clip
from latte.errors import UserError
from latte.io.csv_files import write_csv
from latte.io.video import read_frames, read_video, save_mp4

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Demo data"""

    folder: str = option("datasets/demo", "folder to write to")
    clips: int = option(300, "clips per class")
    num_frames: int = option(40, "frames per clip")
    size: int = option(64, "width and height in pixels, an even number")
    seed: int = option(0, "seed of the first clip of each class; the next clips count up from it")
    formats: list[Literal["frames", "mp4"]] = option(["frames", "mp4"], "what to write")
    text_encoder: bool = option(
        False, "also write clip/, a text encoder with random weights: enough to tell the captions apart, nothing more"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("clips", 1), ("num_frames", 1), ("size", 16), ("seed", 0)):
            in_range(self, key, least)
        if self.size % 2:
            raise OptionError("size", self.size, "even")
        if not self.formats:
            raise OptionError("formats", self.formats, "frames, mp4 or both")


def make(settings: Settings) -> None:
    """Write the data set; raises UserError if it cannot be written, or the folder has clips of another shape."""
    root, rows, seeds = Path(settings.folder), [], range(settings.seed, settings.seed + settings.clips)
    _check_shape(root, settings)
    with tqdm(total=settings.clips * len(CLASSES), desc=str(root), unit="clip") as bar:
        for seed in seeds:
            for label, kind in enumerate(CLASSES):
                name = clip_name(label, seed)
                _write_clip(root, kind, name, settings.formats, (label, seed, settings.num_frames, settings.size))
                where = f"videos/{kind}/{name}.mp4" if "mp4" in settings.formats else f"frames/{kind}/{name}"
                rows.append((where, kind, caption(label, seed)))
                bar.update()
    write_csv(root / "demo.csv", ("video", "class", "caption"), rows)
    if settings.text_encoder and not (root / "clip").exists():
        write_demo_clip(root / "clip")
    side = settings.size
    print(f"{len(rows)} clips of {settings.num_frames} frames, {side} x {side} pixels, in {root}")


def _check_shape(root: Path, settings: Settings) -> None:
    """Raise UserError if an existing clip, one per format, has another length or size."""
    there: list[tuple[Path | None, Callable[[Path], np.ndarray]]] = [
        (next(root.glob("frames/*/[!.]*"), None), read_frames),
        (next(root.glob("videos/*/[!.]*.mp4"), None), read_video),
    ]
    for path, read in there:
        frames, side = read(path).shape[:2] if path else (settings.num_frames, settings.size)
        if (frames, side) != (settings.num_frames, settings.size):
            raise UserError(
                f"{path} has {frames} frames of {side} x {side} pixels; "
                f"pass --num_frames {frames} --size {side}, or another --folder"
            )


def _write_clip(root: Path, kind: str, name: str, formats: Sequence[str], clip: tuple[int, int, int, int]) -> None:
    frames_folder, video = root / "frames" / kind / name, root / "videos" / kind / f"{name}.mp4"
    wants_frames = "frames" in formats and not frames_folder.exists()
    wants_video = "mp4" in formats and not video.exists()
    if not (wants_frames or wants_video):
        return
    pixels = make_clip(*clip)
    if wants_video:
        save_mp4(pixels, video)
    if wants_frames:
        write_frames(pixels, frames_folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, draw the clips, and write them."""
    make(parse_config(Settings, argv, __doc__))
