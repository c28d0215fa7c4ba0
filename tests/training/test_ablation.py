"""latte ablation: what is left to do, what is refused, the page; and two tiny trainings from end to end."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.golden_values import FIXTURES, ROOT

from latte.config import parse_config
from latte.config.ablation import AblationConfig
from latte.data.demo import make_clip, write_frames
from latte.errors import UserError
from latte.models.i3d import shapes
from latte.training import ablation

TINY = """
data_folder: {root}/clips
vae_checkpoint: {vae}
model_name: Latte-S/2
hidden_size: 16
depth: 2
num_heads: 2
image_size: 16
num_frames: 9
condition: class
num_classes: 3
train_batch_size: 2
num_workers: 1
max_steps: 4
log_interval: 2
held_out: 3
eval_every: 2
eval_clips: 10
ckpt_save_interval: 2
sample_videos: 1
sample_steps: 2
vae_check: False
"""


def configs(root, **added):
    (root / "base.yaml").write_text(TINY.format(root=root, vae=FIXTURES / "vae"))
    for name, line in added.items():
        (root / f"{name}.yaml").write_text(f"include: [base.yaml]\n{line}\n")
    return [str(root / f"{name}.yaml") for name in added]


def asked(root, files, **options):
    words = [*files, f"--real={root / 'clips'}", f"--output_path={root / 'out'}", "--metrics=fvd2_9f"]
    return parse_config(AblationConfig, words + [f"--{key}={value}" for key, value in options.items()])


def test_a_dry_run_says_what_is_left(tmp_path):
    files = configs(tmp_path, one="variant: 1", two="variant: 2")
    said = ablation.dry_run(asked(tmp_path, files, max_steps=6)).splitlines()
    assert said[0] == f"one: is to be trained, 6 steps, in {tmp_path / 'out' / 'one'}"
    for step, words in ((4, "goes on from step 4"), (6, "is trained")):
        run = tmp_path / "out" / "two" / "run-20260101-000000"
        (run / "ckpt").mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text("seed: 1\n")
        (run / "ckpt" / f"ema-{step:08d}.ckpt").write_bytes(b"x")
        said = ablation.dry_run(asked(tmp_path, files, max_steps=6)).splitlines()
        assert said[1] == f"two: {words}, 6 steps, in {run}"
    assert said[2].endswith("by fvd2_9f") and not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"one": "max_steps: 5", "two": "variant: 2"}, "compared after as many steps, but these have one 5, two 4"),
        ({"one": "max_steps: null"}, "have one no max_steps; give --max_steps"),
        ({"one": "depht: 2"}, "one.yaml, line 2: there is no option 'depht'"),
        ({"one": "condition: text"}, "one.yaml is conditioned on text"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, said, tmp_path):
    with pytest.raises(UserError, match=said):
        ablation.run(asked(tmp_path, configs(tmp_path, **given)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, said", [(["a.yaml", "b/a.yaml", "--real=x"], "different names"), (["a.yaml"], "real")])
def test_options_are_checked(words, said):
    with pytest.raises(UserError, match=said):
        parse_config(AblationConfig, words)


def test_a_failed_training_stops_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation.subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, 2))
    with pytest.raises(UserError, match="latte train of .*one.yaml has ended with code 2.*it goes on from there"):
        ablation.run(asked(tmp_path, configs(tmp_path, one="")))


def test_the_page_has_a_table_curves_and_strips(tmp_path):
    """Of runs as trainings leave them; without weights the number of parameters is not known."""
    cfg = asked(tmp_path, configs(tmp_path, one="variant: 1", two="variant: 2"))
    for name, fvd in (("one", 300.5), ("two", 200.25)):
        run = tmp_path / "out" / name / "run-20260101-000000"
        for folder in ("ckpt", "samples", "evaluation"):
            (run / folder).mkdir(parents=True)
        (run / "config.yaml").write_text("seed: 1\n")
        (run / "log.txt").write_text("step 2: 1.5 s per step\nstep 4: 0.5 s per step\nstep 6: 0.7 s per step\n")
        (run / "eval.csv").write_text(f"step,loss\n2,0.5\n4,{fvd / 1000}\n")
        (run / "evaluation" / "fvd2_9f.csv").write_text(f"step,fvd,fvd_low,fvd_high\n0,{fvd},{fvd - 9},\n")
        frames = [Image.fromarray(np.full((8, 8, 3), 30 * k, np.uint8)) for k in range(4)]
        frames[0].save(run / "samples" / "step-00000004.gif", save_all=True, append_images=frames[1:])
    ablation.write_page(cfg, ablation.entries(cfg))
    with (tmp_path / "out" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["two", "one"]  # the best first
    assert rows[0]["seconds_per_step"] == "0.7" and rows[0]["held_out_loss"] == "0.20025"
    assert (rows[1]["fvd2_9f"], rows[1]["fvd2_9f_low"], rows[1]["fvd2_9f_high"]) == ("300.5", "291.5", "")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.index("<td>two</td>") < page.index("<td>one</td>") and "src='two.png'" in page
    assert Image.open(tmp_path / "out" / "one.png").size == (32, 8)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_two_tiny_trainings_are_compared_and_a_second_start_does_nothing(tmp_path):
    rng, i3d = np.random.default_rng(0), {}
    for name, (inner, outer, k) in shapes().items():
        deviation = np.float32((2 / (inner * k**3)) ** 0.5)
        i3d[f"{name}.weight"] = rng.standard_normal((outer, inner, k, k, k), np.float32) * deviation
        i3d[f"{name}.bias"] = np.zeros(outer, np.float32)
    np.savez(tmp_path / "i3d.npz", **i3d)
    for label in range(3):
        for seed in range(2):
            write_frames(make_clip(label, seed, 12, 16), tmp_path / "clips" / f"class{label}" / f"clip{seed}")
    files = configs(tmp_path, one="variant: 4", two="injection: all_tokens")
    words = [sys.executable, "-m", "latte", "ablation", *files, f"--real={tmp_path / 'clips'}", "--metrics=fvd2_9f"]
    words += [f"--output_path={tmp_path / 'out'}", "--sampling_steps=2", f"--i3d={tmp_path / 'i3d.npz'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "out" / "ablation.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"one", "two"} and all(float(row["fvd2_9f"]) > 0 for row in rows.values())
    assert all(row["steps"] == "4" and float(row["held_out_loss"]) > 0 for row in rows.values())
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.ckpt")}
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert again.returncode == 0 and weights == {path: path.stat().st_mtime_ns for path in weights}
