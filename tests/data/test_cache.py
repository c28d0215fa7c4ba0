"""The latent cache: what is stored, both formats, training from it, interruptions, and caches that do not fit."""

import dataclasses
import errno
import itertools
import json
import logging
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from support.cache import SMALL, TYPES, content, options, write_clip

from latte import load_vae
from latte.components.codec import Codec
from latte.config import TrainConfig
from latte.data.cache import MANIFEST, OLD_NAME, TEXT, read_cache
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.index import list_records
from latte.data.loader import TrainingSource, make_loader
from latte.errors import UserError
from latte.io.video_file import READER
from latte.training.build import build, open_cache
from latte.training.cache_maker import CacheMaker, ahead, make_cache, verify_cache

NETWORK = {"hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 2, "num_frames": 4, "train_batch_size": 2}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("cached") / "frames"
    for seed, name in enumerate(("day/a", "day/b", "night/c", "night/d", "night/e")):
        write_clip(root / name, 5 + 4 * seed, seed)
    return root


@pytest.fixture(scope="module", params=TYPES)
def whole(request, videos, tmp_path_factory):
    """A float32 cache with mirrored videos."""
    folder = tmp_path_factory.mktemp("caches") / request.param
    assert make_cache(options(videos, folder, cache_file_type=request.param, cache_dtype="fp32", flip=True)).failed == 0
    return folder


@pytest.fixture
def small_segments(monkeypatch):
    """Rows of three frames, so that windows lie in several."""
    monkeypatch.setattr("latte.data.records.SEGMENT_BYTES", 3 * 8 * 8 * 8 * 4)


def test_the_moments_of_every_frame_are_those_of_the_autoencoder(videos, whole):
    codec, cache = Codec(load_vae(SMALL["vae_checkpoint"]), frames_per_slice=8), read_cache(whole)
    store = PixelStore(16, "crop_resize")
    dataset = VideoDataset(cache.index(), 4, cache, TrainConfig(random_flip=True), 0)
    direct = VideoDataset(
        list_records(TrainConfig(data_folder=str(videos))), 4, store, TrainConfig(random_flip=True), 0
    )
    source = TrainingSource(dataset, (4, 4, 8, 8), seed=0)
    rows = list(make_loader(source, 1, 0, 12, 0, 1, 1).create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert len(rows) == 12
    for position, row in enumerate(rows):
        expected = codec.moments(direct.sample(position).x)
        assert np.abs(row[0][0] - expected).max() < 1e-6 * np.abs(expected).max()


def test_both_formats_give_the_same_batches_whatever_the_segments(videos, tmp_path, small_segments):
    batches = {}
    for kind in TYPES:
        make_cache(options(videos, tmp_path / kind, cache_file_type=kind))
        cache = read_cache(tmp_path / kind)
        cfg = TrainConfig(sample_stride=2, images_per_video=2)
        source = TrainingSource(VideoDataset(cache.index(), 4, cache, cfg, 5), (6, 4, 8, 8), 5, num_classes=2)
        loader = make_loader(source, 2, 3, 9, 1, 2, 1)
        batches[kind] = list(loader.create_tuple_iterator(num_epochs=1, output_numpy=True))
    for one, other in zip(batches["numpy"], batches["mindrecord"], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert (batches["numpy"][0][0].shape, len(batches["numpy"])) == ((2, 6, 8, 8, 8), 6)


@pytest.mark.slow
def test_the_loss_from_the_cache_is_that_from_the_videos(videos, tmp_path):
    cfg = TrainConfig(**SMALL, **NETWORK, data_folder=str(videos), max_steps=100, start_learning_rate=0)
    training = build(cfg)  # on CPU its step begins with moments; learning nothing, it can be called again and again

    def losses(source):
        loader = make_loader(source, 2, 0, 3, 0, 1, 1)
        for x, *others in loader.create_tuple_iterator(num_epochs=1, output_numpy=True):
            x = x if x.shape[2] == 8 else training.encode(x)
            yield float(training.call(ms.Tensor(x), *map(ms.Tensor, others)))

    expected = np.array(list(losses(training.source)))
    for kind, dtype, limit in (("numpy", "fp32", 1e-6), ("mindrecord", "fp32", 1e-6), ("numpy", "fp16", 1e-2)):
        folder = tmp_path / f"{kind}-{dtype}"
        make_cache(options(videos, folder, cache_file_type=kind, cache_dtype=dtype))
        cached = build(dataclasses.replace(cfg, data_folder=None, cache_folder=str(folder)))
        assert not cached.encodes and cached.step.vae is None
        assert np.abs(np.array(list(losses(cached.source))) / expected - 1).max() < limit


def test_a_bad_video_is_recorded_and_the_others_are_there(tmp_path, capsys):
    for number in range(20):
        write_clip(tmp_path / "frames" / f"c{number:02d}", 6, number)
    (tmp_path / "frames" / "c07" / "x_3.png").write_bytes(b"broken")
    for kind in TYPES:
        cfg = options(tmp_path / "frames", tmp_path / kind, cache_file_type=kind)
        assert make_cache(cfg).failed == 1
        out = capsys.readouterr().out
        assert "Start Video Index: 0.\n" in out and "Saving Attempts: 1: save 19 videos, failed 1 videos.\n" in out
        assert "failed: cannot read" in out and "c07/x_3.png" in out
        entries = read_cache(tmp_path / kind).entries
        assert [number for number, entry in entries.items() if entry.error] == [7] and "c07" in entries[7].error
        verify_cache(cfg.cache_folder)
        assert "19 files are whole; 1 videos failed, 0 are missing" in capsys.readouterr().out
        assert not list((tmp_path / kind).glob(".m*")) and not list((tmp_path / kind).glob("journal*"))
    # The same windows as from the videos: the bad one keeps its number, and is skipped at the same positions.
    dataset = VideoDataset(read_cache(tmp_path / "numpy").index(), 4, read_cache(tmp_path / "numpy"), cfg, 0)
    direct = VideoDataset(list_records(cfg), 4, PixelStore(16, "crop_resize"), cfg, 0)
    pairs = [(dataset.sample(position), direct.sample(position)) for position in range(20)]
    assert all(one.record == other.record for one, other in pairs) and all(one.record != 7 for one, _ in pairs)
    write_clip(tmp_path / "mended", 6, 7)
    (tmp_path / "frames" / "c07" / "x_3.png").write_bytes((tmp_path / "mended" / "x_3.png").read_bytes())
    assert make_cache(cfg).failed == 0 and "Start Video Index: 7.\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", TYPES)
def test_going_on_rewrites_nothing_and_ends_with_the_same_files(kind, videos, tmp_path, monkeypatch, capsys):
    cfg = options(videos, tmp_path / "whole", cache_file_type=kind)
    make_cache(cfg)
    cut = dataclasses.replace(cfg, cache_folder=str(tmp_path / "cut"))
    encoded = CacheMaker._moments

    def fails_later(maker, pixels):
        if maker.clock.frames > 12:
            raise UserError("no more")
        return encoded(maker, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(CacheMaker, "_moments", fails_later)
        with pytest.raises(UserError, match="no more"):
            make_cache(cut)
    (journal,) = (tmp_path / "cut").glob("journal*")
    journal.write_text(journal.read_text() + '{"index": 4, "pa')  # a line that was cut off
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("0*")}
    assert there and read_cache(tmp_path / "cut").index().records
    capsys.readouterr()
    make_cache(cut)
    assert "Start Video Index: 2.\n" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in there.items())
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_is_said_counts_every_frame_and_names_the_folder_and_what_comes_next(videos, tmp_path, caplog, capsys):
    with caplog.at_level("INFO", "latte"):
        make_cache(options(videos / "day", tmp_path / "c"))
    assert "14 frames encoded" in caplog.text  # 5 and 9: the first slice, which is not timed, is counted
    assert f"the latents of 2 videos are in {tmp_path / 'c'}; train from them with train.py" in caplog.text
    assert capsys.readouterr().out == (
        f"data: moments 8x8x8 of 2 videos as numpy in fp16 to {tmp_path / 'c'}: 1.0 kB per frame\n"
        "Start Video Index: 0.\nSaving Attempts: 1: save 2 videos, failed 0 videos.\n"
    )


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(videos, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, logger="latte")
    made = make_cache(options(videos, tmp_path / "cache", dry_run=True, flip=True, cache_dtype="fp32"))
    said = capsys.readouterr().out
    assert made.failed == 0 and not list(tmp_path.iterdir())
    assert "videos opened, 0 of them cannot be used" in caplog.text
    assert said == (
        f"would write moments 8x8x8 of 5 videos as numpy in fp32 to {tmp_path / 'cache'}: 4.1 kB per frame\n"
    )
    missing = tmp_path / "clips"
    make_cache(options(missing, tmp_path / "cache", dry_run=True, demo_clips=2))
    assert f"would draw 2 clips of each class into {missing} first" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(videos, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot make cache_folder .*file/c: Not a directory; name another one"):
        make_cache(options(videos, tmp_path / "file" / "c"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".git").mkdir()  # foreign, and a leftover of a process that was killed before the manifest
    (tmp_path / "c" / ".manifest-abcdefgh.json").write_bytes(b"{")
    write = Path.unlink

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(UserError, match=r"cannot remove what an interrupted run left in .*: Read-only file system"):
        make_cache(options(videos / "day", tmp_path / "c"))
    monkeypatch.setattr(Path, "unlink", write)
    assert make_cache(options(videos / "day", tmp_path / "c")).failed == 0
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.name.startswith(".")) == [".git", ".lock"]


def test_latents_that_do_not_fit_are_a_failed_video(videos, tmp_path, monkeypatch):
    moments, calls = Codec.moments, []

    def overflows_first(codec, frames):
        calls.append(len(frames))
        return moments(codec, frames) + np.float32(1e6 if len(calls) == 1 else 0)

    monkeypatch.setattr(Codec, "moments", overflows_first)
    assert make_cache(options(videos / "day", tmp_path / "c")).failed == 1
    failed = read_cache(tmp_path / "c").entries[0].error
    assert "day/a has latents that are not finite as float16; try cache_dtype fp32" in failed


def test_verify_finds_a_damaged_file_which_is_made_again(videos, tmp_path, capsys):
    cfg = options(videos, tmp_path / "c")
    make_cache(cfg)
    before, path = content(tmp_path / "c"), tmp_path / "c" / "00000002.npy"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"1 of 5 files of .* are damaged or missing: 00000002\.npy; delete them"):
        verify_cache(cfg.cache_folder)
    path.unlink()
    make_cache(cfg)
    assert content(tmp_path / "c") == before
    make_cache(dataclasses.replace(cfg, cache_folder=str(tmp_path / "later"), resume_cache_index=3))
    assert sorted(read_cache(tmp_path / "later").entries) == [3, 4]


@pytest.mark.parametrize(
    "others, said",
    [
        ({"image_size": 32}, "made with image_size 16, but the options ask for image_size 32"),
        ({"cache_dtype": "fp32"}, 'made with cache_dtype "fp16", but the options ask for cache_dtype "fp32"'),
        ({"transform": "resize_crop"}, 'made with transform "crop_resize"'),
        ({"sd_scale_factor": 0.5}, "made with sd_scale_factor 0.18215, but the options ask for sd_scale_factor 0.5"),
        ({"random_flip": True}, "made with flip false, but the options ask for flip true"),
        ({"vae_checkpoint": "other"}, "made with the weights of another autoencoder"),
        ({"cache_folder": "nowhere"}, "cache_folder nowhere holds no cache"),
        ({"frame_list": "list.txt"}, "frame_list names image files, but cache_folder has none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_that_does_not_fit_is_refused(others, said, videos, tmp_path):
    make_cache(options(videos, tmp_path / "c", resume_cache_index=4))
    if "vae_checkpoint" in others:
        from latte.weights.files import read_state_dict, write_state_dict

        state = read_state_dict(SMALL["vae_checkpoint"])
        changed = {name: values * 1.01 for name, values in state.tensors.items()}
        others = {"vae_checkpoint": str(tmp_path / "vae.safetensors")}
        write_state_dict(others["vae_checkpoint"], changed, state.metadata)
    cfg = TrainConfig(**{**SMALL, **NETWORK, "cache_folder": str(tmp_path / "c"), "max_steps": 1, **others})
    with pytest.raises(UserError) as caught:
        build(cfg)
    assert said in str(caught.value)
    if not {"random_flip", "frame_list", "cache_folder"} & set(others):
        with pytest.raises(UserError):
            make_cache(options(videos, tmp_path / "c", **others))


def test_a_cache_of_video_files_by_an_earlier_reader_is_told_and_not_gone_on_with(videos, tmp_path, caplog):
    cfg = options(videos, tmp_path / "c", resume_cache_index=4)
    make_cache(cfg)
    manifest = tmp_path / "c" / MANIFEST
    made = json.loads(manifest.read_text())
    assert made["settings"].pop("reader") == READER
    manifest.write_text(json.dumps(made))
    open_cache(training := TrainConfig(**SMALL), str(tmp_path / "c"), {})
    assert "another reader" not in caplog.text  # frames in folders are what they were
    made["videos"][0]["path"] = "day/a.AVI"
    manifest.write_text(json.dumps(made))
    open_cache(training, str(tmp_path / "c"), {})
    said = "by another reader of video files, which may have taken other frames of day/a.AVI"
    assert said in caplog.text and "make it again in a new folder" in caplog.text
    with pytest.raises(UserError, match=said):
        make_cache(cfg)


def test_other_videos_or_a_damaged_manifest_are_refused(videos, tmp_path):
    cfg = options(videos / "day", tmp_path / "c")
    make_cache(cfg)
    with pytest.raises(UserError, match="is of other videos than data_folder"):
        make_cache(dataclasses.replace(cfg, data_folder=str(videos)))
    with pytest.raises(UserError, match="holds other files; name a new folder"):
        make_cache(dataclasses.replace(cfg, cache_folder=str(videos)))
    manifest = tmp_path / "c" / MANIFEST
    good = manifest.read_text()
    for text, said in (
        (good[:-9], "is damaged"),
        (good.replace("cache-2", "cache-9"), "is of the format 'latte-cache-9'"),
    ):
        manifest.write_text(text)
        with pytest.raises(UserError, match=said):
            read_cache(tmp_path / "c")
    for number in (0, 1):
        (tmp_path / "c" / f"{number:08d}.npy").write_bytes(b"")
    manifest.write_text(good)
    with pytest.raises(UserError, match=r"0000000\d.npy; it is missing or broken"):
        build(TrainConfig(**SMALL, **NETWORK, cache_folder=str(tmp_path / "c"), max_steps=1)).source[0]


def test_a_cache_for_text_brings_its_embeddings(videos, tmp_path):
    lines = ["video,caption", "day/a,one", "night/c,two", "night/d,one"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    text = np.random.default_rng(0).normal(size=(3, 77, 768)).astype(np.float32)
    np.savez(
        tmp_path / "t.npz", captions=np.array(["two", "none", "one"]), text=text, null=np.zeros((77, 768), np.float32)
    )
    table = {
        "data_layout": "csv",
        "csv_path": str(tmp_path / "t.csv"),
        "caption_column": "caption",
        "condition": "text",
    }
    with pytest.raises(UserError, match="neither text_encoder_path nor text_embeddings is set"):
        make_cache(options(videos, tmp_path / "c", **table))
    make_cache(options(videos, tmp_path / "c", **table, text_embeddings=str(tmp_path / "t.npz")))
    assert (tmp_path / "c" / TEXT).exists()
    cfg = TrainConfig(**SMALL, **NETWORK, cache_folder=str(tmp_path / "c"), condition="text", class_dropout_prob=0)
    source = build(dataclasses.replace(cfg, max_steps=1)).source
    found = {source.dataset.sample(position).record: source[position][-1] for position in range(3)}
    assert all(np.array_equal(found[record], text[place]) for record, place in enumerate((2, 0, 2)))


def test_the_tutorials_caches_are_read(tmp_path):
    latents = np.random.default_rng(0).normal(size=(12, 4, 8, 8)).astype(np.float32)
    for number, latent in enumerate(latents):
        path = tmp_path / "old" / "clip" / f"{OLD_NAME}{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, latent)
    cfg = {**SMALL, **NETWORK, "cache_folder": str(tmp_path / "old"), "max_steps": 1, "train_batch_size": 1}
    training = build(TrainConfig(**cfg))
    x, noise = training.source[0][:2]
    window = training.codec.sample(x, noise)
    (start,) = [s for s in range(9) if np.abs(window - latents[s : s + 4]).max() < 1e-5]
    assert training.source.dataset.reason(0).startswith("clip could not be read for a while") and start < 9


def test_what_is_made_ahead_comes_in_order_and_so_do_errors():
    def items():
        yield from range(5)
        raise ValueError("the sixth")

    made = ahead(items())
    assert list(itertools.islice(made, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(made)
