"""A run ends truthfully: what is resumed, what is refused, NaN, the end and other options; no step is compiled."""

import errno
import io
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from support.runs import TRAIN, write_clips

from latte.config import TrainConfig, parse_config
from latte.errors import UserError
from latte.io.atomic import LOCK
from latte.training import health, run_folder
from latte.training import trainer as module
from latte.training.build import build
from latte.training.identity import FIXED, NAMED
from latte.training.trainer import Trainer
from latte.weights.safetensors_file import read_safetensors, write_safetensors

BASE = TRAIN | {"sample_videos": 0, "ckpt_save_interval": 2, "max_steps": 8, "log_interval": 1, "ckpt_max_keep": 2}
BASE |= {"train_batch_size": 2}


@pytest.fixture(autouse=True)
def log_files():
    """Close the log files of the runs of a test."""
    yield
    close_logs()


def close_logs():
    log = logging.getLogger("latte")
    for handler in [handler for handler in log.handlers if type(handler) is logging.FileHandler]:
        log.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data") / "frames")


def starter(clips, out, patch):
    """Return a function that starts a run: its step is not compiled, but only counts, and moves a weight."""
    patch.setattr(module.Metrics, "plot", lambda _: None)  # takes a second
    patch.setattr(module, "make_loader", lambda _, __, first, last, *___: range(first, last))

    def begin(spoil=lambda step: None, loss=1.0, **given):
        values = {**BASE, "data_folder": clips, "output_path": out, **given}
        cfg = parse_config(TrainConfig, [f"--{key}={value}" for key, value in values.items()])
        training = build(cfg)
        trainer = Trainer(cfg, training)

        def called(loader, _):
            for batch in loader:
                step = training.step
                step.step.set_data(ms.Tensor(int(step.step.asnumpy()) + 1, ms.int32))
                step.weights[0].set_data(step.weights[0] + 1)
                spoil(step)
                yield batch + 1, loss

        patch.setattr(trainer, "_called", called)
        return trainer

    return begin


@pytest.fixture
def start(clips, tmp_path, monkeypatch):
    return starter(clips, tmp_path / "out", monkeypatch)


@pytest.fixture(scope="module")
def ended(clips, tmp_path_factory):
    """A folder with a run that has ended at step 8, with the states of steps 6 and 8."""
    out = tmp_path_factory.mktemp("ended") / "out"
    with pytest.MonkeyPatch.context() as patch:
        trainer = starter(clips, out, patch)()
        trainer.fit()
    assert trainer.checkpoints.steps() == [6, 8]
    close_logs()
    return out


@pytest.fixture
def run(ended, tmp_path):
    """A copy of that run, in the folder of `start`."""
    (folder,) = shutil.copytree(ended, tmp_path / "out").iterdir()
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(start, **given):
    return start(**{"resume": "auto", "max_steps": 12, **given})


def refused(start, run, said, **given):
    """Check that a resume is refused in one sentence and leaves every file as it was."""
    before = contents(run)
    with pytest.raises(UserError) as caught:
        resumed(start, **given)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert contents(run) == before and [path.name for path in run.parent.iterdir()] == [run.name]


def state_file(run, step):
    return run / "ckpt" / f"state-{step:08d}.safetensors"


@pytest.mark.parametrize("max_steps", [8, 4])
def test_a_run_at_its_end_ends_again_and_nothing_is_written(max_steps, start, run, caplog, monkeypatch):
    before = contents(run)
    monkeypatch.setattr(module, "make_loader", None)
    with caplog.at_level(logging.INFO, "latte"):
        resumed(start, max_steps=max_steps).fit()
    assert contents(run) == before
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{run} has reached its end, step 8 of {max_steps}; for more steps raise max_steps or epochs"


def test_no_readable_state_is_refused_and_nothing_is_touched(start, run):
    for file in run.glob("ckpt/state-*"):
        file.write_bytes(b"")
    refused(start, run, "ckpt holds no state that can be resumed from")


def test_a_run_without_its_folder_of_checkpoints_is_refused(start, run):
    (run / "ckpt").rename(run.parent.with_name("away"))
    (run / "ckpt").symlink_to("/a disk that is away")
    refused(start, run, "has no folder ckpt; bring it back")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("call", ["open", "readinto"])
