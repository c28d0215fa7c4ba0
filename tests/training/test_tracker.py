"""wandb and SwanLab: what their packages are given, and what is said where one is missing or fails."""

import importlib.machinery
import logging
import sys
import types

import pytest
from support.runs import train, write_clips

from latte.commands import train as command
from latte.config import TrainConfig
from latte.errors import UserError, run_main
from latte.training.tracker import PLACES, Tracker, check


class Package(types.ModuleType):
    """Stands for the package of a tracker, and keeps what it is given."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.begun, self.sent, self.ended = [], [], 0

    def init(self, **given):
        self.begun.append(given)

    def log(self, values, step):
        self.sent.append((step, values))

    def Video(self, path):
        return ("video", path)

    def finish(self):
        self.ended += 1


@pytest.fixture(params=PLACES)
def package(request, monkeypatch):
    monkeypatch.setitem(sys.modules, request.param, made := Package(request.param))
    return made


def test_a_training_is_sent_with_its_samples(package, tmp_path):
    run = train(data_folder=write_clips(tmp_path / "data"), output_path=tmp_path / "out", tracker=package.__name__)
    (given,) = package.begun
    name, place = PLACES[package.__name__]
    assert given[name] == run.name and given[place] == str(run) and given["project"] == "latte"
    assert len(given["id"]) == 21 and given["resume"] == "allow" and given["config"]["max_steps"] == 4
    scalars = [(step, values["loss"]) for step, values in package.sent if "loss" in values]
    assert [step for step, _ in scalars] == [2, 4] and all(loss > 0 for _, loss in scalars)
    assert (4, {"samples": ("video", str(run / "samples/step-00000004.gif"))}) in package.sent
    assert package.ended == 1


def test_without_its_package_a_tracker_is_refused_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: command.main(["--tracker", "swanlab"]))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: tracker swanlab needs its package: pip install swanlab; or leave tracker out\n"
    )


def test_by_default_nothing_is_sent():
    assert TrainConfig().tracker is None
    check(None)


def test_a_tracker_that_cannot_start_is_a_sentence(package, tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("api_key not configured\nsee the manual")

    monkeypatch.setattr(package, "init", init, raising=False)
    with pytest.raises(UserError, match=f"tracker {package.__name__} cannot start: api_key not configured; run `"):
        Tracker(package.__name__, tmp_path, {})


def test_a_tracker_that_fails_later_ends_no_training(package, tmp_path, monkeypatch, caplog):
    def log(*_, **__):
        raise ConnectionError("the server is gone")

    tracker = Tracker(package.__name__, tmp_path, {})
    monkeypatch.setattr(package, "log", log, raising=False)
    with caplog.at_level(logging.WARNING, "latte"):
        tracker.log({"loss": 1.0}, 2)
    assert caplog.messages == [f"tracker {package.__name__}: the server is gone"]
