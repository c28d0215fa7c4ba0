"""Read frames and video files, write mp4, gif and png, and lay videos out as a grid; uint8 (F, H, W, 3) throughout."""

from __future__ import annotations

import os
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from latte.errors import UserError
from latte.io.atomic import atomic_path, whole_folder
from latte.io.images import kind_of, read_animation, read_image
from latte.io.listing import FRAME_SUFFIXES, is_litter
from latte.io.pixels import as_frames
from latte.io.video_file import VideoFile, read_comment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_H264 = ("libx264", ["-crf", "14", "-movflags", "+faststart"])  # visually lossless; plays while it loads
_COMMENT = "Comment"  # the key of a png's text
_CODECS = {
    ".mp4": _H264,
    ".mov": _H264,
    ".mkv": ("libx264", ["-crf", "14"]),
    ".webm": ("libvpx-vp9", ["-crf", "16", "-b:v", "0"]),
}


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


def save_mp4(frames: np.ndarray, path: str | Path, fps: float = 8, comment: str = "") -> None:
    """Write an H.264 file of exactly the frames' size; by the suffix also .mov, .mkv, and VP9 for .webm.

    frames: uint8 (F, H, W, 3). `comment_of` reads the comment. Raises UserError if the file cannot be written.
    """
    _check_frames(frames)
    codec, options = _CODECS[Path(path).suffix.lower()]
    options = [*options, "-metadata", f"comment={comment}"] if comment else options
    # Players everywhere know 4:2:0, which halves the colour planes and so needs even sizes; 4:4:4 takes the odd ones.
    even = frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    with atomic_path(path) as temporary:
        iio.imwrite(
            temporary,
            frames,
            plugin="FFMPEG",
            extension=Path(path).suffix.lower(),
            fps=float(fps),
            codec=codec,
            pixelformat="yuv420p" if even else "yuv444p",
            quality=None,
            output_params=options,
            macro_block_size=1,  # or imageio scales the frames to a multiple of 16
            ffmpeg_log_level="error",
        )
        _check_written(temporary, len(frames))


def _check_written(path: Path, frames: int) -> None:
    """Raise OSError if a file does not hold so many frames: imageio does not tell how ffmpeg ended."""
    try:
        with av.open(str(path)) as container:
            found = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except (av.FFmpegError, IndexError):
        found = 0
    if found != frames:
        raise OSError(f"the encoder wrote {found} of {frames} frames")


def save_gif(frames: np.ndarray, path: str | Path, fps: float = 8, loop: int = 0, comment: str = "") -> None:
    """Write an animated gif of 256 colours per frame, played `loop` times; 0 = for ever.

    frames: uint8 (F, H, W, 3); a frame equal to the one before it is stored as a longer pause.
    Raises UserError if the file cannot be written.
    """
    _check_frames(frames)
    # A gif counts in hundredths of a second: rounding the times, not the pauses, keeps the speed right.
    times = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    images = [Image.fromarray(frame) for frame in frames]
    try:
        with atomic_path(path) as temporary:
            images[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=images[1:],
                duration=(np.diff(times) * 10).tolist(),
                loop=loop,
                **({"comment": comment.encode()} if comment else {}),
            )
    except OverflowError:
        raise UserError(f"a frame of {path} would stay for more than a gif's 655 seconds; raise fps") from None


def save_png(image: np.ndarray, path: str | Path, comment: str = "") -> None:
    """Write an image (H, W, 3) uint8; raises UserError if the file cannot be written."""
    with atomic_path(path) as temporary:
        _write_png(image, temporary, comment)


def _write_png(image: np.ndarray, path: Path, comment: str) -> None:
    chunks = PngInfo()
    if comment:
        chunks.add_text(_COMMENT, comment)
    Image.fromarray(image).save(path, format="PNG", pnginfo=chunks)


def save_png_frames(frames: np.ndarray, folder: str | Path, comment: str = "") -> None:
    """Write `folder`/frame_0000.png and so on, all or none, in place of such files of an earlier video.

    frames: uint8 (F, H, W, 3). Other files in the folder stay. Raises UserError if a file cannot be written.
    """
    _check_frames(frames)
    with whole_folder(folder, _is_frame) as temporary:
        for i, frame in enumerate(frames):
            _write_png(frame, temporary / f"frame_{i:04d}.png", comment)


def _is_frame(path: Path) -> bool:
    return re.fullmatch(r"frame_[0-9]+\.png", path.name) is not None


def save_video(
    frames: np.ndarray, path: str | Path, formats: Sequence[str] = ("mp4",), fps: int = 8, comment: str = ""
) -> list[Path]:
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
            save_mp4(frames, target, fps, comment)
        elif name == "gif":
            save_gif(frames, target, fps, comment=comment)
        else:
            save_png_frames(frames, target, comment)
        written.append(target)
    return written


