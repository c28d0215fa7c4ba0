"""Caches that are damaged, hostile or old: what is broken is named and passed over, and nothing else is lost."""

import json
import os
import shutil

import numpy as np
import pytest
from support.cache import TYPES, write_cache

from latte.config import TrainConfig
from latte.data import records
from latte.data.cache import MANIFEST, read_cache
from latte.data.dataset import VideoDataset
from latte.data.loader import TrainingSource, make_loader
from latte.errors import UserError
from latte.training.cache_maker import remove_leftovers


@pytest.fixture(scope="module", params=TYPES)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / request.param
    return folder, write_cache(folder, request.param)


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "cache"), whole[1]


def read_epoch(folder):
    """Return the windows of an epoch, which videos were skipped, and why."""
    cache = read_cache(folder)
    dataset = VideoDataset(cache.index(), 4, cache, TrainConfig(), 0)
    rows = make_loader(TrainingSource(dataset, (4, 4, 2, 2), 0), 1, 0, len(dataset), 0, 1, 1)
    rows = list(rows.create_tuple_iterator(num_epochs=1, output_numpy=True))
    skipped = {int(number) for row in rows for number in row[4].ravel() if number >= 0}
    return [row[0][0] for row in rows], {number: dataset.reason(number) for number in sorted(skipped)}


def file_of(folder, number):
    return next(path for path in folder.glob(f"{number:08d}.*") if path.suffix != ".db")


def change(path, data, at=None):
    """Overwrite bytes of a file, at its end by default."""
    content = bytearray(path.read_bytes())
    at = len(content) - len(data) if at is None else at
    content[at : at + len(data)] = data
    path.write_bytes(content)


def is_of(window, moments):
    return any(np.array_equal(window, moments[0, k : k + 4].astype(np.float32)) for k in range(3))


@pytest.mark.parametrize("value", [np.nan, 1.0], ids=["nan", "another number"])
def test_a_video_with_damaged_latents_is_skipped_and_named(value, cache):
    folder, moments = cache
    place = file_of(folder, 1).read_bytes().index(moments[1][0].tobytes())
    # Frames 2 and 3 are in every window of four out of six.
    change(file_of(folder, 1), np.full(64, value, np.float16).tobytes(), place + 2 * 64)
    windows, skipped = read_epoch(folder)
    assert list(skipped) == [1] and file_of(folder, 1).name in skipped[1]
    assert "damaged" in skipped[1] and "make the cache again" in skipped[1]
    assert all(is_of(window, moments[0]) or is_of(window, moments[2]) for window in windows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_were_never_finite_are_skipped_and_named(value, tmp_path, monkeypatch):
    checksums = records.checksums
    with monkeypatch.context() as patch:  # a cache made by a version that did not look
        patch.setattr(np.random, "default_rng", lambda seed: _Odd(seed, value))
        written = {kind: write_cache(tmp_path / kind, kind) for kind in TYPES}
    for kind in TYPES:
        assert checksums(written[kind][1][0]).shape == (6,)
        _, skipped = read_epoch(tmp_path / kind)
        assert list(skipped) == [1] and "not finite" in skipped[1] and "00000001" in skipped[1]


class _Odd:
    def __init__(self, seed, value):
        self.seed, self.value = seed, value

    def normal(self, size):
        return np.full(size, self.value if self.seed == 1 else 0.5)


def test_a_file_that_is_cut_or_foreign_is_skipped_and_named(cache):
    folder, moments = cache
    for content in (b"", file_of(folder, 2).read_bytes()[:400], np.random.default_rng(0).bytes(5000), None):
        file_of(folder, 2).write_bytes(content) if content is not None else file_of(folder, 2).unlink()
        windows, skipped = read_epoch(folder)
        assert list(skipped) == [2] and "00000002" in skipped[2] and "make the cache again" in skipped[2]
        assert all(is_of(window, moments[0]) or is_of(window, moments[1]) for window in windows)


@pytest.mark.parametrize("lost", [b"}", b"(", b"'"])
def test_a_numpy_file_with_a_broken_header_is_skipped_and_named(lost, tmp_path):
    write_cache(tmp_path, "numpy")
    change(tmp_path / "00000000.npy", b" ", (tmp_path / "00000000.npy").read_bytes().index(lost))
    _, skipped = read_epoch(tmp_path)
    assert list(skipped) == [0] and "the header of its array is broken" in skipped[0]


def test_mindspore_never_opens_a_file_whose_structure_is_damaged(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(records.ms.dataset, "MindDataset", lambda files, **_: opened.extend(files))
    write_cache(tmp_path, "mindrecord")
    whole = [file_of(tmp_path, number) for number in range(3)]
    change(whole[0], b"\xff" * 8, 300)  # its header
    change(whole[1], b"\xff" * 4)  # the rows beside the moments
    change(tmp_path / "00000002.mindrecord.db", b"\xff" * 8, 4096)
    assert read_cache(tmp_path).files == [] and not opened


def test_older_caches_without_checksums_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(records, "checksums", lambda _: np.zeros(0, "<u4"))
        written = {kind: write_cache(tmp_path / kind, kind, older=True) for kind in TYPES}
    for kind in TYPES:
        manifest = tmp_path / kind / MANIFEST
        content = json.loads(manifest.read_text()) | {"format": "latte-cache-1"}
        for video in content["videos"]:
            del video["structure"]
        manifest.write_text(json.dumps(content))
        windows, skipped = read_epoch(tmp_path / kind)
        assert not skipped and all(any(is_of(window, moments) for moments in written[kind]) for window in windows)
    change(tmp_path / "mindrecord" / "00000001.mindrecord", b"\xff" * 8, 300)  # found by the checksum of all of it
    assert list(read_epoch(tmp_path / "mindrecord")[1]) == [1]


WRONG = {
    "settings.flip": (None, "x", 1),
    "settings.transform": (None, 5),
    "settings.frame_shape": (5, [8, 2], [8, -2, 2], [7, 2, 2], [2**40, 2**40, 2]),
    "settings.cache_dtype": ("fp8", []),
    "settings.cache_file_type": ("frames", "../x"),
    "settings.image_size": (0, True, 1.5),
    "settings.sd_scale_factor": (0, "1", float("nan"), float("inf")),
    "settings": ([], None),
    "classes": ({}, [1]),
    "total": ("x", 0, 2**70, 1.5),
    "videos": ({}, None),
    "videos[0]": (5,),
    "videos[0].file": (7, "../frames/x.npy", "/etc/passwd", ".lock", "00000000.mindrecord.npy", ""),
    "videos[0].frames": (0, -1, True, 2**63),
    "videos[1].index": (3, -1, "1"),
    "videos[0].label": (2, -1, 0.5),
    "videos[0].path": (None, 3),
    "videos[0].caption": ({},),
    "videos[0].sha256": ("f" * 63, 1),
}


def test_a_manifest_with_wrong_values_is_refused_by_the_name_of_the_key(tmp_path):
    write_cache(tmp_path, "numpy")
    good = (tmp_path / MANIFEST).read_text()
    for key, values in WRONG.items():
        for value in (*values, KeyError):
            content = json.loads(good)
            *path, last = key.replace("[", ".").replace("]", "").split(".")
            holder = content
            for part in path:
                holder = holder[int(part) if part.isdigit() else part]
            if value is not KeyError:
                holder[int(last) if last.isdigit() else last] = value
            elif isinstance(holder, dict):
                del holder[last]
            else:
                continue
            (tmp_path / MANIFEST).write_text(json.dumps(content))
            with pytest.raises(UserError) as caught:
                read_cache(tmp_path)
            said = str(caught.value)
            assert key in said and MANIFEST in said and said.isprintable() and len(said) < 400, (key, value, said)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "null", '{"format": 1}', "\xff", ""])
