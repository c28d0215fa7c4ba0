"""Images as people have them: upright, with the right levels, whatever their names say, or refused in a sentence."""

import warnings

import numpy as np
import pytest
from PIL import Image

from latte.errors import UserError
from latte.io import images
from latte.io.images import kind_of, read_animation, read_image
from latte.io.video import read_any, read_images, save_gif, save_mp4

RAMP = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(8, 0)


@pytest.fixture
def halves():
    """Red on the left, blue on the right, 48 x 96."""
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, :48, 0] = pixels[:, 48:, 2] = 255
    return Image.fromarray(pixels)


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_photo_is_turned_upright(kind, halves, tmp_path):
    top_left = {1: 0, 2: 2, 3: 2, 4: 0, 5: 0, 6: 0, 7: 2, 8: 2}  # red, or blue
    for orientation, channel in top_left.items():
        halves.save(tmp_path / f"a.{kind}", exif=turned(orientation))
        found = read_image(tmp_path / f"a.{kind}")
        assert found.shape == ((48, 96, 3) if orientation < 5 else (96, 48, 3))
        assert found[3, 3].argmax() == channel and found[-4, -4].argmax() == 2 - channel


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_hide_a_photo(halves, tmp_path):
    halves.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffbroken")
    assert read_image(tmp_path / "a.jpg").shape == (48, 96, 3)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_grey_gives_the_upper_byte(kind, tmp_path):
    Image.fromarray(RAMP).save(tmp_path / f"a.{kind}")
    assert np.array_equal(read_image(tmp_path / f"a.{kind}"), np.repeat(RAMP[..., None] >> 8, 3, -1))
    Image.fromarray(RAMP).save(tmp_path / f"b.{kind}", exif=turned(6))
    assert np.array_equal(read_image(tmp_path / f"b.{kind}")[:, 0, 0], RAMP[0] >> 8)


def test_16_bit_grey_where_white_is_zero_is_inverted(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.array_equal(read_image(tmp_path / "a.tif")[0, :, 0], 255 - (RAMP[0] >> 8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_levels_of_unknown_range_are_refused(mode, tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has levels of unknown range .* 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "mode, kind",
    [("1", "png"), ("L", "jpg"), ("LA", "png"), ("P", "png"), ("P", "bmp"), ("RGBA", "webp"), ("CMYK", "jpg")],
)
def test_images_of_every_mode_become_rgb(mode, kind, halves, tmp_path):
    image = halves.convert("RGB").convert(mode)
    if mode in ("P", "RGBA"):
        image.putalpha(255) if mode == "RGBA" else image.info.update(transparency=b"\x00" * 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image.save(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))
        found = read_image(tmp_path / f"a.{kind}")
    expected = np.asarray(halves.convert("L").convert("RGB") if mode in ("1", "L", "LA") else halves)
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}
    else:
        assert np.abs(found.astype(int) - expected)[:, [10, 80]].max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "mp4", "webp", "gif"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_kind_of_an_image_is_read_off_its_contents(kind, suffix, halves, tmp_path):
    halves.save(tmp_path / f"a.{suffix}", format=kind)
    assert kind_of(tmp_path / f"a.{suffix}") == "image"
    assert read_any(tmp_path / f"a.{suffix}").shape == (1, 48, 96, 3)


def test_the_kind_of_a_video_is_read_off_its_contents(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    save_gif(frames, tmp_path / "gif.mp4")
    save_mp4(frames, tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "mp4.gif")
    (tmp_path / "mp4.png").write_bytes((tmp_path / "mp4.gif").read_bytes())
    for name in ("gif.mp4", "mp4.gif", "mp4.png"):
        assert read_any(tmp_path / name).shape == frames.shape
    assert kind_of(tmp_path) == "folder"


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_an_animation_is_a_video_but_not_a_frame(kind, tmp_path):
    frames = [Image.new("RGB", (8, 4), (90 * k, 10, 20)) for k in range(3)]
    frames[0].save(tmp_path / f"a_1.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(read_any(tmp_path / f"a_1.{kind}")[:, 0, 0, 0].astype(int) - [0, 90, 180]).max() < 3
    with pytest.raises(UserError, match=f"a_1.{kind} holds several images"):
        read_images([tmp_path / f"a_1.{kind}"])


def test_a_large_animation_is_refused(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (8, 4), (90 * k, 10, 20)) for k in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(images, "MAX_BYTES", 2 * 8 * 4 * 3)
    with pytest.raises(UserError, match=r"a\.webp takes more than .* cut or scale it down"):
        read_animation(tmp_path / "a.webp")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_panorama_beyond_the_limit_of_pillow_is_read_and_one_beyond_ours_refused(name, halves, tmp_path, monkeypatch):
    halves.save(tmp_path / name, compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    monkeypatch.setattr(images, "_STRIP", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(tmp_path / name), np.asarray(halves))
    assert Image.MAX_IMAGE_PIXELS == 2000
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 96 - 1)
    with pytest.raises(UserError, match=r"a\.(png|tif) has 96 x 48 pixels, more than 4,607; scale it down"):
        read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_truncated_image_is_named(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
    whole = (tmp_path / f"whole.{kind}").read_bytes()
    for size in (20, len(whole) // 2, len(whole) - 100):
        (tmp_path / f"a.{kind}").write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"cannot read the image .*a\.{kind}; it is broken"):
            read_image(tmp_path / f"a.{kind}")


def test_a_photo_that_no_decoder_reads_says_its_kind(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match=r"a\.jpg is a HEIC or AVIF image, which is not read; save it as JPEG or PNG"):
        read_any(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jp2", "a.jxl", "a.ppm"])
def test_an_image_of_another_kind_is_refused_with_those_that_are_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"P6 1 1 255 abc")
    with pytest.raises(
        UserError, match=rf"{name}; it is broken or not a video, nor an image that is read \(JPEG, PNG, "
    ):
        read_any(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.png", "x" * 300 + ".png", "a\0.png"])
def test_a_name_without_a_file_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"there is no video, image or folder|cannot read"):
        read_any(tmp_path / name)
