"""What the page of latte web does, without a browser: commands, guesses of x_0, history."""

import itertools
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from latte.config import SampleConfig, parse_config
from latte.config.web import WebConfig
from latte.diffusion.solvers import SOLVERS, Solver
from latte.errors import UserError
from latte.inference import studio
from latte.inference.studio import Made, Preview, Studio

X0 = np.random.default_rng(0).normal(size=(1, 4, 4, 8, 8)).astype(np.float32)


def codec():
    """One whose pixels are the latents, and that counts the frames it decodes."""
    made = SimpleNamespace(decoded=0, vae=SimpleNamespace(config=SimpleNamespace(downsampling=8)))

    def decode(latents, frames_per_slice=None):
        made.decoded += len(latents)
        return np.zeros((len(latents), 8, 8, 3), np.uint8)

    made.decode = decode
    return made


def walk(solver, steps):
    """Yield x_t after each step of a network that knows X0: it predicts the noise that is there exactly."""

    def model(x, t):
        alpha = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        at = np.interp(t, np.arange(1000), alpha)
        return ((x - np.sqrt(at) * X0) / np.sqrt(1 - at)).astype(np.float32)

    rng = np.random.default_rng(1)
    noises = (rng.normal(size=X0.shape).astype(np.float32) for _ in itertools.count())
    yield from solver.sample(model, next(noises), steps, noises)


@pytest.mark.parametrize("name", [name for name, spec in SOLVERS.items() if not spec.adds_noise])
def test_the_guess_of_a_deterministic_solver_is_x_0_from_the_second_step_on(name):
    solver = Solver(name)
    preview = Preview(codec(), solver.steps(12), solver.adds_noise)
    guesses = [preview.guess(k, x[0]) for k, x in enumerate(walk(solver, 12))]
    assert guesses[0] is None
    for guess in guesses[1:]:
        np.testing.assert_allclose(guess, X0[0], atol=0.05)


@pytest.mark.parametrize("name", [name for name, spec in SOLVERS.items() if spec.adds_noise])
def test_the_guess_of_a_solver_that_adds_noise_comes_closer_to_x_0(name):
    solver = Solver(name)
    preview = Preview(codec(), solver.steps(12), solver.adds_noise)
    errors = [np.abs(preview.guess(k, x[0]) - X0[0]).mean() for k, x in enumerate(walk(solver, 12))]
    assert errors[-1] < 1e-3 < errors[len(errors) // 2] < errors[0]


def test_previews_take_a_fifth_of_the_time_at_most(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(studio.time, "monotonic", lambda: clock.now)
    slow = codec()
    plain = slow.decode

    def decode(latents, frames_per_slice=None):
        clock.now += 1.0
        return plain(latents)

    slow.decode = decode
    solver = Solver("ddim")
    preview = Preview(slow, solver.steps(50), False)
    made = 0
    for k, x in enumerate(walk(solver, 50)):
        made += preview.frames(k, x[0]) is not None
        clock.now += 0.5
    assert 0 < made <= 0.2 * clock.now + 1


def test_the_words_of_a_form_are_a_command_of_sample(tmp_path):
    made = Studio("CPU", output_path=str(tmp_path))
    options = {"seed": 3, "class_labels": 1, "negative_prompt": "-blurred", "prompts": ["a 'dog', --flying"]}
    words = made.words("models/demo/latte.safetensors", "models/demo/vae.safetensors", options | {"init_frames": None})
    cfg = parse_config(SampleConfig, words)
    assert (cfg.seed, cfg.class_labels, cfg.negative_prompt, cfg.prompts) == (3, [1], "-blurred", options["prompts"])
    assert shlex.split(made.command(words)) == ["latte", "sample", *words]


def test_each_video_has_a_folder_of_its_own_and_a_page_that_is_opened_again_has_them(tmp_path):
    made = Studio(output_path=str(tmp_path))
    first = made._new_folder()
    (tmp_path / first).mkdir()
    assert made._new_folder() != first
    for name in ("20250101-120000", "20250102-120000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "video-0000-seed1.mp4").touch()
        (tmp_path / name / "command.txt").write_text(f"latte sample {name}")
    newest = tmp_path / "20250102-120000" / "video-0000-seed1.mp4"
    assert Studio(output_path=str(tmp_path)).history[0] == Made(newest, "latte sample 20250102-120000")


def test_the_page_begins_with_the_demo_model_and_listens_at_this_machine_only():
    cfg = parse_config(WebConfig, [])
    assert cfg.host == "127.0.0.1" and cfg.checkpoint.endswith("demo/latte.safetensors")
    assert cfg.vae_checkpoint.endswith("demo/vae.safetensors")


def test_without_gradio_one_sentence_says_how_to_install_it(monkeypatch):
    import sys

    from latte.commands import web

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "latte.inference.web_page", raising=False)
    with pytest.raises(UserError, match=r'install it: pip install "latte-mindspore\[web\]"'):
        web.main([])
