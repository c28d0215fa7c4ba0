"""The procedural sky: equal seeds and equal pixels, classes that differ, clouds that move as the caption says."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from latte.commands.demo_data import main
from latte.data.demo import CLASSES, caption, make_clip
from latte.errors import run_main
from latte.io.video import read_frames, read_video


@pytest.fixture
def make(monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["make_demo_data.py", *map(str, argv)])
        run_main(main)

    return run


def files_of(folder):
    """The bytes of every file below a folder by its path in it, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shift_of(first, second):
    """The horizontal shift, in pixels, that best lays one picture over the other, by comparing all small ones."""
    margin = 6
    inner = first[:, margin:-margin].astype(float)
    errors = {
        shift: np.abs(second[:, margin + shift : second.shape[1] - margin + shift] - inner).mean()
        for shift in range(-margin, margin)
    }
    return min(errors, key=errors.get)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_pixels_depend_on_seed_and_class_alone(label):
    clip = make_clip(label, 5, 3, 32)
    assert clip.shape == (3, 32, 32, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, make_clip(label, 5, 3, 32))
    np.testing.assert_array_equal(clip[:2], make_clip(label, 5, 2, 32))
    assert np.abs(clip.astype(int) - make_clip(label, 6, 3, 32)).mean() > 5


def test_classes_look_different():
    day, sunset, night = (np.mean([make_clip(k, s, 1, 32).mean((0, 1, 2)) for s in range(8)], 0) for k in range(3))
    assert day[2] > day[0] + 10 and day.mean() > 120  # bright and blue
    assert sunset[0] > sunset[2] + 40  # red
    assert night.mean() < 80 and night[2] > night[0]  # dark and blue


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_pictures_have_contrast(label):
    for seed in range(6):
        frame = make_clip(label, seed, 1, 64)[0].mean(-1)
        assert np.percentile(frame, 95) - np.percentile(frame, 5) > 25


def test_clouds_move_where_the_caption_says():
    signs = {"to the right": 1, "to the left": -1}
    seen = set()
    for label in range(len(CLASSES)):
        for seed in range(4):
            clip = make_clip(label, seed, 3, 64)[:, :, :, 0]
            text = caption(label, seed)
            (words,) = [words for words in signs if words in text]
            moved = shift_of(clip[0], clip[2])
            assert moved * signs[words] in (1, 2, 3, 4), (label, seed, text, moved)  # one to two a frame, two frames
            seen.add((words, text.split(words)[1]))
    assert {after for _, after in seen} == {" in daylight", " at sunset", " at night under the stars"}
    assert {words for words, _ in seen} == set(signs)


def test_the_tool_writes_what_it_says(make, tmp_path):
    make("--folder", tmp_path, "--clips", 2, "--num_frames", 3, "--size", 32, "--seed", 4)
    with (tmp_path / "demo.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "class", "caption"] and len(rows) == 6
    assert [row["class"] for row in rows] == [*CLASSES, *CLASSES]
    for row, seed in zip(rows, [4, 4, 4, 5, 5, 5], strict=True):
        kind, name = row["class"], f"{row['class']}-{seed:04d}"
        clip = make_clip(CLASSES.index(kind), seed, 3, 32)
        assert row["video"] == f"videos/{kind}/{name}.mp4"
        assert row["caption"] == caption(CLASSES.index(kind), seed)
        folder = tmp_path / "frames" / kind / name
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}_{i:04d}.jpg" for i in (1, 2, 3)]
        for copy in (read_frames(folder), read_video(tmp_path / row["video"])):
            assert copy.shape == clip.shape
            assert np.abs(copy.astype(int) - clip).mean() < 6
    assert len(files_of(tmp_path)) == 6 * 3 + 6 + 1


def test_twice_is_once_and_what_is_missing_is_made(make, tmp_path):
    argv = ["--folder", tmp_path, "--clips", 1, "--num_frames", 2, "--size", 16]
    make(*argv)
    before = files_of(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    video = tmp_path / "videos" / "night" / "night-0000.mp4"
    video.unlink()
    partial = tmp_path / "frames" / "sunset" / ".sunset-0000"  # as a killed run leaves it
    (tmp_path / "frames" / "sunset" / "sunset-0000").rename(partial)
    next(partial.iterdir()).unlink()
    make(*argv)
    after = files_of(tmp_path)
    assert after.keys() == before.keys()
    assert {path: data for path, data in after.items() if not path.endswith(".mp4")} == {
        path: data for path, data in before.items() if not path.endswith(".mp4")
    }
    untouched = [path for path in times if "sunset" not in path.parts]
    assert len(untouched) == 4 and all(path.stat().st_mtime_ns == times[path] for path in untouched)
    make(*argv[:2], "--clips", 2, *argv[4:])
    assert len(files_of(tmp_path)) == 2 * len(before) - 1


@pytest.mark.parametrize("form, suffix, where", [("frames", ".jpg", "frames/day/day-0000"), ("mp4", ".mp4", None)])
def test_one_form_alone(make, tmp_path, form, suffix, where):
    make("--folder", tmp_path, "--clips", 1, "--num_frames", 2, "--size", 16, "--formats", form)
    files = files_of(tmp_path)
    assert {name[-4:] for name in files} == {suffix, ".csv"}
    assert (where or "videos/day/day-0000.mp4") in files["demo.csv"].decode()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--size", "33"], ["size is 33", "even"]),
        (["--size", "8"], ["size is 8", "at least 16"]),
        (["--clips", "0"], ["clips is 0", "at least 1"]),
        (["--num_frames", "few"], ["num_frames", "a whole number"]),
        (["--seed", "-1"], ["seed is -1", "at least 0"]),
        (["--formats", "[frames,avi]"], ["formats", "[frames, mp4]"]),
        (["--formats", "[]"], ["formats is []"]),
        (["--sise", "32"], ["'sise'", "'size'"]),
    ],
)
def test_bad_options(make, capsys, tmp_path, options, words):
    with pytest.raises(SystemExit) as exit:
        make("--folder", tmp_path / "demo", *options)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["frames", "mp4"])
def test_clips_of_another_shape_are_not_mixed(make, capsys, tmp_path, form):
    argv = ["--folder", tmp_path, "--clips", 1, "--formats", form]
    make(*argv, "--num_frames", 2, "--size", 16)
    before = files_of(tmp_path)
    with pytest.raises(SystemExit) as exit:
        make(*argv, "--num_frames", 3, "--size", 16)
    assert exit.value.code == 2
    assert "has 2 frames of 16 x 16 pixels; pass --num_frames 2 --size 16" in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_a_folder_that_cannot_be_written(make, capsys, tmp_path):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(SystemExit) as exit:
        make("--folder", tmp_path / "demo", "--clips", 1, "--num_frames", 1, "--size", 16, "--formats", "frames")
    assert exit.value.code == 2 and "cannot write" in capsys.readouterr().err


def test_frames_are_small_files_of_good_quality(make, tmp_path):
    make("--folder", tmp_path, "--clips", 1, "--num_frames", 1, "--size", 64, "--formats", "frames")
    for label, kind in enumerate(CLASSES):
        path = tmp_path / "frames" / kind / f"{kind}-0000" / f"{kind}-0000_0001.jpg"
        with Image.open(path) as image:
            error = np.square(np.asarray(image, float) - make_clip(label, 0, 1, 64)[0]).mean()
        assert 10 * np.log10(255**2 / error) > 38 and path.stat().st_size < 10_000