def comment_of(path: str | Path) -> str:
    """Return the comment in a file that was written here, of a folder in its first frame; "" if there is none."""
    path = Path(path)
    if path.is_dir():
        path /= "frame_0000.png"
    if path.suffix == ".mp4":
        return read_comment(path)
    try:
        with Image.open(path, formats=("PNG", "GIF")) as image:
            comment = image.info.get(_COMMENT, image.info.get("comment", ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # missing, or damaged
        return ""
    return comment.decode(errors="replace") if isinstance(comment, bytes) else comment


def export_to_gif(frames: Any, path: str | Path | None = None, fps: float = 8) -> Path:
    """Write one video as an animated gif, and return its path; without one, a temporary file. See `export_to_video`."""
    pixels = as_frames(frames)
    _check_target(path, (".gif",), fps, 100)  # a gif counts in hundredths of a second
    path = _or_temporary(path, ".gif")
    save_gif(pixels, path, fps)
    return path


def export_to_video(frames: Any, path: str | Path | None = None, fps: float = 8) -> Path:
    """Write one video in the format of the path's suffix, and return the path; without one, a temporary mp4.

    frames: what `as_frames` takes. Suffixes: .mp4, .mov, .mkv (H.264), .webm (VP9), .gif. Raises UserError, before
    anything is written, if frames, suffix or rate are none that can be written; or if the file cannot be.
    """
    pixels = as_frames(frames)
    if path is not None and Path(path).suffix.lower() == ".gif":
        return export_to_gif(pixels, path, fps)
    _check_target(path, (*_CODECS, ".gif"), fps, 1000)
    path = _or_temporary(path, ".mp4")
    save_mp4(pixels, path, fps)
    return path


def _check_target(path: str | Path | None, suffixes: tuple[str, ...], fps: Any, most: int) -> None:
    if path is not None and Path(path).suffix.lower() not in suffixes:
        kind = f"the suffix {Path(path).suffix!r}" if Path(path).suffix else "no suffix"
        raise UserError(f"{path} has {kind}, which tells the format; name a file that ends in {', '.join(suffixes)}")
    if not hasattr(fps, "__float__") or not 0 < fps <= most:
        raise UserError(f"fps is {fps}, but must be above 0 and at most {most}")


def _or_temporary(path: str | Path | None, suffix: str) -> Path:
    if path is not None:
        return Path(path)
    handle, name = tempfile.mkstemp(prefix="latte-", suffix=suffix)
    os.close(handle)
    return Path(name)


def read_any(path: str | Path) -> np.ndarray:
    """Read an image, a video file, or a folder of frames.

    Returns uint8 (F, H, W, 3). Raises UserError if it is missing, broken or empty.
    """
    kind = kind_of(path)
    if kind == "folder":
        return read_frames(path)
    if kind == "image":
        return read_image(path)[None]
    return read_animation(path) if kind == "animation" else read_video(path)


def frames_of(path: str | Path) -> tuple[int, Iterator[np.ndarray]]:
    """Return how many frames `read_any` would read, and an iterator over them, each uint8 (H, W, 3).

    Only an animated webp or png is in memory as a whole. Raises UserError as `read_any` does, here or while reading.
    """
    kind = kind_of(path)
    if kind == "video":
        video = VideoFile(Path(path))
        return video.length, iter(video)
    if kind == "folder":
        paths = list_frames(path)
        return len(paths), _each_image(paths)
    frames = read_any(path)
    return len(frames), iter(frames)


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
    """Return the images directly in a folder, in order of the integer at the end of their names.

    Raises UserError if the folder cannot be read or holds no image, or the names do not tell one order.
    """
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(FRAME_SUFFIXES) and not is_litter(entry.name) and not entry.is_dir()
            ]
    except OSError as error:
        raise UserError(f"cannot read the folder of frames {folder}: {error.strerror}") from error
    if not names:
        raise UserError(f"the folder {folder} holds no frames ({', '.join(FRAME_SUFFIXES)})")
    return [Path(folder) / name for name in _in_order(folder, names)]


def _in_order(folder: str | Path, names: list[str]) -> list[str]:
    """Sort names of frames by the integer at their end; raises UserError if one has none or the order is not clear."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        if not re.search(r"[0-9]$", stem):
            raise UserError(f"{Path(folder) / name} has no frame number at the end of its name")
        numbers[name] = [int(digits) for digits in re.findall(r"[0-9]+", stem)]
    decimals = {len(match[1]) for name in names if (match := re.search(r"[0-9]\.([0-9]+)\.[^.]+$", name))}
    if len(decimals) > 1:
        raise UserError(
            f"the frames of {folder} are named by decimal fractions, such as {names[0]}; number them 0, 1, 2"
        )
    names = sorted(names, key=lambda name: numbers[name][-1])
    for name, later in pairwise(names):
        if numbers[name][-1] == numbers[later][-1]:
            raise UserError(f"{Path(folder) / name} and {later} have the same frame number; a folder holds one video")
        # 20240101_235959.png and 20240102_000001.png, or seconds: 0.75.png and 1.5.png.
        if len(numbers[name]) == len(numbers[later]) and numbers[name] > numbers[later]:
            raise UserError(
                f"{Path(folder) / later} comes after {name} by the last number of its name, but before it by those in "
                "front of that; name frames by one number"
            )
    return names


def read_frames(folder: str | Path, indices: Sequence[int] | None = None) -> np.ndarray:
    """Read the images of `list_frames`, or only those at `indices`.

    Returns uint8 (F, H, W, 3). Raises UserError if an image is missing, broken, or of another size than the first.
    """
    paths = list_frames(folder)
    if indices is not None:
        if len(indices) == 0 or max(indices) >= len(paths):
            raise UserError(f"the folder {folder} holds {len(paths)} frames, not those at {list(indices)}")
        paths = [paths[i] for i in indices]
    return read_images(paths)


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """Read images of one size as uint8 (F, H, W, 3); raises UserError if one is missing, broken, or of another size."""
    return np.stack(list(_each_image(paths)))


def _each_image(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield images of one size as uint8 (H, W, 3); raises UserError as `read_images` does."""
    shape = None
    for path in paths:
        frame = read_image(path, "frame")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise UserError(f"the frame {path} has another size than {paths[0].name}")
        yield frame


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