def test_trouble_of_the_file_system_is_no_damage(call, number, start, run, monkeypatch):
    class File(io.BytesIO):
        def readinto(self, _):
            raise OSError(number, "trouble")

    def opened(path, *arguments, **options):
        if path != state_file(run, 8):
            return open_file(path, *arguments, **options)
        return File() if call == "readinto" else File().readinto(None)

    before = contents(run)
    open_file = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(UserError, match=r"trouble; the run stays as it is: resume it"):
            resumed(start)
    assert contents(run) == before


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(start, run, monkeypatch):
    def listed(path):
        if path in (run / "ckpt", run.parent):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    listing = Path.iterdir
    for given in ({}, {"resume": run}):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", listed)
            with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
                resumed(start, **given)
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_step_that_is_not_finite_is_not_saved(start):
    def spoil(step):
        if step.step.asnumpy() == 7:
            step.optimizer.moment2[1].set_data(step.optimizer.moment2[1] * np.nan)

    trainer = start(spoil)
    with pytest.raises(UserError, match=r"step 8 has numbers in adam_v\.\S+ that are not finite, so it is not saved"):
        trainer.fit()
    assert trainer.checkpoints.steps() == [4, 6] and trainer.checkpoints.newest() == 6


def test_a_run_that_only_skips_steps_is_stopped(start):
    def spoil(step):
        if step.step.asnumpy() > 3:
            step.skipped.set_data(step.skipped + 1)

    trainer = start(spoil, max_steps=50, ckpt_save_interval=100)
    with pytest.raises(UserError, match=r"the last 20 steps up to step 23 .* had gradients that are not finite"):
        trainer.fit()


@pytest.mark.parametrize("rescales", [False, True])
def test_weights_whose_steps_are_skipped_replace_no_whole_ones(rescales, start):
    """As after one step that made the weights huge: they are finite, but no later gradient is."""

    def spoil(step):
        if step.step.asnumpy() > 7:
            step.skipped.set_data(step.skipped + 1)

    scale = {"dtype": "fp16", "init_loss_scale": 64} if rescales else {}
    trainer = start(spoil, max_steps=20, ckpt_max_keep=1, **scale)
    trainer.fit()
    assert trainer.checkpoints.steps() == [6, 20]  # the end is always saved


def test_a_save_that_a_skipped_step_put_off_is_made_after_the_next_one(start):
    def spoil(step):
        if step.step.asnumpy() == 4:
            step.skipped.set_data(step.skipped + 1)

    trainer = start(spoil, ckpt_max_keep=10)
    trainer.fit()
    assert trainer.checkpoints.steps() == [2, 5, 6, 8]


def test_the_search_for_a_loss_scale_is_no_reason_to_stop():
    watch = health.SkippedSteps(5)
    assert not any(watch.note(1, 5 + n, scale_can_fall=True) for n in range(1, 40))
    assert not any(watch.note(2, 44 + 2 * n, scale_can_fall=False) for n in range(1, 10))
    assert not watch.note(2, 63, scale_can_fall=False)  # one of two counted
    assert not any(watch.note(1, 63 + n, scale_can_fall=False) for n in range(1, 20))
    assert watch.note(1, 83, scale_can_fall=False)


@pytest.mark.parametrize("spoiled", ["net.", "ema.", "adam_v."])
def test_an_older_state_that_is_not_finite_is_stepped_over(spoiled, start, run, caplog):
    state, _ = read_safetensors(state_file(run, 8))
    arrays = {name: array.copy() for name, array in state.items()}
    name = next(name for name in arrays if name.startswith(spoiled))
    arrays[name].reshape(-1)[1] = -1 if spoiled == "adam_v." else np.inf
    write_safetensors(state_file(run, 8), arrays, {"step": "8", "world_size": "1"})
    with caplog.at_level(logging.WARNING, "latte"):
        assert resumed(start).step == 6
    assert "not finite or not possible; the checkpoint before it is taken" in caplog.text


