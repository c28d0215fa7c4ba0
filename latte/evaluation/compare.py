"""The work of `latte compare`: match videos with those of a reference, measure the pairs, and show what was found."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from latte.errors import UserError
from latte.evaluation import measures
from latte.evaluation.measures import SMALLEST, Vmaf, ffmpeg_with_vmaf, flicker, measuring_vmaf, motion, psnr
from latte.io.atomic import atomic_path, check_writable
from latte.io.csv_files import write_csv
from latte.io.images import kind_of
from latte.io.listing import FRAME_SUFFIXES, GRID, VIDEO_SUFFIXES, walk
from latte.io.video import frames_of, save_png

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latte.config.compare import CompareConfig

log = logging.getLogger("latte")
FRAMES = "frames"  # the form of a video that is a folder of images
FORMS = (FRAMES, *VIDEO_SUFFIXES, *FRAME_SUFFIXES)  # where a video is there in several, the first is taken
IMAGE = re.compile(r"image-\d+-seed\d+.*")  # a video of one frame, as sample.py names it
COLUMNS = (  # of compare.csv
    *("b", "video", "frames", "psnr", "worst_frame", "worst_psnr", "ssim", "vmaf"),
    *("flicker_a", "flicker_b", "motion_a", "motion_b"),
)
SHOWN = {  # columns of the table and of the plot: metric, title, format
    "psnr": ("psnr", "PSNR dB", "{:.2f}"),
    "worst_psnr": ("psnr", "worst frame", "{:.2f}"),
    "ssim": ("ssim", "SSIM", "{:.4f}"),
    "vmaf": ("vmaf", "VMAF", "{:.2f}"),
    "flicker_a": ("flicker", "flicker A", "{:.3f}"),
    "flicker_b": ("flicker", "flicker B", "{:.3f}"),
    "motion_a": ("motion", "motion A", "{:.3f}"),
    "motion_b": ("motion", "motion B", "{:.3f}"),
}
SCORES = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "vmaf": "VMAF {:.2f}"}  # in a strip
LISTED = 20  # pairs of a B that the table shows one by one
TILE, WIDEST = 128, 2400  # pixels: the least width of a frame in a strip, and the most of all of them

Row = dict[str, Any]  # a line of compare.csv; what was not measured is None


@dataclass(frozen=True)
class Pair:
    """A video of the reference and those that are compared with it, one per B; `name` is what they share."""

    name: str
    a: Path
    others: tuple[Path, ...]
    frames: int = 0  # to compare


def match(videos: Sequence[str]) -> list[Pair]:
    """Match the videos of each B with those of the reference, the first path, by their names without suffix.

    Where they are there in several forms, one is taken that all have, frames before files. Raises UserError if a path
    is missing or empty, one is a video and another a folder of videos, or they have no names in common.
    """
    paths = [Path(path) for path in videos]
    listed = [_videos_of(path) for path in paths]
    single = [found is None for found in listed]
    if all(single):
        return [Pair(_stem(paths[0]), paths[0], tuple(paths[1:]))]
    if any(single):
        one, many = paths[single.index(True)], paths[single.index(False)]
        raise UserError(f"{one} is one video, but {many} is a folder of videos; name a video in it, or another folder")
    found = [each for each in listed if each is not None]
    names = sorted(set.intersection(*map(set, found)))
    for path, each in zip(paths[1:], found[1:], strict=True):
        if not set(each) & set(found[0]):
            raise UserError(
                f"{paths[0]} and {path} have no names in common: the first video of one is {min(found[0])}, of the "
                f"other {min(each)}; videos are matched by their names without suffix"
            )
    if not names:
        raise UserError(f"no video is there in all of {', '.join(map(str, paths))}; compare them one by one")
    for path, each in zip(paths, found, strict=True):
        if left := len(each) - len(names):
            log.warning("%d of the %d videos of %s have no partner, and are left out", left, len(each), path)
    return [_pair(name, [each[name] for each in found]) for name in names]


def _videos_of(path: Path) -> dict[str, dict[str, Path]] | None:
    """Return the videos in a folder, by name and then by form; None for a single video, be it a folder of frames."""
    if kind_of(path) != "folder":
        return None
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder, names in walk(path, (*VIDEO_SUFFIXES, *FRAME_SUFFIXES)):
        images = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
        if images and not all(IMAGE.fullmatch(name) for name in images):
            if folder == path:
                if len(images) < len(names):
                    raise UserError(f"{path} holds images beside videos; put the images into a folder of their own")
                return None
            found[folder.relative_to(path).as_posix()][FRAMES] = folder
            names = [name for name in names if name not in images]
        for name in names:
            file = folder / name
            if not name.startswith(GRID):
                found[file.relative_to(path).with_suffix("").as_posix()][file.suffix.lower()] = file
    if not found:
        raise UserError(f"the folder {path} holds no videos and no frames, such as .mp4, .gif or .png")
    return dict(found)


def _pair(name: str, forms: list[dict[str, Path]]) -> Pair:
    """Return the pair of videos that are there in these forms."""
    shared = [form for form in FORMS if all(form in each for each in forms)]
    a, *others = (
        each[shared[0]] if shared else min(each.items(), key=lambda i: FORMS.index(i[0]))[1] for each in forms
    )
    return Pair(name, a, tuple(others))


def _stem(path: Path) -> str:
    """Return the name of a video without its suffix; that of a folder may have a dot in it."""
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def check(pair: Pair, frames: int | None, metrics: Sequence[str]) -> Pair:
    """Return a pair with the number of its frames to compare, at most `frames`.

    Reads the first frame of each video. Raises UserError if one is broken, they differ in size or length, or are too
    small for a metric.
    """
    length, given = frames_of(pair.a)
    height, width = next(given).shape[:2]
    for path in pair.others:
        other_length, given = frames_of(path)
        shape = next(given).shape[:2]
        if shape != (height, width):
            raise UserError(
                f"{pair.a} is {width} x {height} pixels, but {path} is {shape[1]} x {shape[0]}; scale one of them to "
                "the size of the other with ffmpeg"
            )
        if frames is None and other_length != length:
            raise UserError(
                f"{pair.a} has {length} frames, but {path} has {other_length}; compare the first ones of each with "
                f"--frames {min(length, other_length)}, if these belong together"
            )
        length = min(length, other_length)
    if frames and length < frames:
        raise UserError(f"--frames is {frames}, but {pair.name} has only {length} frames in one of the videos")
    for metric, least in SMALLEST.items():
        if metric in metrics and min(height, width) < least:
            raise UserError(
                f"{pair.a} is {width} x {height} pixels, but {metric} needs {least} x {least}; leave {metric} out of "
                "--metrics"
            )
    return Pair(pair.name, pair.a, pair.others, frames or length)


def measure(a: Path, b: Path, frames: int, metrics: Sequence[str], bar: tqdm) -> Row:
    """Measure the first `frames` frames of two videos of one size, holding two frames of each in memory.

    Returns what COLUMNS names, without b and video; frames are numbered from 0. PSNR is that of the squared error of
    all frames, SSIM and VMAF are means over frames. `bar` counts frames. Raises UserError if a video is broken.
    """
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        vmaf: Vmaf | None = None
        before: dict[str, tuple[np.ndarray, ...]] = {}
        for pair in islice(zip(frames_of(a)[1], frames_of(b)[1], strict=False), frames):
            if "vmaf" in metrics:
                vmaf = vmaf or stack.enter_context(measuring_vmaf(*pair[0].shape[:2]))
                vmaf.add(*pair)
            lumas = tuple(map(measures.luma, pair)) if {"ssim", "motion"} & set(metrics) else ()
            smooth = tuple(map(measures.blurred, lumas)) if "motion" in metrics else ()
            if "psnr" in metrics:
                found["error"].append(measures.squared_error(*pair))
            if "ssim" in metrics:
                found["ssim"].append(measures.ssim(*lumas))
            for metric, measure_pair, now in (("flicker", flicker, pair), ("motion", motion, smooth)):
                for k, side in enumerate("ab") if metric in metrics and metric in before else ():
                    found[f"{metric}_{side}"].append(measure_pair(before[metric][k], now[k]))
                before[metric] = now
            bar.update()
        if vmaf:
            found["vmaf"] = vmaf.scores()
    errors = found.pop("error", [])
    row: Row = {name: float(np.mean(values)) for name, values in found.items()}
    if errors:
        worst = int(np.argmax(errors))
        row |= {"psnr": psnr(float(np.mean(errors))), "worst_frame": worst, "worst_psnr": psnr(errors[worst])}
    return {"frames": frames} | row


def run(cfg: CompareConfig) -> str:
    """Compare the videos that the options name, write the table, strips and plot, and return what to print.

    Raises UserError for what cannot be compared; then nothing is written.
    """
    names = labels(cfg.videos[1:])
    check_writable(cfg.output_path, "output_path")
    if "vmaf" in cfg.metrics:
        ffmpeg_with_vmaf()
    pairs = [
        check(pair, cfg.frames, cfg.metrics)
        for pair in tqdm(match(cfg.videos), "checking", unit="pair", leave=False, delay=1)
    ]
    lengths = sorted({pair.frames for pair in pairs})
    count = "1 video" if len(pairs) == 1 else f"{len(pairs)} videos"
    head = f"A: {cfg.videos[0]}, {count} of {' to '.join(map(str, lengths[:: max(1, len(lengths) - 1)]))} frames"
    if cfg.dry_run:
        return "\n".join([head, *(f"{name}: {path}" for name, path in zip(names, cfg.videos[1:], strict=True))])
    rows = []
    total = len(names) * sum(pair.frames for pair in pairs)
    with tqdm(total=total, desc="comparing", unit="frame", leave=False) as bar:
        for k, name in enumerate(names):
            rows += [
                {"b": name, "video": pair.name} | measure(pair.a, pair.others[k], pair.frames, cfg.metrics, bar)
                for pair in pairs
            ]
    folder = Path(cfg.output_path)
    written = [folder / "compare.csv"]
    write_csv(written[0], COLUMNS, rows)
    of_pair: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_pair[row["video"]].append(row)
    lowest = sorted(pairs, key=lambda pair: sum(row.get("psnr", 0) for row in of_pair[pair.name]))
    for number, pair in enumerate(lowest[: cfg.strips], 1):
        written.append(folder / f"strip-{number}.png")
        save_png(strip(pair, of_pair[pair.name], cfg), written[-1])
    if len(names) > 1:
        written.append(plot(rows, folder / "compare.png", head))
    return "\n".join([head, *table(rows), *map(str, written)])


def labels(paths: Sequence[str]) -> list[str]:
    """Return the ends of paths by which they are told apart; raises UserError if one is named twice."""
    parts = [Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise UserError(f"{twice} is named twice among the B; name it once")
    ends = ([own[-count:] for own in parts] for count in range(1, max(map(len, parts)) + 1))
    return ["/".join(own) for own in next(found for found in ends if len(set(found)) == len(found))]


def means(rows: Sequence[Row]) -> Row:
    """Return the mean of each column of numbers over rows; those that were not measured are left out."""
    columns = {name: [row[name] for row in rows if name in row] for name in SHOWN}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table for each B, of at most LISTED pairs and their mean, and one of the means of all B."""
    of_b: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_b[row["b"]].append(row)
    lines: list[str] = []
    if len(rows) == len(of_b):
        return ["", *_aligned("B", [row | {"video": row["b"]} for row in rows]), ""]
    for name, own in of_b.items():
        listed = own if len(own) <= LISTED else sorted(own, key=lambda row: row.get("psnr", 0))[:LISTED]
        mean = {"video": f"mean of {len(own)}"} | means(own)
        lowest = f" (the {LISTED} pairs with the lowest PSNR)" if len(own) > LISTED and "psnr" in own[0] else ""
        lines += ["", *_aligned(f"B: {name}{lowest}", [*listed, mean])]
    if len(of_b) > 1:
        lines += ["", *_aligned("means", [{"video": name} | means(own) for name, own in of_b.items()])]
    return [*lines, ""]


