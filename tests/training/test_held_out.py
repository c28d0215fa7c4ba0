"""The loss on held-out videos: which they are, what is measured, and that neither training nor resume depends on it."""

import logging
import shutil
import types

import numpy as np
import pytest
from mindspore import nn
from PIL import Image
from support import runs
from support.cache import TYPES, write_cache
from support.runs import TRAIN, write_clips

from latte.components.codec import Codec
from latte.config import TrainConfig
from latte.config.parser import OptionError
from latte.data.cache import read_cache
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.index import Index, Record, list_records
from latte.data.loader import TrainingSource
from latte.diffusion.loss import DiffusionLoss, weights_of
from latte.diffusion.schedule import create_schedule
from latte.errors import UserError
from latte.training import held_out
from latte.training import trainer as trainers
from latte.training.build import build, describe
from latte.training.held_out import Evaluation, of_source, split, timesteps
from latte.training.metrics import EVAL_COLUMNS, OF_BINS, Metrics, plot_evaluations, read_metrics
from latte.training.trainer import Trainer

RUN = TRAIN | {"depth": 1, "max_steps": 6, "ckpt_save_interval": 2, "train_batch_size": 2, "sample_videos": 0}
RUN |= {"held_out": 2, "eval_clips": 10, "condition": "class", "num_classes": 2, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data") / "frames")


@pytest.fixture(scope="module")
def quick():
    """No autoencoder, which takes long to compile, and no plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codec, "moments", lambda codec, frames: frames[:, :1, ::2, ::2].repeat(8, 1))
        patch.setattr(Metrics, "plot", lambda _: None)
        yield
    log = logging.getLogger("latte")
    for handler in [handler for handler in log.handlers if type(handler) is logging.FileHandler]:
        log.removeHandler(handler)
        handler.close()


def options(**given):
    return runs.options(**RUN | given)


def train(**given):
    return runs.train(**RUN | given)


@pytest.fixture(scope="module")
def whole(clips, quick, tmp_path_factory):
    """A run of six steps with an evaluation before every second one, and one at the end."""
    return train(data_folder=clips, output_path=tmp_path_factory.mktemp("whole"), eval_every=4)


def files(run):
    return {path.name: path.read_bytes() for path in [*run.glob("ckpt/*"), run / "metrics.csv"]}


def test_a_run_is_the_same_with_and_without_evaluations(whole, clips, tmp_path):
    plain = train(data_folder=clips, output_path=tmp_path, eval_every=0)
    assert len(files(whole)) == 7 and not (plain / "eval.csv").exists()
    (one, other) = (files(run) for run in (whole, plain))
    assert one == other


def test_a_resumed_run_ends_with_the_same_evaluations(whole, clips, tmp_path):
    """It has a state of step 4, but was told to stop before the evaluation, and half a row of a later one."""
    (tmp_path / "out").mkdir()
    run = shutil.copytree(whole, tmp_path / "out" / whole.name)
    for file in run.glob("ckpt/*00000006*"):
        file.unlink()
    rows = (whole / "eval.csv").read_text().splitlines(keepends=True)
    (run / "eval.csv").write_text("".join(rows[:2]) + "6,0.1,0.")
    assert train(data_folder=clips, output_path=tmp_path / "out", eval_every=4, resume="auto") == run
    assert (run / "eval.csv").read_bytes() == (whole / "eval.csv").read_bytes() and files(run) == files(whole)


def test_a_resumed_run_names_that_other_videos_are_held_out(whole, clips, tmp_path):
    (tmp_path / "out").mkdir()
    shutil.copytree(whole, tmp_path / "out" / whole.name)
    cfg = options(data_folder=clips, output_path=tmp_path / "out", resume="auto", held_out=3, eval_every=4, max_steps=8)
    trainer = Trainer(cfg, build(cfg))
    trainer.lock.release()
    trainer.metrics.close()
    assert trainer.changes[0] == "the run had held_out 2 and now has 3" and "data 2 videos (" in trainer.changes[1]


def test_rows_are_of_the_steps_asked_for_and_the_loss_falls_with_the_ema_weights(whole):
    rows, damage = read_metrics(whole / "eval.csv", columns=EVAL_COLUMNS)
    assert [row["step"] for row in rows] == ["0", "4", "6"] and not damage
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] > losses[1] > losses[2] > 0
    for row in rows:
        values = {name: float(text) for name, text in row.items()}
        assert values["loss"] == pytest.approx(values["mse"] + values["bound"], rel=1e-5)
        assert values["mse"] == pytest.approx(np.mean([values[name] for name in OF_BINS]), rel=1e-5)


def test_damaged_rows_of_evaluations_are_left_out_and_the_file_is_kept_beside(tmp_path, caplog):
    row = dict.fromkeys(EVAL_COLUMNS, 0.5)
    metrics = Metrics(tmp_path, 0, evaluates=True)
    for step in (0, 2, 4):
        metrics.write_evaluation(row | {"step": step})
    metrics.close()
    plot_evaluations(metrics.evaluations.rows, tmp_path)
    with Image.open(tmp_path / "eval.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    file, whole = tmp_path / "eval.csv", (tmp_path / "eval.csv").read_bytes()
    damaged = whole.replace(b"\n2,", b"\n1,0.5,x\n2,")
    file.write_bytes(damaged)
    metrics = Metrics(tmp_path, 4, evaluates=True)
    metrics.close()
    assert file.read_bytes() == whole and metrics.is_evaluated(4) and not metrics.is_evaluated(3)
    assert (tmp_path / "eval-before-step-00000004.csv").read_bytes() == damaged and "damaged" in caplog.text


@pytest.mark.parametrize("count", [10, 40, 100, 1000, 2000])
def test_timesteps_fill_the_bins_evenly(count):
    found = timesteps(count)
    assert np.array_equal(found // 100, np.arange(count) % 10)
    assert len(set(found.tolist())) == min(count, 1000)
    assert abs(found.mean() - 499.5) <= 1


def test_every_nth_video_is_held_out_and_nothing_changes_without():
    used, kept = split(7, 3)
    assert used.tolist() == [1, 2, 4, 5] and kept.tolist() == [0, 3, 6]
    used, kept = split(7, 0)
    assert used.tolist() == list(range(7)) and not len(kept)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"held_out": 1}, "held_out is 1, but must be 0, or at least 2"),
        ({"held_out": -2}, "held_out is -2, but must be at least 0"),
        ({"held_out": 0, "eval_every": 5}, "eval_every is 5, but must be 0 without held_out and eval_metrics; keep"),
        ({"eval_every": -1}, "eval_every is -1"),
        ({"eval_clips": 25}, "eval_clips is 25, but must be a multiple of 10"),
        ({"eval_clips": 0}, "eval_clips is 0, but must be a multiple of 10"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, said):
    with pytest.raises(OptionError, match=said):
        options(**given)


def test_too_few_held_out_videos_are_refused(clips):
    with pytest.raises(UserError, match="held_out 4 keeps 1 of 4 videos out of training, but at least 2 are needed"):
        build(options(data_folder=clips, held_out=4))


def test_a_dry_run_tells_what_is_held_out(clips, quick):
    cfg = options(data_folder=clips, eval_every=3, dry_run=True)
    said = describe(cfg, build(cfg))
    assert "data: 2 videos in" in said and "2 classes, " in said
    assert "; 2 more are held out, 10 clips of them measured every 3 steps\n" in said


def test_classes_are_counted_only_where_the_network_has_some(clips, quick):
    cfg = options(data_folder=clips, condition="null", num_classes="null", held_out=0, eval_every=0)
    assert "classes" not in describe(cfg, build(cfg))


def test_single_images_of_held_out_videos_are_not_trained_on(clips):
    cfg = TrainConfig(data_folder=str(clips), images_per_video=2, held_out=2)
    index = list_records(cfg)
    images = [Record(record.path / "x_0.png", record.label) for record in index.records]
    used, _ = split(4, 2)
    for listed in ([], images):
        found = VideoDataset(Index(index.records, [], listed), 4, PixelStore(16, "crop_resize"), cfg, 0, used)
        drawn = [found._records[number].path for number in found._images]
        assert [path.parent if listed else path for path in drawn] == [index.records[number].path for number in used]
        assert {found.sample(position).record for position in range(8)} == {*used.tolist()}
    with pytest.raises(UserError, match="names images of held-out videos only"):
        VideoDataset(Index(index.records, [], images[::2]), 4, PixelStore(16, "crop_resize"), cfg, 0, used)


class Network(nn.Cell):
    """Predicts nothing, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def predict(self, x, t, conditions):
        self.asked.append((len(x), t, conditions))
        return np.concatenate((0 * x, x), axis=2)


def evaluation(source, count=20, together=1, weighting="uniform"):
    codec = types.SimpleNamespace(sample=lambda moments, noise: moments[:, :4] + noise)
    return Evaluation(source, codec, Network(), DiffusionLoss(Network(), weighting=weighting), count, together)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    for file_type in TYPES:
        write_cache(root / file_type, file_type, videos=6)
    return root


def source_of(folder, num_classes=2):
    cache, cfg = read_cache(folder), TrainConfig(random_flip=True, images_per_video=2, held_out=2)
    used, kept = split(6, 2)
    dataset = VideoDataset(cache.index(), 4, cache, cfg, 3, used)
    return of_source(TrainingSource(dataset, (6, 4, 2, 2), 3, num_classes, dropout=0.9), kept)


def test_clips_have_their_own_condition_and_noise_and_a_share_of_the_timesteps(caches):
    source = source_of(caches / "numpy")
    measured = evaluation(source)
    values = measured.measure()
    assert len(measured.network.asked) == 20 and {*measured.samples} == {*range(20)}
    assert {sample.record for sample in measured.samples.values()} == {0, 2, 4}
    errors = [np.square(source.complete(k, measured.samples[k])[3]).mean() for k in range(20)]
    for position, (count, t, (labels,)) in enumerate(measured.network.asked):
        sample = measured.samples[position]
        assert count == 1 and t[0] == timesteps(20)[position] and labels == sample.record % 2 < 2
        assert sample.x.shape == (4, 4, 2, 2)
    assert values["mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert values[OF_BINS[3]] == pytest.approx(np.mean(errors[3::10]), rel=1e-5)
    assert measured.measure() == values == evaluation(source).measure()


def test_the_loss_of_clips_has_the_weights_of_the_training(caches):
    plain, weighted = (
        evaluation(source_of(caches / "numpy"), 10, weighting=name).measure() for name in ("uniform", "v")
    )
    errors, weights = (np.array([plain[name] for name in OF_BINS]), weights_of(create_schedule(), "v")[timesteps(10)])
    assert weighted == {**plain, "loss": pytest.approx((weights * errors).mean() + plain["bound"], rel=1e-5)}


def test_every_kind_of_cache_call_and_number_of_ranks_measures_the_same(caches, monkeypatch):
    texts = []
    monkeypatch.setattr(held_out, "gather", lambda text: texts.append(text) or [text])
    alone = evaluation(source_of(caches / "numpy")).measure()
    assert evaluation(source_of(caches / "mindrecord")).measure() == alone
    together = evaluation(source_of(caches / "numpy"), together=6)
    assert together.measure() == pytest.approx(alone, rel=1e-5)
    assert [count for count, *_ in together.network.asked] == [6] * 4
    whole, *_ = texts
    texts = []
    monkeypatch.setattr(held_out, "gather", lambda text: texts.append(text) or (texts if len(texts) == 3 else [whole]))
    for rank in range(3):
        part = evaluation(source_of(caches / "numpy"))
        part.positions = range(rank, 20, 3)
        values = part.measure()
    assert values == alone


def test_a_damaged_held_out_video_is_skipped_and_named(caches, tmp_path, caplog):
    folder = shutil.copytree(caches / "numpy", tmp_path / "cache")
    (folder / "00000002.npy").write_bytes(b"")
    measured = evaluation(source_of(folder), count=10)
    measured.measure()
    assert {sample.record for sample in measured.samples.values()} == {0, 4}
    assert caplog.text.count("held out, but skipped: cannot read the cached video") == 1


def test_options_of_evaluations_do_not_change_the_compiled_step():
    assert {"held_out", "eval_every", "eval_clips"} <= trainers.NOT_COMPILED