def test_a_manifest_or_journal_that_is_no_manifest_is_one_sentence(text, tmp_path):
    write_cache(tmp_path, "numpy")
    journal = tmp_path / "journal-0000.jsonl"
    line = journal.read_text()
    journal.write_bytes(line.encode() + text.encode("latin1") + b"\n")
    with pytest.raises(UserError, match=r"journal"):
        read_cache(tmp_path)
    journal.write_text(line)
    (tmp_path / MANIFEST).write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=MANIFEST):
        read_cache(tmp_path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(cache):
    folder, _ = cache
    file_of(folder, 2).unlink()
    os.mkfifo(file_of(folder, 1).with_stem("00000002"))
    assert "missing or no file" in read_epoch(folder)[1][2]
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(UserError, match=r"manifest\.json is a pipe, .*, not a file"):
        read_cache(folder)


def test_frames_of_the_tutorial_are_named_where_they_are_broken(tmp_path):
    for number in range(8):
        (tmp_path / "clip").mkdir(exist_ok=True)
        np.save(tmp_path / "clip" / f"video_latent-{number}.npy", np.full((4, 2, 2), number, np.float32))
    np.save(tmp_path / "clip" / "video_latent-3.npy", np.full((4, 2, 2), np.nan, np.float32))
    cache = read_cache(tmp_path)
    cache.check({"sd_scale_factor": 1.0})
    clip = cache.open(cache.index().records[0])
    with pytest.raises(UserError, match=r"video_latent-3\.npy is broken: its latents are not finite"):
        clip.read(np.arange(4), False)
    assert clip.read(np.arange(4, 8), False)[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    np.save(tmp_path / "clip" / "video_latent-last.npy", np.zeros((4, 2, 2)))
    with pytest.raises(UserError, match="has no number of a frame"):
        cache.open(cache.index().records[0])


def test_only_leftovers_of_the_cache_itself_are_removed(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "elsewhere").mkdir()
    kept = [".git", ".dvc", ".lock", ".gitignore", ".00000000.txt", "00000000.npy", "elsewhere"]
    left = [".00000001", ".00000002-a1b2c3d4.npy", ".moments-00000003.npy", "..moments-00000004-abcdefg_.npy"]
    left += [".manifest-abcdefgh.json", ".text_embeddings-01234567.npz"]
    for name in (*kept[1:-1], *left[1:]):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / left[0]).mkdir()
    (tmp_path / ".00000009").symlink_to(tmp_path / "elsewhere")  # rmtree refuses links
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