def _aligned(head: str, rows: Sequence[Row]) -> list[str]:
    """Return rows as lines, below a line of titles; the first column is called `head`."""
    columns = [name for name in SHOWN if any(name in row for row in rows)]
    cells = [[head, *(SHOWN[name][1] for name in columns)]]
    for row in rows:
        shown = [SHOWN[name][2].format(row[name]) if name in row else "-" for name in columns]
        if "worst_frame" in row and math.isfinite(row["worst_psnr"]):
            at = columns.index("worst_psnr")
            shown[at] = f"{shown[at]} (#{row['worst_frame']})"
        cells.append([row["video"], *shown])
    first, *others = [len(max(column, key=len)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in cells
    ]


def strip(pair: Pair, rows: Sequence[Row], cfg: CompareConfig) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 of a pair: frames of A, then of each B and its amplified difference from A.

    rows: those of the pair, one per B. The frames are evenly spaced, and the one with the lowest PSNR of all is added.
    """
    lowest = min(rows, key=lambda row: row.get("worst_psnr", math.inf))
    worst = lowest["worst_frame"] if lowest.get("worst_psnr", math.inf) < math.inf else 0
    spaced = np.linspace(0, pair.frames - 1, min(cfg.strip_frames, pair.frames)).round().astype(int).tolist()
    numbers = sorted({*spaced, worst})
    a = _at(pair.a, numbers)
    heads = [f"frame {number}{', worst' if worst and number == worst else ''}" for number in numbers]
    name = "" if pair.a == Path(cfg.videos[0]) else f", {pair.name}"
    bands: list[tuple[str, np.ndarray]] = [(f"A: {cfg.videos[0]}{name}", a)]
    for path, row in zip(pair.others, rows, strict=True):
        b = _at(path, numbers)
        difference = np.abs(a.astype(np.float32) - b) * cfg.amplify
        scores = ", ".join(text.format(row[key]) for key, text in SCORES.items() if key in row)
        bands += [
            (f"B: {row['b']}{': ' if scores else ''}{scores}", b),
            (f"|A - B| x {cfg.amplify:g}", np.clip(difference, 0, 255).astype(np.uint8)),
        ]
    return _drawn(heads, bands)


def _at(path: Path, numbers: Sequence[int]) -> np.ndarray:
    """Return the frames (N, H, W, 3) of a video at these places, in rising order."""
    wanted = set(numbers)
    frames: Iterator[np.ndarray] = islice(frames_of(path)[1], numbers[-1] + 1)
    return np.stack([frame for number, frame in enumerate(frames) if number in wanted])


def _drawn(heads: Sequence[str], bands: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return rows of frames, each below its text, as one image (H, W, 3); `heads` stand above the columns."""
    import matplotlib  # takes a while to import; has a font with more letters than Pillow's

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 13)
    height, width = bands[0][1].shape[1:3]
    scale = min(max(1, math.ceil(TILE / width)), max(1, WIDEST // (len(heads) * width)))
    size = (scale * width, scale * height)
    if len(heads) * size[0] > WIDEST:
        across = max(TILE // 2, WIDEST // len(heads))
        size = (across, max(1, round(height * across / width)))
    gap, line = 4, 20
    widest = max([font.getlength(text) for text, _ in bands], default=0)
    column = max(size[0], *(math.ceil(font.getlength(head)) for head in heads)) + gap
    canvas = Image.new(
        "RGB",
        (max(len(heads) * column, math.ceil(widest)) + gap, line + len(bands) * (line + size[1] + gap)),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    resample = Image.Resampling.NEAREST if size[0] >= width else Image.Resampling.LANCZOS
    for k, head in enumerate(heads):
        draw.text((gap + k * column, 2), head, "black", font)
    for row, (text, frames) in enumerate(bands):
        top = line + row * (line + size[1] + gap)
        draw.text((gap, top + 2), text, "black", font)
        for k, frame in enumerate(frames):
            canvas.paste(Image.fromarray(frame).resize(size, resample), (gap + k * column, top + line))
    return np.asarray(canvas)


def plot(rows: Sequence[Row], path: Path, title: str) -> Path:
    """Draw a panel per metric, with the pairs of each B as points and their mean as a line; return the image's path."""
    from matplotlib.figure import Figure  # takes a second to import; draws without a display

    names = list(dict.fromkeys(row["b"] for row in rows))
    shown = [
        name
        for name in SHOWN
        if name not in ("flicker_a", "motion_a", "worst_psnr") and any(name in row for row in rows)
    ]
    figure = Figure(figsize=(max(4, 1 + 0.75 * len(names)) * len(shown), 4.5), layout="constrained")
    figure.suptitle(title)
    for panel, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for k, name in enumerate(names):
            own = [row[column] for row in rows if row["b"] == name and math.isfinite(row.get(column, math.inf))]
            panel.plot([k] * len(own), own, ".", color="C0", alpha=max(0.1, 1 / max(1, len(own)) ** 0.5))
            if own:
                mean = float(np.mean(own))
                panel.plot(k, mean, "_", color="C0", markersize=18, markeredgewidth=2)
                panel.annotate(
                    f" {SHOWN[column][2].format(mean)}", (k, mean), xytext=(9, 0), textcoords="offset points"
                )
            elif any(row.get(column) for row in rows if row["b"] == name):
                panel.text(k, 0.5, "equal", transform=panel.get_xaxis_transform(), ha="center")
        if column.endswith("_b"):
            panel.axhline(means(rows)[column.replace("_b", "_a")], color="C1", linestyle="--", label="A")
            panel.legend()
        panel.set_title(SHOWN[column][1].removesuffix(" B"))
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
        panel.set_xlim(-0.5, len(names))
        panel.margins(y=0.15)
        panel.grid(axis="y", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
