"""Make a folder of training clips from videos of any size, rate and rotation: `latte prepare`.

    <target>/clips/<path of a video>/0000.mp4 ...   its scenes, and video.json: what they were made from, and how
    <target>/clips.csv                              one line per clip, with a column for captions
    <target>/latte.yaml                             options for train.py and embedding_cache.py
    <target>/contact.html                           frames of every clip, to look at

The folder of a video is whole or not there, so a run that was ended goes on with the next video.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from latte.config.parser import FOLDER_OPTIONS
from latte.data.demo import write_frames
from latte.errors import UserError
from latte.io import html_page
from latte.io.atomic import atomic_folder, atomic_path, check_writable, sync
from latte.io.csv_files import write_csv
from latte.io.json_files import read_json
from latte.io.listing import VIDEO_SUFFIXES, files_below
from latte.io.scenes import find_scenes, square_frames
from latte.io.video import fit, frames_of, save_mp4
from latte.io.video_file import VideoFile, read_rate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latte.config.prepare import PrepareConfig

log = logging.getLogger("latte")
TABLE, SHEET, FACTS = "clips.csv", "contact.html", "video.json"
COLUMNS = ("video", "caption", "source", "first_second", "seconds")
SHOWN = 500  # clips on the sheet
THUMBNAIL = 96  # pixels
NAMED = 20  # problems that are printed


@dataclass(frozen=True)
class Clip:
    """A clip: its path below the target, and the frames of its source that it shows, at the rate of the clips."""

    path: str
    source: str
    frames: range


def prepare(cfg: PrepareConfig) -> str:
    """Make the clips that are missing, and return what was done; raises UserError if no video gives a clip."""
    videos = _videos(cfg)
    captions = _captions(cfg.target / TABLE)
    _check_settings(cfg)
    clips: list[Clip] = []
    problems: dict[str, str] = {}
    notes: dict[str, str] = {}
    with tqdm(videos, desc="videos", unit="video") as bar, logging_redirect_tqdm([log]):
        for video in bar:
            name = video.relative_to(cfg.source).as_posix()
            made_from = _made_from(cfg, video)
            folder = cfg.target / "clips" / name
            scenes = _scenes_there(folder / FACTS, made_from)
            if scenes is None:
                try:
                    scenes = _find_scenes(cfg, video, name, notes)
                except UserError as error:
                    problems[name] = str(error)
                    continue
                if scenes and not cfg.dry_run:
                    _write_clips(cfg, video, folder, scenes, made_from)
            suffix = ".mp4" if cfg.output_format == "mp4" else ""
            clips += [Clip(f"clips/{name}/{k:04d}{suffix}", name, scene) for k, scene in enumerate(scenes)]
    if not clips:
        for problem in list(problems.values())[:NAMED]:
            log.warning("left out: %s", problem)
        raise UserError(f"none of the {len(videos)} videos in {cfg.source} gives a clip; see above why")
    if not cfg.dry_run:
        _write_lists(cfg, clips, captions, problems)
    return _report(cfg, len(videos), clips, problems, notes)


def _videos(cfg: PrepareConfig) -> list[Path]:
    source, target = cfg.source.resolve(), cfg.target.resolve()
    if not source.is_dir():
        raise UserError(f"there is no folder {cfg.source}; name the folder of your videos")
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(f"output_path {cfg.target} and the folder of the videos lie in each other; name another folder")
    if not cfg.dry_run:
        check_writable(cfg.target, "output_path")
    videos = files_below(cfg.source, VIDEO_SUFFIXES)
    if not videos:
        raise UserError(f"{cfg.source} holds no videos ({', '.join(VIDEO_SUFFIXES)}); name the folder of your videos")
    return videos


def _facts(cfg: PrepareConfig) -> dict[str, Any]:
    """Return what the clips of all videos depend on."""
    names = ("image_size", "num_frames", "fps", "scene_threshold", "max_seconds", "output_format")
    return {name: getattr(cfg, name) for name in names}


def _check_settings(cfg: PrepareConfig) -> None:
    """Raise UserError if clips of other sizes are there: the videos that come later must not differ from them."""
    there = next((cfg.target / "clips").rglob(FACTS), None)
    if there is None:
        return
    before, now = read_json(there, remedy="remove its folder").get("settings"), _facts(cfg)
    before = before if isinstance(before, dict) else {}
    if changed := [name for name in now if before.get(name) != now[name]]:
        was = ", ".join(f"--{name} {before.get(name)}" for name in changed)
        raise UserError(f"{cfg.target} was prepared with {was}; give the same, or another --output_path")


def _made_from(cfg: PrepareConfig, video: Path) -> dict[str, Any]:
    """Return what the clips of a video depend on; raises UserError if it is gone."""
    try:
        stat = video.stat()
    except OSError as error:
        raise UserError(f"cannot read {video}: {error.strerror}; start again") from error
    return {"settings": _facts(cfg), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def _find_scenes(cfg: PrepareConfig, video: Path, name: str, notes: dict[str, str]) -> list[range]:
    """Return the scenes of a video that are long enough; raises UserError if there is none, or it cannot be read."""
    VideoFile(video)  # refuses what is cut off, changes its size, or is no video
    rate = read_rate(video)
    found = find_scenes(video, cfg.fps, cfg.image_size, cfg.scene_threshold, cfg.most_frames)
    scenes = [scene for scene in found if len(scene) >= cfg.num_frames]
    if not scenes:
        raise UserError(f"{video} has no scene of {cfg.num_frames / cfg.fps:g} seconds, which num_frames needs")
    if rate and rate < 0.95 * cfg.fps:
        notes[name] = f"{video} has {rate:g} frames per second, fewer than fps {cfg.fps:g}: some are shown twice"
    return scenes


def _scenes_there(file: Path, made_from: dict[str, Any]) -> list[range] | None:
    """Return the scenes of a video whose clips are there, made from the same; None if they must be made."""
    if not file.is_file():
        return None
    found = read_json(file, remedy=f"remove {file.parent}")
    scenes = found.pop("scenes", None)
    if found != made_from or not isinstance(scenes, list):
        return None
    return [range(int(first), int(end)) for first, end in scenes]


def _write_clips(cfg: PrepareConfig, video: Path, folder: Path, scenes: list[range], made_from: dict[str, Any]) -> None:
    if folder.exists():  # of another version of the video
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        wanted = iter([*enumerate(scenes), (len(scenes), range(0))])
        number, scene = next(wanted)
        frames: list[np.ndarray] = []
        for place, frame in enumerate(square_frames(video, cfg.fps, cfg.image_size)):
            if place in scene:
                frames.append(frame)
            if frames and place == scene.stop - 1:
                _write_clip(cfg, np.stack(frames), temporary / f"{number:04d}")
                number, scene = next(wanted)
                frames = []
        if number < len(scenes):
            raise UserError(f"{video} changed while it was read; start again")
        facts = made_from | {"scenes": [(scene.start, scene.stop) for scene in scenes]}
        (temporary / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)


def _write_clip(cfg: PrepareConfig, frames: np.ndarray, path: Path) -> None:
    if cfg.output_format == "mp4":
        save_mp4(frames, path.with_suffix(".mp4"), cfg.fps)
    else:
        write_frames(frames, path)


def _captions(table: Path) -> dict[str, str]:
    """Return the captions of an earlier table by clip: somebody wrote them; raises UserError if it cannot be read."""
    if not table.is_file():
        return {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return {row["video"]: row["caption"] or "" for row in rows}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        why = f"cannot read the captions in {table}, which are to be kept ({type(error).__name__})"
        raise UserError(
            f"{why}; it must have the columns video and caption, in UTF-8; correct it or move it away"
        ) from error


def _write_lists(cfg: PrepareConfig, clips: list[Clip], captions: dict[str, str], problems: dict[str, str]) -> None:
    rows = [
        (clip.path, captions.get(clip.path, ""), clip.source, clip.frames.start / cfg.fps, len(clip.frames) / cfg.fps)
        for clip in clips
    ]
    write_csv(cfg.target / TABLE, COLUMNS, rows)
    options: dict[str, object] = {
        "data_layout": "csv",
        "csv_path": TABLE,
        "video_column": "video",
        "class_column": "null",
    }
    options |= {"caption_column": "caption", "sample_stride": 1}
    options |= {"image_size": cfg.image_size, "num_frames": cfg.num_frames}
    with atomic_path(cfg.target / FOLDER_OPTIONS) as temporary:
        lines = [f"{name}: {value}\n" for name, value in options.items()]
        temporary.write_text(f"# Written by latte prepare; for --data_folder of train.py.\n{''.join(lines)}", "utf-8")
    parts = _sheet(cfg, clips, captions, problems)
    html_page.save_page(cfg.target / SHEET, f"{len(clips)} clips of {cfg.source.resolve().name}", parts)


def _sheet(cfg: PrepareConfig, clips: list[Clip], captions: dict[str, str], problems: dict[str, str]) -> Iterator[str]:
    """Yield the parts of the contact sheet: what is left out, and three frames of each clip."""
    yield html_page.table(_facts(cfg).items())
    if problems:
        yield f"<h2>{len(problems)} videos are left out</h2>"
        yield html_page.table(problems.items())
    shown = clips[:SHOWN]
    yield f"<h2>{'The first ' if len(shown) < len(clips) else ''}{len(shown)} clips</h2>"
    for clip in tqdm(shown, desc="contact sheet", unit="clip", delay=3):
        count, frames = frames_of(cfg.target / clip.path)
        wanted = (0, count // 2, count - 1)
        strip = np.stack([frame for k, frame in enumerate(frames) for _ in range(wanted.count(k))])
        strip = np.concatenate(list(fit(strip, THUMBNAIL, THUMBNAIL)), axis=1)
        start, seconds = clip.frames.start / cfg.fps, len(clip.frames) / cfg.fps
        words = f"{clip.path}: {seconds:.1f} s from {start:.1f} s on. {captions.get(clip.path, '')}"
        yield html_page.figure(html_page.jpeg(strip), words)


def _report(cfg: PrepareConfig, videos: int, clips: list[Clip], problems: dict[str, str], notes: dict[str, str]) -> str:
    lines = [f"left out: {problem}" for problem in list(problems.values())[:NAMED]]
    if len(problems) > NAMED:
        lines.append(f"and {len(problems) - NAMED} more, which {SHEET} names")
    lines += list(notes.values())[:NAMED]
    seconds = sum(len(clip.frames) for clip in clips) / cfg.fps
    size = f"{cfg.image_size} x {cfg.image_size} pixels, {cfg.fps:g} frames per second"
    what = f"{len(clips)} clips, {seconds:.0f} seconds, of {videos - len(problems)} of {videos} videos; {size}"
    if cfg.dry_run:
        return "\n".join([*lines, f"would write {what}, to {cfg.target}"])
    return "\n".join(
        [
            *lines,
            f"{what}, in {cfg.target}",
            f"look at them in {cfg.target / SHEET}; for text to video fill in the captions of {cfg.target / TABLE}",
            f"then: latte train --data_folder {cfg.target} --model_name Latte-S/2 --vae_checkpoint VAE",
        ]
    )
