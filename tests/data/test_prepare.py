"""latte prepare: from videos as people have them to a folder that trains."""

import csv
import re

import numpy as np
import pytest
from support.numbered import ffmpeg, write_numbered

from latte.commands import prepare as command
from latte.config import TrainConfig, parse_config
from latte.data import prepare as room
from latte.data.index import list_records
from latte.errors import UserError
from latte.io.scenes import _split, find_scenes, square_frames
from latte.io.video import read_any

H264 = "-c:v libx264 -pix_fmt yuv420p"
SIDE = 32


def drifting(count, height, width, tint, step=0.2):
    """Frames (count, H, W, 3) uint8 of a slow wave in a colour; the upper left corner is brighter."""
    frame, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    wave = 90 + 40 * np.sin((x + step * frame) / 17) + 80 * ((y < height // 3) & (x < width // 3))
    return (wave[..., None] * np.array(tint) / 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder as people have it."""
    root = tmp_path_factory.mktemp("own") / "clips of mine"
    (root / "sub").mkdir(parents=True)
    two = np.concatenate([drifting(75, 60, 96, (255, 20, 20)), drifting(90, 60, 96, (150, 200, 255))])
    write_numbered(root / "two.mp4", H264, rate=30, frames=two)  # 2.5 and 3 seconds
    write_numbered(root / "slow.avi", "-c:v mpeg4", rate=4, frames=drifting(12, 50, 70, (90, 255, 90)))
    upright = write_numbered(root / "film.mov", H264, rate=24, frames=drifting(60, 48, 80, (255, 255, 255)))
    ffmpeg("-display_rotation", "90", "-i", upright, "-c", "copy", root / "sub" / "turned.mp4")
    write_numbered(root / "short.webm", "-c:v libvpx-vp9", rate=25, frames=drifting(10, 40, 40, (200, 200, 200)))
    whole = (root / "two.mp4").read_bytes()
    (root / "cut off.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "a <b>.mp4").write_text("no video")
    (root / "notes.txt").write_text("no video either")
    return root


def run(videos, target, capsys, *more):
    command.main([str(videos), "--output_path", str(target), "--image_size", str(SIDE), "--num_frames", "8", *more])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    target = tmp_path_factory.mktemp("out") / "prepared"
    arguments = ["--output_path", str(target), "--image_size", str(SIDE), "--num_frames", "8"]
    command.main([str(videos), *arguments])
    return target


def table(target):
    with (target / "clips.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_many_kinds_becomes_clips_of_one_kind(prepared):
    rows = table(prepared)
    assert [(row["source"], row["first_second"], row["seconds"]) for row in rows] == [
        ("film.mov", "0.0", "2.5"),
        ("slow.avi", "0.0", "3.0"),
        ("sub/turned.mp4", "0.0", "2.5"),
        ("two.mp4", "0.0", "2.5"),
        ("two.mp4", "2.5", "3.0"),
    ]
    assert {row["caption"] for row in rows} == {""}
    for row in rows:
        assert read_any(prepared / row["video"]).shape == (float(row["seconds"]) * 8, SIDE, SIDE, 3)


def test_no_frame_of_one_scene_is_in_the_other(prepared):
    red, blue = (read_any(prepared / row["video"])[..., [0, 2]].mean((1, 2)) for row in table(prepared)[3:])
    assert (red[:, 0] > 2 * red[:, 1]).all() and (blue[:, 1] > 1.4 * blue[:, 0]).all()


def test_rotated_videos_are_upright_in_their_clips(prepared):
    """The bright corner of the film lies upper left; turned by 90 degrees, lower left."""
    by_source = {row["source"]: read_any(prepared / row["video"])[0].mean(-1) for row in table(prepared)}
    half = SIDE // 2

    def corners(image):
        return [
            image[rows, columns].mean()
            for rows in (slice(half), slice(half, None))
            for columns in (slice(6), slice(-6, None))
        ]

    assert np.argmax(corners(by_source["film.mov"])) == 0
    assert np.argmax(corners(by_source["sub/turned.mp4"])) == 2


def test_what_is_left_out_is_named(videos, tmp_path, capsys):
    said = run(videos, tmp_path / "out", capsys, "--dry_run")
    assert not (tmp_path / "out").exists()
    assert re.search(r"left out: .*cut off\.mp4.*broken", said)
    assert re.search(r"left out: .*a <b>\.mp4.*not a video", said)
    assert re.search(r"left out: .*short\.webm has no scene of 1 seconds", said)
    assert "slow.avi has 4 frames per second, fewer than fps 8: some are shown twice" in said
    assert "would write 5 clips, 14 seconds, of 4 of 7 videos; 32 x 32 pixels" in said


def test_the_sheet_shows_every_clip_and_fetches_nothing(prepared):
    page = (prepared / "contact.html").read_text()
    assert page.count("<img ") == 5 and page.count('src="data:image/jpeg;base64,') == 5
    assert "3 videos are left out" in page and "a &lt;b&gt;.mp4" in page and "<b>" not in page
    assert not re.search(r"https?://|<script|<link", page)


def test_training_finds_layout_and_sizes_in_the_folder(prepared, caplog):
    with caplog.at_level("INFO", "latte"):
        cfg = parse_config(TrainConfig, ["--data_folder", str(prepared)])
    assert (cfg.data_layout, cfg.image_size, cfg.num_frames, cfg.class_column) == ("csv", SIDE, 8, None)
    assert [record.path.exists() for record in list_records(cfg).records] == [True] * 5
    assert 'latte.yaml sets data_layout: "csv", csv_path' in caplog.text
    other = parse_config(TrainConfig, ["-c", "csv_video", "--data_folder", str(prepared), "--image_size", "64"])
    assert (other.image_size, other.num_frames, other.class_column) == (64, 8, None)


def test_a_yaml_that_names_the_folder_wins_over_it(prepared, tmp_path):
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"data_folder: {prepared}\nnum_frames: 4\n")
    cfg = parse_config(TrainConfig, ["-c", str(yaml)])
    assert (cfg.image_size, cfg.num_frames) == (SIDE, 4)


@pytest.mark.parametrize(
    "line, said",
    [
        ("output_path: x", "no option 'output_path'"),
        ("csv_path: ../x.csv", "csv_path is .* must be the name of a file beside it"),
    ],
)
def test_a_folder_cannot_set_what_is_not_about_it(tmp_path, line, said):
    (tmp_path / "latte.yaml").write_text(line)
    with pytest.raises(UserError, match=said):
        parse_config(TrainConfig, ["--data_folder", str(tmp_path)])


def test_again_makes_only_what_is_missing_and_keeps_captions(videos, tmp_path, capsys, monkeypatch):
    target = tmp_path / "out"
    written = []
    real = room._write_clips

    def ended(cfg, video, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(video.name)
        real(cfg, video, *rest)

    monkeypatch.setattr(room, "_write_clips", ended)
    with pytest.raises(KeyboardInterrupt):
        run(videos, target, capsys)
    assert sorted(path.name for path in (target / "clips").iterdir()) == ["film.mov", "slow.avi"]
    monkeypatch.setattr(room, "_write_clips", lambda *given: (written.append(given[1].name), real(*given)))
    run(videos, target, capsys)
    assert written == ["film.mov", "slow.avi", "turned.mp4", "two.mp4"]
    text = (target / "clips.csv").read_text().replace("0001.mp4,,", '0001.mp4,"blue, and a wave",')
    (target / "clips.csv").write_text(text)
    run(videos, target, capsys)
    assert len(written) == 4 and table(target)[-1]["caption"] == "blue, and a wave"
    with pytest.raises(UserError, match="--image_size 32; give the same, or another --output_path"):
        command.main([str(videos), "--output_path", str(target), "--image_size", "64", "--num_frames", "8"])


def test_a_video_that_changed_is_made_again_whole(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for tint in ((255, 0, 0), (0, 0, 255)):
        write_numbered(tmp_path / "in" / "a.mp4", H264, rate=8, frames=drifting(16 + tint[2] // 16, 32, 32, tint))
        run(tmp_path / "in", tmp_path / "out", capsys)
    clips = sorted(path.name for path in (tmp_path / "out" / "clips" / "a.mp4").iterdir())
    assert clips == ["0000.mp4", "video.json"] and len(read_any(tmp_path / "out/clips/a.mp4/0000.mp4")) == 31


def test_clips_as_folders_of_frames(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_numbered(tmp_path / "in" / "a.mp4", H264, rate=8, frames=drifting(16, 32, 48, (255, 255, 255)))
    run(tmp_path / "in", tmp_path / "out", capsys, "--output_format", "frames")
    assert read_any(tmp_path / "out" / table(tmp_path / "out")[0]["video"]).shape == (16, SIDE, SIDE, 3)


@pytest.mark.parametrize("rate", [10, 24, 29.97, 60])
def test_scenes_begin_at_their_first_frame_at_any_rate(tmp_path, rate):
    count = round(1.3 * rate)
    frames = np.concatenate([drifting(count, 32, 32, (255, 0, 0)), drifting(count, 32, 32, (150, 200, 255))])
    write_numbered(tmp_path / "a.mp4", H264, rate=rate, frames=frames)
    scenes = find_scenes(tmp_path / "a.mp4", 8, SIDE, 0.1, 480)
    shown = np.stack(list(square_frames(tmp_path / "a.mp4", 8, SIDE)))
    first_blue = int(np.argmax(shown[..., 2].mean((1, 2)) > shown[..., 0].mean((1, 2))))
    assert scenes == [range(first_blue), range(first_blue, len(shown))]


def test_long_scenes_become_several():
    assert _split([0, 5, 26], 10) == [range(5), range(5, 12), range(12, 19), range(19, 26)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["missing"], "there is no folder missing"),
        (["."], "holds no videos"),
        ([".", "--output_path", "sub"], "lie in each other"),
        ([".", "--image_size", "30"], "image_size is 30"),
        ([".", ".."], "one folder"),
        ([".", "--max_seconds", "1"], "at least 4, twice num_frames"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, arguments, said):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(UserError, match=said):
        command.main(arguments)


def test_a_full_disk_is_no_broken_video(videos, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "_write_clip", full)
    with pytest.raises(UserError, match="cannot write .*film.mov: No space left"):
        run(videos, tmp_path / "out", capsys)
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_folder_without_any_whole_video_is_an_error(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_text("no video")
    with pytest.raises(UserError, match="none of the 1 videos"):
        run(tmp_path / "in", tmp_path / "out", capsys)
    assert not (tmp_path / "out").exists()
