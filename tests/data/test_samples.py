"""From files to batches: windows, transforms, broken videos, ranks, a start in the middle."""

import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import psutil
import pytest
from PIL import Image
from support.golden_values import error, recorded

from latte.config import DataConfig
from latte.data import clips
from latte.data import loader as loading
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.index import list_records
from latte.data.loader import TrainingSource, fetch, make_loader, read_text, unwrapped
from latte.data.text_embeddings import Captions
from latte.data.transforms import to_pixels
from latte.errors import UserError
from latte.io.video import save_gif, save_mp4


def numbered(count, height=16, width=24):
    """Frames whose brightness is their number times 5."""
    return np.repeat(np.arange(count, dtype=np.uint8) * 5, height * width * 3).reshape(count, height, width, 3)


def write_folder(folder, count, **sizes):
    folder.mkdir(parents=True)
    for number, frame in enumerate(numbered(count, **sizes)):
        Image.fromarray(frame).save(folder / f"f_{number + 1}.png")


def dataset(root, num_frames=4, size=16, seed=3, **options):
    options = DataConfig(data_folder=str(root), **options)
    return VideoDataset(list_records(options), num_frames, PixelStore(size, options.transform), options, seed)


def frame_numbers(pixels):
    return np.round((pixels[:, 0, 0, 0] + 1) * 127.5 / 5).astype(int)


@pytest.fixture
def folders(tmp_path):
    for number in range(5):
        write_folder(tmp_path / f"clip{number}", 12 + number)
    return tmp_path


def test_transforms_are_those_of_the_official_code():
    arrays = recorded("transforms")
    for name in ("wide", "high"):
        frames = arrays[name].astype(np.uint8)
        for transform in ("crop_resize", "resize_crop"):
            expected = arrays[f"{name}_{transform}"]
            assert error(to_pixels(frames, expected.shape[-1], transform), expected) < 1e-5
    flipped = to_pixels(frames, 10, "crop_resize", flip=True)
    assert np.array_equal(flipped[..., ::-1], to_pixels(frames, 10, "crop_resize"))


@pytest.mark.parametrize("transform", ["crop_resize", "resize_crop"])
def test_every_short_edge_gives_the_size_asked_for(transform):
    for short in range(16, 520):  # 230 of the edges below 2200 times (256 / edge) are just below 256
        for shape in ((1, short, short + 3, 3), (1, short + 3, short, 3)):
            assert to_pixels(np.zeros(shape, np.uint8), 32, transform).shape == (1, 3, 32, 32), shape


@pytest.mark.parametrize("kind", ["mp4", "gif", "folder"])
def test_clips_read_only_the_wanted_frames(kind, tmp_path):
    if kind == "folder":
        write_folder(tmp_path / "clip", 20, height=32, width=32)
        path = tmp_path / "clip"
    elif kind == "gif":
        path = tmp_path / "clip.gif"
        save_gif(numbered(20, 32, 32), path)
    else:
        path = tmp_path / "clip.mp4"
        save_mp4(numbered(20, 32, 32), path)
    clip = clips.open_clip(path)
    assert clip.length == 20
    read = clip.read(np.array([3, 9, 19]))
    assert read.dtype == np.uint8 and read.shape == (3, 32, 32, 3)
    assert np.abs(read[:, 16, 16].astype(int) - np.array([[15], [45], [95]])).max() <= 3


def test_windows_take_every_stride_th_frame_and_start_anywhere_that_fits(folders):
    data = dataset(folders, sample_stride=3)
    starts = set()
    for position in range(60):
        sample = data.sample(position)
        numbers = frame_numbers(sample.x)
        assert np.array_equal(np.diff(numbers), [3, 3, 3])
        starts.add((sample.record, numbers[0]))
    assert {start for record, start in starts if record == 0} == {0}  # 12 frames: one window of 4 x 3
    assert {start for record, start in starts if record == 4} == {0, 1, 2, 3, 4}


