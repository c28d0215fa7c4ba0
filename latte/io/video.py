"""Read frames and video files, write mp4, gif and png, and lay videos out as a grid; uint8 (F, H, W, 3) throughout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageOps

from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.io.video_file import VideoFile

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Turn pixels in [-1, 1] into bytes, rounded and clamped as the official sampler does.

    x: float (..., C, H, W). Returns uint8 (..., H, W, C). Raises UserError if a value is not finite.
    """
    x = np.asarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise UserError("the decoded video holds values that are not finite; try --dtype fp32")
    # The same order of operations as in the official code, and then a truncation: a half rounds up.
    scaled = np.clip((x * 0.5 + 0.5) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(scaled, -3, -1))


def save_mp4(frames: np.ndarray, path: str | Path, fps: int = 8) -> None:
    """Write an H.264 file of exactly the frames' size.

    frames: uint8 (F, H, W, 3). Raises UserError if the file cannot be written.
    """
    _check_frames(frames)
    # Players everywhere know 4:2:0, which halves the colour planes and so needs even sizes; 4:4:4 takes the odd ones.
    even = frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    with atomic_path(path) as temporary:
        iio.imwrite(
            temporary,
            frames,
            plugin="FFMPEG",
            extension=".mp4",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p" if even else "yuv444p",
            quality=None,
            output_params=["-crf", "14", "-movflags", "+faststart"],  # visually lossless; plays while it loads
            macro_block_size=1,  # or imageio scales the frames to a multiple of 16
            ffmpeg_log_level="error",
        )


def save_gif(frames: np.ndarray, path: str | Path, fps: int = 8, loop: int = 0) -> None:
    """Write an animated gif of 256 colours per frame, played `loop` times; 0 = for ever.

    frames: uint8 (F, H, W, 3); a frame equal to the one before it is stored as a longer pause.
    Raises UserError if the file cannot be written.
    """
    _check_frames(frames)
    # A gif counts in hundredths of a second: rounding the times, not the pauses, keeps the speed right.
    times = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    images = [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=(np.diff(times) * 10).tolist(),
            loop=loop,
        )


def save_png_frames(frames: np.ndarray, folder: str | Path) -> None:
    """Write `folder`/frame_0000.png and so on, and remove such files of a longer, earlier video.

    frames: uint8 (F, H, W, 3). Raises UserError if a file cannot be written.
    """
    _check_frames(frames)
    for i, frame in enumerate(frames):
        with atomic_path(Path(folder) / f"frame_{i:04d}.png") as temporary:
            Image.fromarray(frame).save(temporary, format="PNG")
    for path in Path(folder).glob("frame_*.png"):
        number = path.stem.removeprefix("frame_")
        if number.isdecimal() and int(number) >= len(frames):
            path.unlink()


def save_video(frames: np.ndarray, path: str | Path, formats: Sequence[str] = ("mp4",), fps: int = 8) -> list[Path]:
    """Write a video in each of the formats and return where: `path`.mp4, `path`.gif, and the folder `path` for png.

    frames: uint8 (F, H, W, 3). Raises UserError for an unknown format, or if a file cannot be written.
    """
    unknown = sorted(set(formats) - {"mp4", "gif", "png"})
    if unknown:
        raise UserError(f"video format {unknown[0]!r} is not known; choose from mp4, gif and png")
    written = []
    for name in formats:
        target = Path(path) if name == "png" else Path(f"{path}.{name}")
        if name == "mp4":
            save_mp4(frames, target, fps)
        elif name == "gif":
            save_gif(frames, target, fps)
        else:
            save_png_frames(frames, target)
        written.append(target)
    return written


def export_to_gif(frames: Sequence[Image.Image] | np.ndarray, path: str | Path, fps: int = 8) -> Path:
    """Write one video of a pipeline, in whatever form it returned it, as an animated gif, and return the path.

    frames: PIL images, float (F, H, W, 3) from 0 to 1, or uint8. Raises UserError if the file cannot be written.
    """
    save_gif(_as_bytes(frames), path, fps)
    return Path(path)


def export_to_video(frames: Sequence[Image.Image] | np.ndarray, path: str | Path, fps: int = 8) -> Path:
    """Write one video of a pipeline as an H.264 mp4, and return the path; otherwise as `export_to_gif`."""
    save_mp4(_as_bytes(frames), path, fps)
    return Path(path)


def _as_bytes(frames: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
    array = np.stack([np.asarray(frame) for frame in frames])
    return array if array.dtype == np.uint8 else (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8)


def read_any(path: str | Path) -> np.ndarray:
    """Read an image, a video file, or a folder of frames.

    Returns uint8 (F, H, W, 3). Raises UserError if it is missing, broken or empty.
    """
    path = Path(path)
    if path.is_dir():
        return read_frames(path)
    if path.suffix.lower() not in FRAME_SUFFIXES:
        return read_video(path)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        raise UserError(f"cannot read the image {path}; it is missing, broken, or not an image") from error


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames (F, H, W, 3) uint8 at another size, cut at the centre to its aspect ratio."""
    images = [ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def grid(videos: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lay N videos out in rows of `columns`, `gap` black pixels apart; unused places are black.

    videos: uint8 (N, F, H, W, 3). Returns uint8 (F, rows * (H + gap) - gap, columns * (W + gap) - gap, 3).
    """
    n, frames, height, width, channels = videos.shape
    rows = -(-n // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    canvas = np.zeros((frames, *size, channels), dtype=videos.dtype)
    for i, video in enumerate(videos):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = video
    return canvas


def read_video(path: str | Path) -> np.ndarray:
    """Read a whole video file.

    Returns uint8 (F, H, W, 3). Raises UserError if it is missing, broken or empty.
    """
    video = VideoFile(Path(path))
    return video.read(range(video.length))


def list_frames(folder: str | Path) -> list[Path]:
    """Return the images directly in a folder, in order of the integer after the last `_` of their names.

    Raises UserError if the folder cannot be read, holds no image, or one has no such number.
    """
    try:
        paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    except OSError as error:
        raise UserError(f"cannot read the folder of frames {folder}: {error.strerror}") from error
    if not paths:
        raise UserError(f"the folder {folder} holds no frames ({', '.join(FRAME_SUFFIXES)})")
    for path in paths:
        if not _frame_number(path):
            raise UserError(f"{path} has no frame number after the last _ of its name")
    return sorted(paths, key=lambda path: int(_frame_number(path)))


def read_frames(folder: str | Path, indices: Sequence[int] | None = None) -> np.ndarray:
    """Read the images of `list_frames`, or only those at `indices`.

    Returns uint8 (F, H, W, 3). Raises UserError if an image is missing, broken, or of another size than the first.
    """
    paths = list_frames(folder)
    if indices is not None:
        if len(indices) == 0 or max(indices) >= len(paths):
            raise UserError(f"the folder {folder} holds {len(paths)} frames, not those at {list(indices)}")
        paths = [paths[i] for i in indices]
    frames = []
    for path in paths:
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            raise UserError(f"cannot read the frame {path}; it is broken or not an image") from error
        if frames[-1].shape != frames[0].shape:
            raise UserError(f"the frame {path} has another size than {paths[0].name}")
    return np.stack(frames)


def _frame_number(path: Path) -> str:
    """The digits after the last `_`, or "" if there are none."""
    match = re.search(r"_(\d+)$", path.stem)
    return match[1] if match else ""


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
