"""Every array that people hand to a writer of videos comes out as it is, or is refused in a sentence."""

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from latte.errors import UserError
from latte.io.pixels import as_frames

BYTES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)
GREY = BYTES[..., 0]


def pictures(frames, mode=None):
    images = [Image.fromarray(frame) for frame in frames]
    return [image.convert(mode) for image in images] if mode else images


@pytest.mark.parametrize(
    "frames",
    [
        *(BYTES, BYTES.astype(np.int64), BYTES.astype(np.uint16), BYTES.astype(np.float32), BYTES.astype(np.float64)),
        *(FLOATS, FLOATS.astype(np.float64), FLOATS.astype(np.float16), FLOATS * 1.0005 - 1e-4),
        *(BYTES[None], FLOATS[None], np.moveaxis(BYTES, -1, 1), np.moveaxis(FLOATS, -1, 1)[None]),
        *(list(BYTES), tuple(FLOATS), (frame for frame in BYTES), BYTES.tolist(), pictures(BYTES), [pictures(BYTES)]),
        *(np.concatenate([BYTES, BYTES[..., :1]], -1), pictures(BYTES, "RGBA")),
    ],
    ids=lambda frames: f"{type(frames).__name__}-{getattr(frames, 'dtype', '')}",
)
def test_one_video_in_every_form_is_the_same_bytes(frames):
    found = as_frames(frames)
    assert found.dtype == np.uint8 and np.array_equal(found, BYTES)


@pytest.mark.parametrize(
    "frames",
    [
        *(GREY, GREY[..., None], GREY[:, None], GREY / 255, list(GREY), pictures(GREY), pictures(GREY, "F")),
        *(pictures(GREY.astype(np.uint16) * 257), pictures(GREY.astype(np.int32)), pictures(GREY, "LA")),
    ],
)
def test_a_grey_video_in_every_form_has_three_equal_channels(frames):
    assert np.array_equal(as_frames(frames), np.repeat(GREY[..., None], 3, -1))


def test_tensors_images_of_a_palette_and_truth_values():
    assert np.array_equal(as_frames(ms.Tensor(FLOATS)), BYTES)
    assert np.array_equal(as_frames([ms.Tensor(frame) for frame in FLOATS]), BYTES)
    halves = ms.Tensor(FLOATS).astype(ms.bfloat16)
    assert np.abs(as_frames(halves).astype(int) - BYTES).max() <= 1
    image = pictures(BYTES)[0].quantize(256)
    assert np.array_equal(as_frames(image)[0], np.asarray(image.convert("RGB")))
    assert np.array_equal(as_frames(BYTES[0]), BYTES[:1])
    assert np.array_equal(as_frames(BYTES > 100), np.where(BYTES > 100, 255, 0))
    assert (as_frames(np.ones((2, 4, 4, 3))) == 255).all() and (as_frames(np.ones((2, 4, 4, 3), int)) == 1).all()


@pytest.mark.parametrize(
    "frames, said",
    [
        (FLOATS * 2 - 1, r"from -1 to 1, .* bring -1 to 1 to 0 to 1 with \(frames \+ 1\) / 2"),
        (BYTES.astype(int) - 1, "from -1 to 254, but must be from 0 to 255; clip or scale them"),
        (BYTES.astype(np.uint16) * 257, "from 0 to 65535, but must be from 0 to 255; clip"),
        (BYTES * 1.1, "from 0 to 280.5, but must be from 0 to 255 or from 0 to 1"),
        (FLOATS * 1.1, "from 0 to 1.1, but must be from 0 to 255 or from 0 to 1"),
        (FLOATS * np.nan, "not finite"),
        (np.where(BYTES == 7, np.inf, FLOATS), "not finite"),
        (FLOATS * 1j, "values of the type complex"),
        (np.array([None]), "values of the type object"),
        (np.stack([BYTES, BYTES]), r"the shape \(2, 5, 6, 8, 3\); pass one video as \(F, H, W, 3\), \(F, 3, H, W\)"),
        (np.moveaxis(BYTES, -1, 0), r"the shape \(3, 5, 6, 8\)"),
        (BYTES[:3, :1, :, 0].transpose(0, 1, 2)[..., None].repeat(8, -1), r"the shape \(3, 1, 8, 8\)"),
        (BYTES[..., :2], r"the shape \(5, 6, 8, 2\)"),
        (BYTES[:0], "no frames"),
        ([], "no frames"),
        ([BYTES[0], BYTES[0, :4]], r"frame 1 has the shape \(4, 8, 3\), but the first one \(6, 8, 3\)"),
        ([BYTES[0], FLOATS[1]], "frame 1 holds float.* values, but the first one uint8"),
        ("out.mp4", "the text 'out.mp4'"),
        (None, "of the type NoneType"),
    ],
)
def test_what_is_no_video_is_refused_in_a_sentence(frames, said):
    with pytest.raises(UserError, match=said):
        as_frames(frames)
