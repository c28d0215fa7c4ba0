"""latte compare: measures against other programs, matching, tables and pictures, and one sentence for what is wrong."""

import csv
import itertools
import json
import math
import os
import shutil
import stat
import sys

import numpy as np
import pytest
from PIL import Image
from support.golden_values import FIXTURES
from support.moving_waves import noisy, waves, write

from latte.commands import compare as command
from latte.config import parse_config
from latte.config.compare import CompareConfig
from latte.errors import UserError
from latte.evaluation import compare, measures
from latte.io import video_file
from latte.io.video import frames_of, save_gif, save_mp4, save_png

A = waves()


@pytest.fixture(scope="module")
def golden():
    return json.loads((FIXTURES / "compare.json").read_text())


@pytest.fixture(autouse=True)
def no_memory_of_ffmpeg():
    measures.ffmpeg_with_vmaf.cache_clear()
    yield
    measures.ffmpeg_with_vmaf.cache_clear()


@pytest.fixture
def sets(tmp_path):
    """Folders as sample.py writes them: two videos, of which the first is there as mp4 too, and a grid."""
    save_mp4(waves(4), tmp_path / "x.mp4")
    for name, sigma in (("a", 0), ("b", 4), ("c", 12)):
        for number in (0, 1):
            write(noisy(waves(4), sigma, number), tmp_path / name / f"video-000{number}-seed{number}")
        for copy in ("video-0000-seed0.mp4", "grid-seed0-1.mp4"):
            shutil.copy(tmp_path / "x.mp4", tmp_path / name / copy)
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    return tmp_path


def run(*words):
    return compare.run(parse_config(CompareConfig, list(map(str, words))))


