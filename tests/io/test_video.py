"""Writing and reading videos: sizes, colours, and files that are whole or not there."""

import subprocess
import sys
import tempfile

import av
import numpy as np
import pytest
from PIL import Image

from latte.errors import UserError
from latte.io import video
from latte.io.atomic import atomic_path


def gradient(frames, height, width):
    """A smooth gradient that moves, uint8 (F, H, W, 3)."""
    f, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    red, green, blue = x * 200 // width + 5 * f, y * 200 // height + 3 * f, 100 + 8 * f
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def error(a, b):
    """Mean absolute difference of bytes."""
    return np.abs(a.astype(int) - b).mean()


def test_to_uint8_at_the_borders():
    levels = np.array([0, 0.49, 0.51, 1, 127.49, 127.51, 254.49, 254.51, 255], dtype=np.float64)
    x = (levels / 255 * 2 - 1).reshape(1, 3, 3, 1)
    expected = np.array([0, 0, 1, 1, 127, 128, 254, 255, 255]).reshape(1, 3, 3, 1)
    assert np.array_equal(video.to_uint8(x), np.moveaxis(expected, -3, -1))
    # A half is exact in float32 here, and rounds up: 127.5 becomes 128; what lies outside is clamped.
    assert video.to_uint8(np.array([0.0, -1.5, 1.5]).reshape(3, 1, 1)).tolist() == [[[128, 0, 255]]]


def test_to_uint8_moves_the_channels_and_keeps_the_rest():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 5, 3, 4, 6)).astype(np.float16)
    found = video.to_uint8(x)
    assert found.shape == (2, 5, 4, 6, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found[1, 2, :, :, 0], video.to_uint8(x[1, 2])[:, :, 0])


def test_to_uint8_refuses_what_is_not_finite():
    with pytest.raises(UserError, match="not finite"):
        video.to_uint8(np.full((3, 2, 2), np.nan))


@pytest.mark.parametrize("size", [(16, 64, 64), (5, 48, 66), (1, 32, 32), (4, 33, 47)])
def test_mp4_reads_back(tmp_path, size):
    frames = gradient(*size)
    video.save_mp4(frames, tmp_path / "a.mp4", fps=8)
    found = video.read_video(tmp_path / "a.mp4")
    assert found.shape == frames.shape and found.dtype == np.uint8
    assert error(found, frames) < 3


def test_mindspore_loads_after_a_video_was_read(tmp_path):
    video.save_mp4(gradient(4, 32, 32), tmp_path / "a.mp4")
    code = f"from latte.io import video; video.read_video({str(tmp_path / 'a.mp4')!r}); import mindspore"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_gif_with_transparency_has_three_channels(tmp_path):
    levels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 4), dtype=np.uint8)
    levels[..., 3] = np.where(np.arange(16) % 2, 255, 0)
    first, *others = [Image.fromarray(frame) for frame in levels]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, disposal=2)
    assert video.read_video(tmp_path / "a.gif").shape == (3, 16, 16, 3)


def test_gif_reads_back(tmp_path):
    frames = gradient(6, 32, 48)
    video.save_gif(frames, tmp_path / "a.gif", fps=8)
    found = video.read_video(tmp_path / "a.gif")
    assert found.shape == frames.shape and error(found, frames) < 4
    with Image.open(tmp_path / "a.gif") as image:
        pauses = []
        for i in range(image.n_frames):
            image.seek(i)
            pauses.append(image.info["duration"])
    assert abs(sum(pauses) - 750) <= 10 and image.info["loop"] == 0


def test_gif_of_few_colours_is_exact(tmp_path):
    frames = np.random.default_rng(0).choice(np.array([0, 85, 170, 255], dtype=np.uint8), (4, 16, 16, 3))
    video.save_gif(frames, tmp_path / "a.gif")
    assert np.array_equal(video.read_video(tmp_path / "a.gif"), frames)


def test_png_frames_are_exact_and_replace_a_longer_video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)
    video.save_png_frames(frames, tmp_path / "a")
    assert np.array_equal(video.read_frames(tmp_path / "a"), frames)
    (tmp_path / "a" / "frame_notes.txt").write_text("kept")
    video.save_png_frames(frames[3:6], tmp_path / "a")
    assert np.array_equal(video.read_frames(tmp_path / "a"), frames[3:6])
    assert (tmp_path / "a" / "frame_notes.txt").exists()


