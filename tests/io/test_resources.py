"""The configs and the model that are shipped are found from any folder, and never hide what the user has."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.golden_values import ROOT

from latte.components.folders import find_parts
from latte.components.loading import read
from latte.io import resources

MODEL = "models/demo/latte.safetensors"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with shipped files, as the wheel lays them out."""
    package = tmp_path / "site-packages" / "latte"
    for name in ("configs/inference/demo.yaml", MODEL):
        (package / "_shipped" / name).parent.mkdir(parents=True)
        (package / "_shipped" / name).touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    return package


def test_a_checkout_ships_its_own_files():
    assert resources.find(MODEL) == ROOT / MODEL
    assert resources.find_config("demo") == ROOT / "configs/inference/demo.yaml"


def test_an_installed_package_ships_its_copy(installed):
    assert resources.find(MODEL) == installed / "_shipped" / MODEL
    assert resources.find("models/demo") == installed / "_shipped/models/demo"
    assert resources.find_config("demo") == installed / "_shipped/configs/inference/demo.yaml"
    assert resources.find_config("configs/inference/demo.yaml").is_file()


def test_what_the_user_has_wins(elsewhere):
    (elsewhere / "models/demo").mkdir(parents=True)
    (elsewhere / MODEL).touch()
    (elsewhere / "demo").touch()
    assert resources.find(MODEL) == Path(MODEL)
    assert resources.find_config("demo") == Path("demo")


def test_what_nobody_has_keeps_its_name():
    assert resources.find("models/sky.ckpt") == Path("models/sky.ckpt")
    assert resources.find("../latte") == Path("../latte")


def test_a_config_that_nobody_has_keeps_its_name():
    assert resources.find_config("night") == Path("night")


def test_every_shipped_name_is_one_config():
    names = [path.stem for kind in ("inference", "training") for path in (ROOT / "configs" / kind).glob("*.yaml")]
    assert len(names) == len(set(names)) > 10


def test_the_demo_model_is_loaded_from_any_folder():
    assert find_parts("models/demo").network == ROOT / MODEL
    assert read(MODEL).config.depth == 6