@pytest.mark.parametrize(
    "given, said",
    [
        ({"num_heads": 4}, "is of a network with num_heads 2, but the options ask for num_heads 4"),
        ({"sd_scale_factor": 3.0}, "but the options ask for sd_scale_factor 3.0"),
        ({"use_ema": False}, "with use_ema True, but the options ask for use_ema False"),
        ({"num_frames": 5}, "network with num_frames 4"),
        ({"vae_checkpoint": "another"}, "is of a training with another autoencoder than vae_checkpoint"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_network_or_autoencoder_is_refused(given, said, start, run, tmp_path):
    if "vae_checkpoint" in given:
        from latte.weights.files import read_state_dict, write_state_dict

        vae = read_state_dict(BASE["vae_checkpoint"])
        tensors = {name: -array if name == "encoder.conv_in.weight" else array for name, array in vae.tensors.items()}
        given = {"vae_checkpoint": tmp_path / "other.ckpt"}
        write_state_dict(given["vae_checkpoint"], tensors, vae.metadata)
    refused(start, run, said, **given)


def test_other_options_are_named_and_the_config_of_the_run_stays(start, run, clips, tmp_path, caplog):
    shutil.copytree(clips, tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer" / "a")
    before = (run / "config.yaml").read_bytes()
    given = {"seed": 5, "train_batch_size": 1, "betas": [0.8, 0.9], "data_folder": tmp_path / "fewer"}
    trainer = resumed(start, **given)
    for said in (
        "seed 3407 and now has 5",
        "train_batch_size 2 and now has 1",
        "betas [0.9, 0.999] and now has [0.8, ",
    ):
        assert caplog.text.count(f"the run had {said}") == 1
    assert "the run had data 4 videos (" in caplog.text and "the run had seed" in (run / "log.txt").read_text()
    assert (run / "config.yaml").read_bytes() == before
    later = parse_config(TrainConfig, ["-c", str(run / "config-from-step-00000008.yaml")])
    assert (later.seed, later.resume, later.max_steps) == (5, None, 12)
    trainer.fit()
    caplog.clear()
    resumed(start, **given, max_steps=14, log_interval=2)
    assert "the run had" not in caplog.text
    assert {path.name for path in run.glob("config*")} == {
        "config.yaml",
        *map("config-from-step-{:08d}.yaml".format, (8, 12)),
    }


def test_moved_data_are_the_same_and_leave_no_second_config(start, run, clips, tmp_path, caplog):
    moved = shutil.copytree(clips, tmp_path / "moved")
    resumed(start, data_folder=moved)
    assert "the run had" not in caplog.text


def test_a_resume_with_the_same_options_leaves_one_config_and_is_the_newest_run(start, tmp_path):
    def spoil(step):
        if step.step.asnumpy() == 5:
            raise KeyboardInterrupt

    trainer = start(spoil)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    again = start(resume="auto")
    assert again.step == 4 and again.folder == trainer.folder
    assert [path.name for path in again.folder.glob("config*")] == ["config.yaml"]
    again.fit()
    whole = start(output_path=tmp_path / "whole")
    whole.fit()
    for name in ("metrics.csv", "ckpt/ema-00000008.ckpt", "ckpt/state-00000008.safetensors"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_configs_of_steps_that_are_done_again_go(tmp_path):
    cfg = TrainConfig()
    run_folder.save_options(cfg, tmp_path, 0)
    for step, seed in ((4, 1), (8, 2), (8, 3), (6, 1), (7, 4)):
        run_folder.save_options(TrainConfig(seed=seed), tmp_path, step)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config-from-step-00000004.yaml", "config-from-step-00000007.yaml", "config.yaml"]
    (tmp_path / "config.yaml").unlink()
    run_folder.save_options(cfg, tmp_path, 9)
    assert parse_config(TrainConfig, ["-c", str(tmp_path / "config.yaml")]) == cfg


def test_states_of_older_versions_are_resumed(start, run, caplog):
    state, metadata = read_safetensors(state_file(run, 8))
    arrays = {name: array.copy() for name, array in state.items()}
    older = {key: value for key, value in metadata.items() if key not in (FIXED, NAMED) and "checksum" not in key}
    write_safetensors(state_file(run, 8), arrays, older)
    assert json.loads(older["config"])["num_heads"] == 2
    assert resumed(start, seed=5).step == 8 and "the run had" not in caplog.text


def test_what_a_killed_run_left_goes_at_the_next_start_and_other_files_stay(start, run):
    for place, name in (("", "loss"), ("", "metrics"), ("samples", "step-00000008"), ("ckpt", "ema-00000008")):
        left = run / place / f".{name}-0123abcd"
        left.mkdir(parents=True)
        (left / LOCK).touch()
    for name in (".notes.txt", ".loss-mine.png"):
        (run / name).touch()
    resumed(start, max_steps=8)
    hidden = {path.name for path in run.rglob(".*")}
    assert hidden == {".lock", ".notes.txt", ".loss-mine.png"}


@pytest.mark.parametrize("max_steps", [8, 9])
def test_samples_that_a_killed_run_did_not_get_to_are_made_by_the_next(max_steps, start, run, monkeypatch):
    monkeypatch.setattr(Trainer, "previews", SimpleNamespace(make=lambda _: np.zeros((1, 2, 16, 16, 3), np.uint8)))
    resumed(start, max_steps=max_steps, sample_videos=1).fit()
    made = sorted(file.name for file in (run / "samples").iterdir())
    assert made == [f"step-{step:08d}.gif" for step in range(8, max_steps + 1)]


def test_a_config_that_is_removed_while_training_is_written_again(start):
    def spoil(step):
        if step.step.asnumpy() == 5:
            (trainer.folder / "config.yaml").unlink()

    trainer = start(spoil)
    trainer.fit()
    assert (trainer.folder / "config.yaml").exists()