def test_save_video_writes_every_format(tmp_path):
    frames = gradient(3, 16, 16)
    paths = video.save_video(frames, tmp_path / "new" / "v0.5", ["mp4", "gif", "png"], fps=4)
    assert paths == [tmp_path / "new" / name for name in ("v0.5.mp4", "v0.5.gif", "v0.5")]
    assert np.array_equal(video.read_frames(paths[2]), frames)
    with pytest.raises(UserError, match="'avi' is not known"):
        video.save_video(frames, tmp_path / "b", ["avi"])


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="frames must be uint8"):
        video.save_video(frames, tmp_path / "a")


@pytest.mark.parametrize("size", [(5, 32, 48), (2, 33, 47), (1, 16, 16)])
@pytest.mark.parametrize("suffix", ["mp4", "MP4", "mov", "mkv", "webm", "gif"])
def test_a_video_is_exported_in_the_format_of_its_suffix(suffix, size, tmp_path):
    frames = gradient(*size)
    path = video.export_to_video(frames / 255, tmp_path / "new" / f"a.{suffix}", fps=12.5)
    assert path == tmp_path / "new" / f"a.{suffix}" and [path] == list(path.parent.iterdir())
    found = video.read_any(path)
    assert found.shape == frames.shape and error(found, frames) < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == {"webm": "vp9", "gif": "gif"}.get(suffix, "h264")
        if suffix != "gif":
            assert stream.average_rate == 12.5


