"""Which clips of a folder are compared, and what is made of their frames."""

import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.cache import TYPES, write_cache
from support.clips import make_folder

from latte.errors import UserError
from latte.evaluation.clips import Cut, LatentClips, ShortClipError, VideoClips, drawn, flicker, open_source
from latte.io.video import save_video

CUT = Cut(frames=16, stride=3, seed=0, size=16, jpeg_quality=75)


def no_codec():
    raise AssertionError("no autoencoder is needed")


def test_a_clip_starts_anywhere_that_its_frames_fit_as_in_the_official_code():
    starts = {CUT.places(f"video{k}", 50)[0] for k in range(200)}
    assert starts == {0, 1, 2, 3, 4}  # randint(0, 50 - 48 + 2), its end included
    assert (np.diff(CUT.places("video0", 50)) == 3).all() and len(CUT.places("video0", 50)) == 16


def test_a_video_below_frames_times_stride_is_short_though_the_frames_would_fit():
    assert CUT.places("a", 48)[-1] <= 47
    with pytest.raises(ShortClipError, match="a has 47 frames, fewer than 48"):
        CUT.places("a", 47)


def test_generated_clips_start_at_the_first_frame():
    cut = Cut(frames=16, stride=1, seed=None, size=16, jpeg_quality=0)
    assert cut.places("a", 40).tolist() == list(range(16))


def test_the_draw_depends_on_names_and_seed_only_and_new_videos_leave_the_order_of_others():
    names = [f"v{k}" for k in range(50)]
    order = drawn(names, 0)
    assert order == drawn(reversed(names), 0) != drawn(names, 1) and order != names
    assert [name for name in drawn([*names, "new"], 0) if name != "new"] == order


def test_frames_are_cut_at_the_centre_and_resized_as_the_official_converter_does():
    frame = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    clip = CUT.clip(frame[None], compress=False)
    left = round((41 - 30) / 2)  # torchvision's center_crop
    expected = Image.fromarray(frame[:, left : left + 30]).resize((16, 16), Image.Resampling.LANCZOS)
    assert clip.was == (30, 41) and (clip.frames[0] == np.asarray(expected)).all()


def test_what_is_no_frame_yet_is_compressed_as_the_official_converter_does():
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", q=95)  # as there; Pillow does not know q, and takes 75
    assert (CUT.clip(frame[None]).frames[0] == np.asarray(Image.open(file))).all()
    assert (CUT.clip(frame[None], compress=False).frames == frame).all()


def test_folders_of_frames_are_found_at_any_depth_and_taken_as_they_are(tmp_path):
    make_folder(tmp_path / "one", 2)
    make_folder(tmp_path / "two", 3)
    source = open_source(str(tmp_path), no_codec)
    assert source.names == ["one/clip000", "one/clip001", "two/clip000", "two/clip001", "two/clip002"]
    cut = Cut(frames=16, stride=1, seed=0, size=16, jpeg_quality=1)
    first = np.asarray(Image.open(tmp_path / "one/clip000/0000.png"))
    assert (source.finish(source.load("one/clip000", cut), cut).frames[0] == first).all()


def test_the_folder_of_sample_py_is_its_videos_each_once_without_the_grid(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
    for name in ("video-0000-seed42", "video-0001-seed43", "grid-seed42-43"):
        save_video(frames, tmp_path / name, ("gif", "mp4"))
    (tmp_path / "config.yaml").write_text("seed: 42")
    Image.fromarray(frames[0]).save(tmp_path / "preview.png")
    source = VideoClips(tmp_path)
    assert source.names == ["video-0000-seed42.mp4", "video-0001-seed43.mp4"] and source.size() == 16
    cut = Cut(frames=9, stride=1, seed=None, size=12, jpeg_quality=75)
    clip = source.finish(source.load("video-0001-seed43.mp4", cut), cut)
    assert clip.frames.shape == (9, 12, 12, 3) and clip.was == (16, 16)
    (tmp_path / "video-0000-seed42.mp4").write_bytes((tmp_path / "video-0000-seed42.mp4").read_bytes()[:500])
    with pytest.raises(UserError, match="cannot read the video .*video-0000-seed42.mp4"):
        source.load("video-0000-seed42.mp4", cut)


def test_a_signature_changes_with_a_frame(tmp_path):
    make_folder(tmp_path, 1)
    source = VideoClips(tmp_path)
    before = source.signature("clip000")
    assert source.signature("clip000") == before
    os.utime(tmp_path / "clip000/0003.png", (1, 1))
    assert source.signature("clip000") != before
    (tmp_path / "clip000/0003.png").unlink()
    assert len({before, source.signature("clip000")}) == 2


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_videos_is_told_in_one_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{name}.*name another folder") as told:
        open_source(str(tmp_path / name), no_codec)
    assert "\n" not in str(told.value)


def test_flicker_is_the_mean_difference_of_neighbouring_frames():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 250
    frames[2] = 240
    assert flicker(frames) == 130.0
    assert flicker(np.full((5, 2, 2, 3), 9, np.uint8)) == 0


class StandInCodec:
    """Decodes a frame of latents (4, h, w) to a colour, the first three of their channels in the corner."""

    scale_factor = 0.18215
    vae = SimpleNamespace(config=SimpleNamespace(downsampling=8))

    def __init__(self, weights="f" * 64):
        self.weights = weights

    def cache_settings(self, image_size):
        settings = {"vae_checkpoint": self.weights, "sd_scale_factor": 0.18215, "image_size": image_size}
        return settings | {"frame_shape": [8, 2, 2]}

    def decode(self, latents):
        colours = np.clip(127 + 50 * latents[:, :3, 0, 0] / np.float32(0.18215), 0, 255).astype(np.uint8)
        return np.broadcast_to(colours[:, None, None], (len(latents), 16, 16, 3))


@pytest.mark.parametrize("file_type", TYPES)
def test_a_latent_cache_is_decoded_from_its_means(tmp_path, file_type):
    moments = write_cache(tmp_path, file_type, frames=12)
    source = open_source(str(tmp_path), StandInCodec)
    assert isinstance(source, LatentClips) and len(source.names) == 3 and source.size() == 16
    cut = Cut(frames=9, stride=1, seed=0, size=16, jpeg_quality=0)
    for name, expected in zip(source.names, moments, strict=True):
        clip = source.finish(source.load(name, cut), cut)
        colours = np.clip(127 + 50 * expected[0][cut.places(name, 12), :3, 0, 0].astype(np.float32), 0, 255)
        assert clip.was == (16, 16) and np.abs(clip.frames[:, 3, 5] - np.floor(colours)).max() <= 1
    assert len({source.signature(name) for name in source.names}) == 3
    with pytest.raises(ShortClipError):
        source.load(source.names[0], CUT)


def test_a_latent_cache_of_another_autoencoder_is_refused(tmp_path):
    write_cache(tmp_path, "numpy")
    with pytest.raises(UserError, match="weights of another autoencoder"):
        open_source(str(tmp_path), lambda: StandInCodec("0" * 64))