def test_an_epoch_has_every_video_once_and_positions_decide_everything(folders):
    data, again = dataset(folders), dataset(folders)
    epochs = [[data.sample(e * 5 + i).record for i in range(5)] for e in range(3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and epochs[0] != epochs[1]
    for position in (0, 7, 1000003):
        a, b = data.sample(position), again.sample(position)
        assert a.record == b.record and np.array_equal(a.x, b.x)
    other = dataset(folders, seed=4)
    assert [other.sample(i).record for i in range(10)] != [data.sample(i).record for i in range(10)]


def test_broken_and_short_videos_are_skipped_and_named(folders):
    (folders / "clip1" / "f_3.png").write_bytes(b"")
    for path in (folders / "clip2").glob("f_1*.png"):
        path.unlink()
    data = dataset(folders, num_frames=9)
    seen = [data.sample(position) for position in range(40)]
    assert skipped_in(seen) == {1, 2} and {sample.record for sample in seen} == {0, 1, 3, 4}
    assert "clip2 has 8 frames, but 9 frames" in data.reason(2)
    assert data.reason(1) == f"cannot read the frame {folders}/clip1/f_3.png; it is broken or not an image"


def skipped_in(samples):
    return {int(number) for sample in samples for number in sample.skipped[sample.skipped >= 0]}


def test_a_reason_is_found_wherever_the_video_is_broken(folders):
    (folders / "clip4" / "f_16.png").write_bytes(b"")
    assert "f_16.png" in dataset(folders).reason(4)
    assert "could not be read for a while" in dataset(folders).reason(0)


def test_corrupt_mp4s_are_skipped(tmp_path):
    save_mp4(numbered(12, 16, 16), tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])
    (tmp_path / "c.mp4").write_bytes(b"")
    data = dataset(tmp_path, data_layout="video_files")
    samples = [data.sample(position) for position in range(6)]
    assert {sample.record for sample in samples} == {0}
    assert skipped_in(samples) == {1, 2}
    assert "b.mp4; it is broken or not a video" in data.reason(1)


def test_nothing_but_broken_videos_is_an_error(tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"1 videos in a row cannot be used; of the last one: .*b\.mp4"):
        dataset(tmp_path, data_layout="video_files").sample(0)


def test_single_images_follow_the_video_with_labels_of_their_own(tmp_path):
    write_folder(tmp_path / "a" / "one", 8)
    write_folder(tmp_path / "b" / "two", 8)
    data = dataset(tmp_path, images_per_video=3)
    sample = data.sample(0)
    assert sample.x.shape == (7, 3, 16, 16) and sample.labels.shape == (4,)
    assert {int(label) for position in range(10) for label in data.sample(position).labels[1:]} == {0, 1}


def test_single_images_of_a_table_have_captions_of_their_own(tmp_path):
    write_folder(tmp_path / "one", 8)
    for number in (2, 7):
        Image.fromarray(numbered(8)[number]).save(tmp_path / f"image{number}.png")
    (tmp_path / "t.csv").write_text("video,caption\none,moving\nimage2.png,two\nimage7.png,seven\n")
    table = {"data_layout": "csv", "csv_path": str(tmp_path / "t.csv"), "caption_column": "caption"}
    assert len(dataset(tmp_path, **table)) == 3  # videos, of which two are too short
    data = dataset(tmp_path, images_per_video=2, **table)
    said = [record.caption for record in (*data.index.records, *data.index.images)]
    assert len(data) == 1 and said == ["moving", "two", "seven"]
    rows = [np.full((1, 3), number, np.float32) for number in range(4)]
    captions = Captions.pack(said, rows, np.eye(1, 5, dtype=np.int32).repeat(4, 0), np.float32)
    clip = (np.arange(3.0).reshape(3, 1, 1), np.arange(3), np.array([[3.0]]))
    for given in ({"captions": captions}, {"text": clip}):
        made = TrainingSource(data, (6, 2, 8, 8), seed=3, dropout=0.5, **given)
        texts, images = [], []
        for position in range(20):
            x, *_, text = made[position][:6]
            texts.append(text[:, 0, 0].tolist())
            images.append([{2: 1, 7: 2}[number] for number in frame_numbers(x)[4:]])
        kept = [text for text in texts if text != [3, 3, 3]]
        assert 0 < len(kept) < 20  # all are dropped together
        assert all(text in ([0, *image], [3, 3, 3]) for text, image in zip(texts, images, strict=True))
    assert made.columns[-1] == "text" and made.row_bytes() > 0


def test_broken_single_images_are_skipped_and_named(tmp_path):
    for name in ("one", "two"):
        write_folder(tmp_path / name, 8)
    Image.fromarray(numbered(3)[2]).save(tmp_path / "one" / "f_9.jpg")
    (tmp_path / "one" / "f_10.jpg").write_bytes(b"")
    (tmp_path / "list.txt").write_text("one/f_9.jpg\none/f_10.jpg\ntwo/f_99.jpg\n")
    data = dataset(tmp_path, images_per_video=2, frame_list=str(tmp_path / "list.txt"), num_frames=8)
    samples = [data.sample(position) for position in range(20)]
    assert all(np.array_equal(frame_numbers(sample.x)[8:], [2, 2]) for sample in samples)
    assert skipped_in(samples) == {0, 3, 4}  # the images have numbers after those of the two videos
    assert "f_10.jpg; it is broken" in data.reason(3) and "there is no video" in data.reason(4)


def source(folders, **options):
    return TrainingSource(dataset(folders), (4, 2, 8, 8), seed=3, **options)


def batches(folders, batch_size, first, last, rank=0, world=1, workers=1):
    loader = make_loader(source(folders, num_classes=3), batch_size, first, last, rank, world, workers)
    return list(fetch(loader))


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_two_ranks_see_what_one_rank_with_twice_the_batch_sees(folders):
    one = batches(folders, 4, 0, 3)
    two = [batches(folders, 2, 0, 3, rank, 2) for rank in (0, 1)]
    joined = [tuple(np.concatenate(pair) for pair in zip(*parts, strict=True)) for parts in zip(*two, strict=True)]
    assert same(one, joined)


def test_a_start_in_the_middle_goes_on_with_the_same_batches_from_any_number_of_workers(folders):
    whole = batches(folders, 2, 0, 6)
    assert same(whole[4:], batches(folders, 2, 4, 6))
    assert same(whole, batches(folders, 2, 0, 6, workers=2))


@pytest.mark.parametrize(
    "free, said",
    [
        (2 * 2**20, "2 workers need 1.7 MB: they hand over their rows through pipes"),
        (2**17, "has 131.1 kB free, but 2 workers need 1.7 MB: one thread decodes instead"),
        (None, "has 0 bytes free"),
        (2**30, ""),
    ],
)
def test_short_shared_memory_changes_the_way_and_not_the_batches(free, said, folders, monkeypatch, caplog):
    """Docker gives 64 MB: a worker that finds no room there would die of a bus error, and the run hang."""
    expected, made = batches(folders, 2, 0, 3), []
    real = ms.dataset.config.set_enable_shared_mem
    monkeypatch.setattr(ms.dataset.config, "set_enable_shared_mem", lambda shared: (made.append(shared), real(shared)))
    monkeypatch.setattr(loading.sys, "platform", "linux")
    monkeypatch.setattr(loading, "_SHARED", tmp := Path("/dev/shm" if free is not None else "/none/shm"))
    usage = shutil.disk_usage("/")
    if free is not None:
        monkeypatch.setattr(loading.shutil, "disk_usage", lambda folder: usage._replace(free=free))
    monkeypatch.setattr(TrainingSource, "row_bytes", lambda source: 48_000)
    assert same(batches(folders, 2, 0, 3, workers=2), expected)
    assert made == [not said] and said in caplog.text and (str(tmp) in caplog.text) is bool(said)


def test_what_a_row_takes_in_shared_memory_is_known_before_one_is_made(folders):
    plain = source(folders)
    assert 0 <= sum(array.nbytes for array in plain[0]) - plain.row_bytes() < 100
    text = (np.zeros((5, 77, 768), np.float32), np.arange(5), np.zeros((77, 768), np.float32))
    captioned = source(folders, text=text)
    assert 0 <= sum(array.nbytes for array in captioned[0]) - captioned.row_bytes() < 100


@pytest.mark.slow
def test_workers_start_after_a_computation_and_leave_nothing_behind(folders):
    assert float(ms.ops.ones((4, 4)).sum().asnumpy()) == 16
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    loader = make_loader(source(folders), 1, 0, 1000, 0, 1, 2)
    batches = loader.create_tuple_iterator(num_epochs=1, output_numpy=True)
    next(batches)
    workers = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert len(workers) >= 2
    del batches
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_what_is_wrong_reaches_the_training_as_one_sentence(workers, tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"no video")
    broken = TrainingSource(dataset(tmp_path, data_layout="video_files"), (4, 2, 8, 8), seed=3)
    with pytest.raises(RuntimeError) as caught:
        list(fetch(make_loader(broken, 1, 0, 4, 0, 1, workers)))
    found = unwrapped(caught.value)
    assert isinstance(found, UserError)
    assert str(found).startswith("1 videos in a row cannot be used; of the last one: cannot read the video")
    assert str(found).endswith("b.mp4; it is broken or not a video")
    other = RuntimeError("out of memory")
    assert unwrapped(other) is other


def test_long_videos_are_not_read_far_ahead(folders):
    def ahead(num_frames, size):
        make_loader(TrainingSource(dataset(folders, num_frames, size), (1,), 0), 1, 0, 1, 0, 1, 1)
        return ms.dataset.config.get_prefetch_size()

    assert (ahead(16, 256), ahead(128, 256), ahead(128, 512)) == (16, 2, 2)


def test_what_a_batch_holds(folders):
    x, posterior_noise, t, noise, skipped, label = batches(folders, 2, 0, 1)[0]
    assert x.shape == (2, 4, 3, 16, 16) and x.dtype == np.float32 and -1 <= x.min() <= x.max() <= 1
    assert posterior_noise.shape == noise.shape == (2, 4, 2, 8, 8) and noise.dtype == np.float32
    assert t.shape == (2,) and t.dtype == np.int32 and skipped.dtype == np.int32 and label.shape == (2, 1)
    draws = [source(folders)[position] for position in range(300)]
    assert abs(np.mean([d[3] for d in draws])) < 0.01 and abs(np.std([d[3] for d in draws]) - 1) < 0.01
    steps = np.array([d[2] for d in draws])
    assert steps.min() < 30 and steps.max() > 970 and abs(steps.mean() - 499.5) < 60


def test_labels_and_text_are_dropped_now_and_then(folders):
    labels = np.array([source(folders, num_classes=3, dropout=0.3)[i][-1][0] for i in range(300)])
    assert set(labels) == {0, 3} and 0.2 < np.mean(labels == 3) < 0.4
    text = (
        np.stack([np.full((77, 768), k, np.float32) for k in range(5)]),
        np.arange(5),
        np.full((77, 768), -1, np.float32),
    )
    values = [int(source(folders, text=text, dropout=0.5)[i][-1][0, 0]) for i in range(40)]
    assert set(values) == {-1, 0, 1, 2, 3, 4}


def test_text_embeddings_are_found_by_caption(tmp_path):
    path, shape = tmp_path / "text.npz", (77, 768)
    np.savez(
        path, captions=np.array(["b", "a"]), text=np.zeros((2, *shape), np.float16), null=np.zeros(shape, np.float32)
    )
    text, places, null = read_text(str(path), ["a", "b", "a"])
    assert text.shape == (2, *shape) and places.tolist() == [1, 0, 1] and null.shape == shape
    with pytest.raises(UserError, match="no embedding of 1 captions, such as 'c'"):
        read_text(str(path), ["a", "c"])
    np.savez(path, captions=np.array(["a"]), text=np.zeros((2, *shape)), null=np.zeros(shape))
    with pytest.raises(UserError, match=r"has text \(2, 77, 768\) .*, but for its 1 captions"):
        read_text(str(path), ["a"])
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"is no \.npz"):
        read_text(str(path), ["a"])
