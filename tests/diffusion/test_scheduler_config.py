"""Values in a scheduler_config.json that no scheduler can have are refused by their key."""

import json

import pytest
from support.golden_values import FIXTURES

from latte.components.folders import read_scheduler
from latte.diffusion.scheduler_config import CLASSES, solver_of
from latte.diffusion.solvers import Solver
from latte.errors import UserError

CONFIG = json.loads((FIXTURES / "latte_t2v" / "scheduler" / "scheduler_config.json").read_text())
NAN, INFINITY = float("nan"), float("inf")
WRONG = [
    *[("beta_start", value) for value in ("x", NAN, INFINITY, -1e-4, 0, 1, 1e-300, [1e-4], {}, True)],
    *[("beta_end", value) for value in (5, 1, -0.02, NAN, "0.02", [0.02])],
    *[("steps_offset", value) for value in ("1", 1.5, -1, 10**9, [1], True, NAN)],
    *[("num_train_timesteps", value) for value in (10**12, 0, -1, 1000.5, "1000", [1000])],
    *[("set_alpha_to_one", value) for value in ("no", 2, [], {})],
    *[("clip_sample", value) for value in ("no", [])],
    *[("timestep_spacing", value) for value in (3, [], {"a": 1})],
    *[("_class_name", value) for value in ([], 3, {"a": "b"})],
    *[("prediction_type", value) for value in (["epsilon"], 1)],
    *[("trained_betas", value) for value in ([0.1], [NAN], "x", -1)],
]


@pytest.mark.parametrize("key, value", WRONG, ids=lambda value: repr(value)[:30])
def test_a_value_that_cannot_be_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=key) as error:
        solver_of(CONFIG | {key: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_keys_of_other_classes_are_checked_too():
    with pytest.raises(UserError, match="variance_type must be a text"):
        solver_of({"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": ["fixed_small"]})
    with pytest.raises(UserError, match="skip_prk_steps must be true or false"):
        solver_of({"_class_name": "PNDMScheduler", "skip_prk_steps": 1})


@pytest.mark.parametrize("cls", CLASSES)
def test_null_is_as_if_the_key_were_not_there(cls):
    config = {"_class_name": cls, "clip_sample": False, "trained_betas": None, "beta_start": None, "steps_offset": None}
    name, options = solver_of(config)
    assert (name, options) == solver_of({"_class_name": cls, "clip_sample": False})
    assert len(Solver(name, **options).steps(10).timesteps) >= 10


def test_a_long_class_name_is_one_short_sentence():
    with pytest.raises(UserError, match="there is no solver for the scheduler") as error:
        solver_of({"_class_name": "\x1b[2J" * 200_000})
    assert len(str(error.value)) < 250 and str(error.value).isprintable()


def test_the_file_is_named_when_a_folder_is_read(tmp_path):
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(CONFIG | {"steps_offset": 1.5}))
    with pytest.raises(UserError, match=r"scheduler_config.json: steps_offset must be a whole number from 0 to 999"):
        read_scheduler(tmp_path)
    file.write_text('{"beta_start": NaN}')
    with pytest.raises(UserError, match=r'scheduler_config.json is not valid JSON \("beta_start" is nan'):
        read_scheduler(tmp_path)
    file.write_text(json.dumps(CONFIG | {"lambda_min_clipped": -INFINITY}))  # as diffusers writes it
    assert read_scheduler(tmp_path)["lambda_min_clipped"] == -INFINITY
    assert read_scheduler(None) == {}