@pytest.mark.parametrize(
    "export, name, options, said",
    [
        (video.export_to_video, "out", {}, r"out has no suffix, .* ends in \.mp4, \.mov, \.mkv, \.webm, \.gif"),
        (video.export_to_video, "out.txt", {}, r"out\.txt has the suffix '\.txt'"),
        (video.export_to_video, "out.avi", {}, r"out\.avi has the suffix '\.avi'"),
        (video.export_to_gif, "out.mp4", {}, r"out\.mp4 has the suffix '\.mp4', .* ends in \.gif"),
        (video.export_to_video, "out.mp4", {"fps": 0}, "fps is 0, but must be above 0"),
        (video.export_to_video, "out.mp4", {"fps": None}, "fps is None, but must be above 0"),
        (video.export_to_gif, "out.gif", {"fps": 200}, "fps is 200, but must be above 0 and at most 100"),
    ],
)
def test_exports_are_refused_before_anything_is_written(export, name, options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        export(gradient(2, 16, 16), tmp_path / "new" / name, **options)
    with pytest.raises(UserError, match="no frames"):
        export([], tmp_path / "new" / "out.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_pause_that_no_gif_can_tell_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"a frame of .*out\.gif would stay for more than a gif's 655 seconds; raise fps"
    ):
        video.export_to_gif(gradient(2, 16, 16), tmp_path / "out.gif", fps=0.001)
    assert list(tmp_path.iterdir()) == []
    assert video.export_to_video(gradient(2, 16, 16), tmp_path / "out.mp4", fps=np.float32(8)).exists()


def test_exports_without_a_path_go_to_a_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for export, suffix in ((video.export_to_video, ".mp4"), (video.export_to_gif, ".gif")):
        path = export(gradient(3, 16, 16))
        assert path.parent == tmp_path and path.suffix == suffix and len(video.read_any(path)) == 3


def test_a_file_that_the_encoder_did_not_finish_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(video.iio, "imwrite", lambda path, *_, **__: path.write_bytes(b""))
    with pytest.raises(UserError, match=r"cannot write .*a\.mp4: the encoder wrote 0 of 2 frames"):
        video.export_to_video(gradient(2, 16, 16), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_grid_lays_out_rows():
    videos = np.stack([np.full((2, 4, 6, 3), value, np.uint8) for value in (10, 20, 30)])
    found = video.grid(videos, columns=2, gap=2)
    assert found.shape == (2, 10, 14, 3)
    assert (found[:, :4, :6] == 10).all() and (found[:, :4, 8:] == 20).all() and (found[:, 6:, :6] == 30).all()
    assert not found[:, 6:, 8:].any() and not found[:, 4:6].any() and not found[:, :, 6:8].any()
    assert np.array_equal(video.grid(videos[:1], columns=1), videos[0])


@pytest.mark.parametrize("name, writer", [("a.mp4", "iio.imwrite"), ("a.gif", "Image.Image.save")])
def test_writer_that_fails_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch, name, writer):
    def fail_half_way(target, *args, **kwargs):
        path = target if name == "a.mp4" else args[0]
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(f"latte.io.video.{writer}", fail_half_way)
    with pytest.raises(UserError, match=f"cannot write .*{name}: disk full"):
        video.save_video(gradient(2, 16, 16), tmp_path / "a", [name[2:]])
    assert (tmp_path / name).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_atomic_path_cleans_up_after_any_exception(tmp_path):
    def interrupted():
        with atomic_path(tmp_path / "a.txt") as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_no_file_of_that_name(tmp_path):
    program = f"""
import os
from latte.io.atomic import atomic_path
with atomic_path({str(tmp_path / "a.mp4")!r}) as path:
    path.write_bytes(b"half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert not (tmp_path / "a.mp4").exists()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*a\.mp4"):
        video.save_mp4(gradient(2, 16, 16), tmp_path / "file" / "a.mp4")


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
@pytest.mark.parametrize("suffix", ["mp4", "avi", "gif"])
def test_broken_video_is_named(tmp_path, suffix, content):
    (tmp_path / f"b.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the video .*b.{suffix}"):
        video.read_video(tmp_path / f"b.{suffix}")


def test_truncated_mp4_is_named(tmp_path):
    video.save_mp4(gradient(4, 32, 32), tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:700])
    with pytest.raises(UserError, match=r"cannot read the video .*b\.mp4"):
        video.read_video(tmp_path / "b.mp4")


def test_missing_video_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no video .*a\.mp4"):
        video.read_video(tmp_path / "a.mp4")


@pytest.fixture
def clip(tmp_path):
    """A folder of frames 8 to 11, whose names sort otherwise as text."""
    for number in range(8, 12):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"sky_day2_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    return tmp_path


def test_frames_come_in_order_of_their_number(clip):
    assert video.read_frames(clip)[:, 0, 0, 0].tolist() == [8, 9, 10, 11]
    assert video.read_frames(clip, [3, 1])[:, 0, 0, 0].tolist() == [11, 9]


@pytest.mark.parametrize(
    "pattern", ["{:07d}.png", "frame{}.jpg", "img-{:04d}.jpeg", "f-{}.png", "a_{}.webp", "shot.{:04d}.tif", "x2_{}.bmp"]
)
def test_frames_come_in_order_of_the_number_that_ends_their_names(pattern, tmp_path):
    for number in (0, 2, 9, 10, 11, 100):
        Image.new("L", (4, 4), number).save(tmp_path / pattern.format(number))
        (tmp_path / f"._{pattern.format(number)}").write_bytes(b"left by a Mac")
    (tmp_path / "old_0.png").mkdir()
    assert np.abs(video.read_frames(tmp_path)[:, 0, 0, 0].astype(int) - [0, 2, 9, 10, 11, 100]).max() < 2


@pytest.mark.parametrize(
    "names, said",
    [
        (["1.png", "01.png"], "have the same frame number"),
        (["a_1.png", "a_1.jpg"], "have the same frame number"),
        (["left_1.png", "right_1.png"], "have the same frame number; a folder holds one video"),
        (["20240101_235959.jpg", "20240102_000001.jpg"], "but before it by those in front of that"),
        (["0.75.png", "1.5.png"], "named by decimal fractions"),
        (["1.25.png", "1.5.png"], "named by decimal fractions"),
        (["1.png", "cover.png"], r"cover\.png has no frame number at the end of its name"),
    ],
)
def test_names_of_frames_that_do_not_tell_one_order_are_refused(names, said, tmp_path):
    for name in names:
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(UserError, match=said):
        video.list_frames(tmp_path)


def test_grey_frames_become_colour(tmp_path):
    Image.new("L", (6, 4), 7).save(tmp_path / "a_0.png")
    assert video.read_frames(tmp_path).tolist() == np.full((1, 4, 6, 3), 7).tolist()


def test_mistakes_in_a_folder_of_frames_are_named(clip):
    with pytest.raises(UserError, match="holds 4 frames"):
        video.read_frames(clip, [4])
    with pytest.raises(UserError, match=r"cannot read the folder of frames .*nowhere"):
        video.read_frames(clip / "nowhere")
    (clip / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no frames"):
        video.read_frames(clip / "empty")
    Image.new("RGB", (5, 4)).save(clip / "sky_12.png")
    with pytest.raises(UserError, match=r"sky_12\.png has another size than sky_day2_8\.png"):
        video.read_frames(clip)
    (clip / "sky_12.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot read the frame .*sky_12\.png"):
        video.read_frames(clip)
    (clip / "cover.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"cover\.jpg has no frame number"):
        video.read_frames(clip)