def rows_of(folder):
    with (folder / "compare.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_psnr_is_that_of_scikit_image_and_of_ffmpeg(golden):
    errors = [measures.squared_error(*pair) for pair in zip(A, noisy(A, golden["sigma"]), strict=True)]
    found = measures.psnr(float(np.mean(errors)))
    assert abs(found - golden["skimage_psnr"]) < 1e-9 and abs(found - golden["ffmpeg_psnr"]) < 1e-5


def test_ssim_is_that_of_scikit_image(golden):
    found = [
        measures.ssim(measures.luma(a), measures.luma(b)) for a, b in zip(A, noisy(A, golden["sigma"]), strict=True)
    ]
    assert np.abs(np.array(found) - golden["skimage_ssim"]).max() < 1e-9


def test_motion_is_that_of_ffmpeg(golden):
    smooth = [measures.blurred(measures.luma(frame).round()) for frame in A]
    found = [measures.motion(*pair) for pair in itertools.pairwise(smooth)]
    assert np.abs(np.array(found) - golden["ffmpeg_motion"]).max() < 0.006  # which prints two digits


def test_flicker_of_a_video_that_was_made_for_it(tmp_path):
    """Grey levels 10, 13, 13, 8: differences of 3, 0 and 5; the other video stands still."""
    levels = np.array([10, 13, 13, 8], np.uint8)[:, None, None, None]
    write(np.broadcast_to(levels, (4, 20, 24, 3)), tmp_path / "a")
    write(np.full((4, 20, 24, 3), 77, np.uint8), tmp_path / "b")
    run(tmp_path / "a", tmp_path / "b", "--metrics", "flicker,motion", "--output_path", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert float(row["flicker_a"]) == 8 / 3 and float(row["flicker_b"]) == 0 == float(row["motion_b"])
    assert float(row["motion_a"]) == pytest.approx(8 / 3) and row["psnr"] == row["ssim"] == row["vmaf"] == ""


def test_a_video_and_itself(tmp_path):
    save_mp4(waves(16), tmp_path / "a.mp4")
    said = run(tmp_path / "a.mp4", tmp_path / "a.mp4", "--output_path", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert math.isinf(float(row["psnr"])) and float(row["ssim"]) == pytest.approx(1, abs=1e-12)
    assert float(row["vmaf"]) > 99.8 and row["flicker_a"] == row["flicker_b"] and row["motion_a"] == row["motion_b"]
    assert "inf" in said and "#" not in said


def test_more_noise_is_worse_by_every_measure(tmp_path):
    write(A, tmp_path / "a")
    for sigma in (2, 6, 18):
        write(noisy(A, sigma), tmp_path / f"b{sigma}")
    run(tmp_path / "a", *(tmp_path / f"b{sigma}" for sigma in (2, 6, 18)), "--output_path", tmp_path / "out")
    for name, sign in (("psnr", -1), ("worst_psnr", -1), ("ssim", -1), ("vmaf", -1), ("flicker_b", 1), ("motion_b", 1)):
        values = [sign * float(row[name]) for row in rows_of(tmp_path / "out")]
        assert values == sorted(set(values)), name


def test_the_worst_frame_is_named(tmp_path):
    b = A.copy()
    b[4] = 255 - b[4]
    write(A, tmp_path / "a")
    write(b, tmp_path / "b")
    said = run(tmp_path / "a", tmp_path / "b", "--metrics", "psnr", "--output_path", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["worst_frame"] == "4" and float(row["worst_psnr"]) < float(row["psnr"]) and "(#4)" in said


def test_folders_are_matched_by_name_and_form(sets, caplog):
    (sets / "a" / "video-0007-seed7.mp4").write_bytes((sets / "a" / "video-0000-seed0.mp4").read_bytes())
    (sets / "b" / "video-0000-seed0" / "frame_0000.png").rename(sets / "gone.png")  # so that only mp4 is whole
    pairs = compare.match([str(sets / "a"), str(sets / "b")])
    assert [pair.name for pair in pairs] == ["video-0000-seed0", "video-0001-seed1"]  # no grid
    assert [pair.a for pair in pairs] == [sets / "a" / pair.name for pair in pairs]  # frames before files
    assert "1 of the 3 videos of" in caplog.text and "have no partner" in caplog.text
    for frame in (sets / "b" / "video-0000-seed0").iterdir():
        frame.unlink()
    first = compare.match([str(sets / "a"), str(sets / "b")])[0]
    assert (first.a, *first.others) == (sets / "a" / "video-0000-seed0.mp4", sets / "b" / "video-0000-seed0.mp4")


def test_images_of_sample_are_videos_of_one_frame(tmp_path):
    for name, sigma in (("a", 0), ("b", 5)):
        for number in (0, 1):
            save_png(noisy(A[:1], sigma, number)[0], tmp_path / name / f"image-000{number}-seed{number}-a-dog.png")
    said = run(tmp_path / "a", tmp_path / "b", "--output_path", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["video"] for row in rows] == ["image-0000-seed0-a-dog", "image-0001-seed1-a-dog"]
    assert all(float(row["psnr"]) > 30 and row["flicker_a"] == "" for row in rows)
    assert "flicker" not in said


def test_tables_strips_and_plot_of_several(sets, monkeypatch, capsys):
    words = ("--output_path", sets / "out", "--strips", 1, "--metrics", "psnr,flicker")
    monkeypatch.setattr(sys, "argv", ["latte compare", *map(str, (sets / "a", sets / "b", sets / "c", *words))])
    command.main()
    said = capsys.readouterr().out
    assert {path.name for path in (sets / "out").iterdir()} == {"compare.csv", "compare.png", "strip-1.png"}
    rows = rows_of(sets / "out")
    assert [(row["b"], row["video"][:10], row["frames"]) for row in rows] == [
        (b, f"video-000{k}", "4") for b in "bc" for k in (0, 1)
    ]
    for b in "bc":
        psnr = [float(row["psnr"]) for row in rows if row["b"] == b]
        assert f"{np.mean(psnr):.2f}" in said.split("means")[1] and f"B: {b}" in said
    assert said.count("mean of 2") == 2 and "VMAF" not in said
    with Image.open(sets / "out" / "strip-1.png") as strip:
        assert strip.height > 5 * 96 and strip.width > 4 * 128  # A, and twice B and the difference, of four frames


def test_a_strip_shows_frames_and_the_amplified_difference(tmp_path):
    b = A.copy()
    b[5, :10, :10] += 3
    write(A, tmp_path / "a")
    write(b, tmp_path / "b")
    run(
        tmp_path / "a",
        tmp_path / "b",
        "--metrics",
        "psnr",
        "--strip_frames",
        2,
        "--amplify",
        50,
        "--output_path",
        tmp_path,
    )
    with Image.open(tmp_path / "strip-1.png") as strip:
        picture = np.asarray(strip.convert("RGB"))
    assert any(
        np.array_equal(row[j : j + 3], [[150] * 3] * 3) for row in picture for j in np.flatnonzero(row[:, 0] == 150)[:1]
    )
    scaled = A[0].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(picture[40 : 40 + 96, 4 : 4 + 128], scaled)


def test_only_the_first_frames_of_videos_of_different_lengths(tmp_path):
    write(A, tmp_path / "a")
    write(A[:4], tmp_path / "b")
    words = (tmp_path / "a", tmp_path / "b", "--output_path", tmp_path / "out", "--metrics", "psnr")
    with pytest.raises(UserError, match=r"a has 6 frames, but .*b has 4; .*--frames 4, if these belong together"):
        run(*words)
    assert not (tmp_path / "out").exists()
    assert "1 video of 4 frames" in run(*words, "--frames", 4)
    assert rows_of(tmp_path / "out")[0]["psnr"] == "inf"
    with pytest.raises(UserError, match="--frames is 5, but a has only 4 frames in one of the videos"):
        run(*words, "--frames", 5)


def test_the_videos_may_be_named_in_a_yaml_file(sets):
    (sets / "c.yaml").write_text(f"videos: [{sets / 'a'}, {sets / 'b'}]\noutput_path: {sets / 'a' / 'config.yaml'}\n")
    with pytest.raises(
        UserError, match="output_path .*config.yaml cannot be written"
    ):  # said before anything is compared
        run("-c", sets / "c.yaml")
    assert "2 videos of 4 frames" in run("-c", sets / "c.yaml", "--output_path", sets / "out", "--dry_run")
    assert "1 video of 4" in run(
        sets / "x.mp4", sets / "x.mp4", "-c", sets / "c.yaml", "--output_path", sets, "--dry_run"
    )


def test_a_dry_run_writes_nothing(sets):
    said = run(sets / "a", sets / "b", "--output_path", sets / "out", "--dry_run")
    assert "2 videos of 4 frames" in said and not (sets / "out").exists()


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A good video, a, and what cannot be compared with it."""
    folder = tmp_path_factory.mktemp("bad")
    write(A, folder / "a")
    (folder / "empty").mkdir()
    save_mp4(A, folder / "set" / "a.mp4")
    save_gif(A[:, :, :32], folder / "small.gif")
    (folder / "text.mp4").write_text("text")
    (folder / "cut.mp4").write_bytes((folder / "set" / "a.mp4").read_bytes()[:3000])
    return folder


@pytest.mark.parametrize(
    "second, said",
    [
        ("nowhere.mp4", "there is no video, image or folder .*nowhere.mp4"),
        ("empty", "the folder .*empty holds no videos and no frames"),
        ("set", "a is one video, but .*set is a folder of videos"),
        ("small.gif", "64 x 48 pixels, but .*small.gif is 32 x 48; scale"),
        ("text.mp4", "cannot read the video .*text.mp4; it is broken or not a video"),
        ("cut.mp4", "cannot read the video .*cut.mp4; it is broken"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(second, said, bad, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        run(bad / "a", bad / second, "--output_path", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_video_that_breaks_in_the_middle_leaves_nothing(tmp_path):
    write(A, tmp_path / "a")
    write(A, tmp_path / "b")
    (tmp_path / "b" / "frame_0003.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="cannot read the frame .*frame_0003.png"):
        run(tmp_path / "a", tmp_path / "b", "--output_path", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_without_a_common_name(sets):
    (sets / "d").mkdir()
    save_mp4(A, sets / "d" / "other.mp4")
    with pytest.raises(
        UserError, match="no names in common: the first video of one is video-0000-seed0, of the other other"
    ):
        run(sets / "a", sets / "d")
    with pytest.raises(UserError, match="named twice"):
        run(sets / "a", sets / "b", sets / "b")


def test_frames_that_are_too_small_for_a_metric(tmp_path):
    write(A[:, :16, :16], tmp_path / "a")
    words = (tmp_path / "a", tmp_path / "a", "--output_path", tmp_path / "out")
    with pytest.raises(UserError, match="16 x 16 pixels, but vmaf needs 17 x 17; leave vmaf out of --metrics"):
        run(*words)
    assert "1.0000" in run(*words, "--metrics", "ssim")
    write(A[:, :17, :17], tmp_path / "a")
    assert "a  98." in run(*words, "--metrics", "vmaf")  # 97.4 of the first frame weighs a sixth


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for ffmpeg")
@pytest.mark.parametrize(
    "script, said",
    [
        ("exit 1", "VMAF needs ffmpeg, which cannot be run"),
        ("echo ' TS psnr  VV->V'", "was built without libvmaf"),
        ("case $* in *-filters*) echo ' .. libvmaf ';; *) echo bad model >&2; exit 3;; esac", r"failed \(bad model\)"),
        (
            "case $* in *-filters*) echo ' .. libvmaf ';; *) kill -11 $$;; esac",
            "failed .exit code -11.; leave vmaf out",
        ),
    ],
)
def test_an_ffmpeg_that_cannot_measure_vmaf(script, said, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(measures.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    write(A, tmp_path / "a")
    with pytest.raises(UserError, match=said):
        run(tmp_path / "a", tmp_path / "a", "--output_path", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ((), r"A B \[B ...\] is not given; it is the reference A"),
        (("a",), "two or more"),
        (("a", "b", "--metrics", "[]"), "metrics is .*at least one"),
        (("a", "b", "--metrics", "lpips"), "metrics is .*psnr"),
        (("a", "b", "--frames", "0"), "frames is 0"),
        (("a", "b", "--amplify", "0"), "amplify is 0"),
        (("a", "b", "--dry_run", "true", "c"), "'c' is no option"),
    ],
)
def test_options_that_are_not_allowed(words, said):
    with pytest.raises(UserError, match=said):
        parse_config(CompareConfig, list(words))


def test_frames_come_one_by_one_and_are_those_of_the_reader(tmp_path):
    save_mp4(A, tmp_path / "a.mp4")
    save_gif(A, tmp_path / "a.gif")
    write(A, tmp_path / "a")
    for name in ("a.mp4", "a.gif", "a"):
        length, frames = frames_of(tmp_path / name)
        assert length == len(A) and iter(frames) is frames
        whole = video_file.VideoFile(tmp_path / name).read(range(length)) if "." in name else A
        assert np.array_equal(np.stack(list(frames)), whole)
