"""`train.py --eval_metrics`: samples of checkpoints beside real videos, while the run trains."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import runs
from support.clips import NETWORK, make_folder
from support.golden_values import ROOT
from support.runs import TRAIN, words

from latte.components.codec import Codec
from latte.config import EvaluateConfig
from latte.config.parser import OptionError
from latte.errors import UserError
from latte.evaluation import curve, features
from latte.runtime import device
from latte.training import quality
from latte.training.build import build, describe
from latte.training.metrics import Metrics

RUN = TRAIN | {"depth": 1, "num_frames": 9, "max_steps": 5, "ckpt_save_interval": 4, "train_batch_size": 2}
RUN |= {"sample_videos": 0, "sample_steps": 2, "eval_every": 2}
METRICS = "[fvd4_9f]"


class StandIn:
    """Samples as the step of a checkpoint says, and remembers which were made."""

    frames, size = 9, 16

    def __init__(self, made):
        self.made, self.facts = made, {}

    def make(self, checkpoint, number):
        self.made.append(int(checkpoint.stem[-8:]))
        return np.random.default_rng(self.made[-1] + number).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "clips", 4)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """No autoencoder, no I3D, no sampling, no plots; yields the steps whose samples were made."""
    made = []
    monkeypatch.setattr(Codec, "moments", lambda codec, frames: frames[:, :1, ::2, ::2].repeat(8, 1))
    monkeypatch.setattr(Metrics, "plot", lambda _: None)
    monkeypatch.setattr(curve._Table, "_plot", lambda _: None)
    monkeypatch.setattr(curve, "Sampler", lambda cfg, checkpoint: StandIn(made))
    monkeypatch.setattr(quality, "load_network", lambda path: NETWORK)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def options(**given):
    return runs.options(**RUN | given)


def train(**given):
    return runs.train(**RUN | given)


def rows(run, metric="fvd4_9f"):
    return list(csv.DictReader((run / f"evaluation/{metric}.csv").read_text().splitlines()))


def test_checkpoints_are_compared_at_their_steps_after_a_resume_too_and_the_training_is_the_same(
    clips, quick, tmp_path
):
    given = {"data_folder": clips, "output_path": tmp_path / "a", "eval_metrics": METRICS}
    run = train(**given)
    assert [row["step"] for row in rows(run)] == ["2", "4", "5"]
    assert quick == [step for step in (2, 4, 5) for _ in range(4)]

    plain = train(data_folder=clips, output_path=tmp_path / "b", eval_every=0)
    names = ["ckpt/state-00000005.safetensors", "ckpt/ema-00000005.ckpt", "metrics.csv"]
    contents = [(run / name).read_bytes() for name in names]
    assert [(plain / name).read_bytes() for name in names] == contents
    assert not (plain / "evaluation").exists() and not list(plain.glob("ckpt/*00000002*"))

    table = run / "evaluation/fvd4_9f.json"  # it was stopped after step 4 was saved, before it was compared
    whole = table.read_bytes()
    table.write_text(json.dumps({**json.loads(whole), "rows": json.loads(whole)["rows"][:1]}))
    for file in [*run.glob("ckpt/*00000005*"), *features.default_root().rglob("*.npz")]:
        file.unlink()
    del quick[:]
    assert train(**given, resume="auto") == run and quick == [4] * 4 + [5] * 4
    assert [(run / name).read_bytes() for name in names] == contents
    found, expected = (json.loads(text) for text in (table.read_bytes(), whole))
    versions = [row.pop("version") for row in [*found["rows"], *expected["rows"]]]
    assert found == expected and versions[:2] == versions[3:5]


def test_a_comparison_that_fails_ends_no_training_but_that_of_several_ranks(
    clips, quick, tmp_path, monkeypatch, caplog
):
    def full(*_, **options):
        raise UserError("cannot write fvd4_9f.json: No space left on device")

    compared = quality.Quality(options(data_folder=clips, eval_metrics=METRICS), 9)
    monkeypatch.setattr(curve, "checkpoint_of", lambda cfg, step: Path("ema-00000002.ckpt"))
    monkeypatch.setattr(curve, "run", full)
    compared.measure(tmp_path, 2)
    assert caplog.messages == ["eval_metrics: step 2 is left out: cannot write fvd4_9f.json: No space left on device"]
    monkeypatch.setattr(quality, "agree_on", lambda text: text)
    with device.use(world_size=2), pytest.raises(UserError, match="No space left on device"):
        compared.measure(tmp_path, 2)


def test_a_dry_run_tells_what_is_compared(clips, quick):
    cfg = options(data_folder=clips, eval_metrics=METRICS)
    assert "per sample; fvd4_9f of samples with 2 steps every 2\n" in describe(cfg, build(cfg))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"eval_metrics": "[fvd4]"}, "must be different names like fvd2048_16f"),
        ({"eval_metrics": "[fvd4_8f]"}, "of 9 frames or more"),
        ({"eval_metrics": METRICS, "eval_every": 0}, "must be empty without eval_every"),
        ({"eval_metrics": METRICS, "condition": "text"}, "must be empty for text, of which it makes no samples"),
        ({}, "eval_every is 2, but must be 0 without held_out and eval_metrics"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, said):
    with pytest.raises(OptionError, match=said):
        options(**given)


def test_what_would_fail_later_is_said_before_the_first_step(clips, quick, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for given, said in (
        ({"eval_metrics": "[fvd4_16f]"}, "fvd4_16f of eval_metrics takes 16 frames, but a sample has 9"),
        ({"eval_metrics": METRICS, "eval_real": tmp_path / "empty"}, "empty holds no videos"),
        ({"eval_metrics": METRICS, "dtype": "bf16"}, "would hold for the network of eval_metrics too"),
    ):
        with pytest.raises(UserError, match=said):
            quality.Quality(options(data_folder=clips, **given), 9)
    monkeypatch.setattr(quality, "gather", lambda name: ["one", "two", "one"])
    with pytest.raises(UserError, match="needs all ranks on one machine, but they are on one, two"):
        quality.Quality(options(data_folder=clips, eval_metrics=METRICS), 9)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="the I3D network, is missing; run `latte evaluate --fetch_i3d` once"):
        quality.Quality(options(data_folder=clips, eval_metrics=METRICS), 9)


def test_ranks_take_turns(quick, monkeypatch):
    with device.use(rank=1, world_size=3):
        monkeypatch.setattr(quality, "agree_on", lambda text: text)
        numbers = quality._numbers()
        assert [next(numbers) for _ in range(3)] == [1, 4, 7]


RANK = """
from support.clips import NETWORK
from latte.commands import train
from latte.errors import run_main
from latte.training import quality

quality.load_network = lambda path: NETWORK
run_main(train.main)
"""


@pytest.mark.slow
def test_two_ranks_write_the_table_that_evaluate_writes_afterwards(clips, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    given = words(**RUN | {"data_folder": clips, "output_path": tmp_path / "out", "eval_metrics": METRICS})
    mpirun = Path(sys.executable).with_name("mpirun")  # beside Python
    launch = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, tmp_path / "rank.py"]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [*launch, *given, "--use_parallel=true"], env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "out").iterdir()
    assert [row["step"] for row in rows(run)] == ["2", "4", "5"]
    assert len(list((tmp_path / "cache").rglob("*.npz"))) >= 4
    after = EvaluateConfig(
        real=str(clips),
        run=str(run),
        metrics=["fvd4_9f"],
        sampler="ddim",
        sampling_steps=2,
        output_path=str(tmp_path / "after"),
        features_folder=str(tmp_path / "features"),
        vae_checkpoint=str(TRAIN["vae_checkpoint"]),
    )
    (file,) = curve.run(after, NETWORK)
    assert file.read_bytes() == (run / "evaluation" / file.name).read_bytes()
