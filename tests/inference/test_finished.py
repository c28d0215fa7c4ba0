"""A sampling that is started again: it goes on, tells other options and weights apart, and leaves no half of a file."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.golden_values import FIXTURES, ROOT

from latte.commands import sample
from latte.errors import UserError
from latte.inference import finished, inputs, videos
from latte.io import atomic, video
from latte.weights import safetensors_file
from latte.weights.files import CONFIG

TINY = ("--checkpoint", FIXTURES / "latte_class.pt", "--vae_checkpoint", FIXTURES / "vae.bin", "--sampling_steps", 2)
NAMES = [f"video-000{k}-seed{42 + k}-class{label}" for k, label in enumerate((2, 0, 2, 0))]


@pytest.fixture
def sampling(tmp_path, monkeypatch):
    """Return a function that runs sample.py with noise in place of videos and returns the numbers of those it made.

    die_after: end after so many videos, as a killed process does.
    """

    def build(cfg, plan):
        parts = {"net": types.SimpleNamespace(config=plan.network.config)}
        vae = types.SimpleNamespace(config=plan.vae.config)
        return types.SimpleNamespace(**parts, codec=types.SimpleNamespace(vae=vae))

    def start(*words, die_after=99):
        made = []

        def make(cfg, pipe, batch, *_):
            if len(made) + len(batch) > die_after:
                raise KeyboardInterrupt
            made.extend(batch)
            shown = inputs.choose_inputs(cfg, pipe.net.config, batch)
            # Of a video's noise only: its seed, and the options that a real one depends on.
            draws = [np.random.default_rng([cfg.seed + k, cfg.sampling_steps]) for k in batch]
            pixels = np.stack([draw.integers(0, 256, (4, 16, 16, 3), np.uint8) for draw in draws])
            names = [inputs.stem(k, cfg.seed + k, 4, shown, row) for row, k in enumerate(batch)]
            return names, pixels

        monkeypatch.setattr(videos, "build_pipeline", build)
        monkeypatch.setattr(videos, "summary", lambda pipe: "")
        monkeypatch.setattr(videos, "_make", make)
        base = (
            "--output_path",
            tmp_path / "out",
            "--num_samples",
            4,
            "--class_labels",
            "[2,0]",
            "--output_format",
            "png",
        )
        try:
            sample.main([str(word) for word in (*TINY, *base, *words)])
        except KeyboardInterrupt:
            assert len(made) == die_after
        return made

    return start


def contents(folder):
    """The bytes of all files, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_videos(folder):
    return {name: content for name, content in contents(folder).items() if name.startswith("video")}


def test_a_sampling_goes_on_where_it_was_ended_with_the_same_bytes(sampling, tmp_path, capsys):
    undisturbed = tmp_path / "undisturbed"
    every = ("--output_format", "[png,mp4,gif]")
    assert sampling(*every, "--output_path", undisturbed) == [0, 1, 2, 3]
    assert sampling(*every, die_after=2) == [0, 1]
    (tmp_path / "out" / f"{NAMES[1]}.gif").unlink()  # as if killed between two formats
    capsys.readouterr()
    assert sampling(*every) == [1, 2, 3]
    assert "1 of 4 videos are in" in capsys.readouterr().out
    found, wanted = contents(tmp_path / "out"), contents(undisturbed)
    del found["config.yaml"], wanted["config.yaml"]  # which name their folders
    assert found == wanted and {"grid-seed42-45.mp4", f"{NAMES[3]}/frame_0003.png", "samples.json"} <= set(found)


def test_nothing_is_loaded_or_made_where_all_is_there(sampling, tmp_path, monkeypatch, capsys):
    sampling()
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(videos, "run", None)
        assert sampling() == [] and "4 of 4 videos are in" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    assert sampling("--existing", "replace") == [0, 1, 2, 3]
    assert contents(tmp_path / "out").keys() == before.keys()


def test_a_grid_is_made_where_one_is_missing_or_a_video_is_new(sampling, tmp_path):
    sampling(die_after=3)
    grid = tmp_path / "out" / "grid-seed42-45.mp4"
    assert not grid.exists() and sampling() == [3]
    whole = grid.read_bytes()
    grid.write_bytes(b"kept")
    assert sampling() == [] and grid.read_bytes() == b"kept"
    grid.unlink()
    assert sampling() == [] and grid.read_bytes() == whole


def test_more_videos_another_batch_or_another_form_keep_what_is_there(sampling, tmp_path):
    sampling("--num_samples", 2)
    before = of_videos(tmp_path / "out")
    assert sampling("--batch_size", 2, "--vae_slice", 1) == [2, 3]
    assert {name: content for name, content in of_videos(tmp_path / "out").items() if name in before} == before
    assert sampling("--output_format", "[png,gif]") == [0, 1, 2, 3]  # no gif yet


@pytest.mark.parametrize(
    "words, said",
    [
        (("--sampling_steps", 3), r"\(sampling_steps 2 in place of 3\)"),
        (("--guidance_scale", 4), r"\(guidance_scale None in place of 4.0\)"),
        (("--fps", 5), r"\(fps 8 in place of 5\)"),
        (("--cache", "every2"), r"\(cache None in place of every2\)"),
        (("--dtype", "bf16"), r"\(dtype fp32 in place of bf16\)"),
    ],
)
def test_videos_of_other_options_are_replaced_or_refused(words, said, sampling, tmp_path, caplog):
    sampling("--num_samples", 2)
    before = of_videos(tmp_path / "out")
    given = ("--num_samples", 2, *words)
    with pytest.raises(UserError, match=f"2 of the videos in .*out were made from something else {said}; name another"):
        sampling(*given, "--existing", "refuse")
    assert of_videos(tmp_path / "out") == before
    with caplog.at_level("INFO", "latte"):
        assert sampling(*given, die_after=1) == [0]
    assert f"{said}, and are replaced".replace("\\", "") in caplog.text
    assert sampling(*given) == [1]  # the one that was left of the other options
    assert sampling("--num_samples", 2) == [0, 1]


def test_other_weights_code_or_files_without_a_mark_are_told_apart(sampling, tmp_path, monkeypatch, caplog):
    given = ("--num_samples", 1)
    sampling(*given)
    for suffix in (".pt", ".json"):
        shutil.copy(FIXTURES / f"latte_class{suffix}", tmp_path / f"moved{suffix}")
    assert sampling(*given, "--checkpoint", tmp_path / "moved.pt") == []  # the same weights elsewhere
    found = videos.read(FIXTURES / "latte_class.pt", "latte")
    state = {name: np.array(values) for name, values in found.tensors.items()}
    state["blocks.0.attn.qkv.weight"][3, 5] += 1e-3
    safetensors_file.write_safetensors(
        tmp_path / "other.safetensors", state, {CONFIG: json.dumps(dataclasses.asdict(found.config))}
    )
    with pytest.raises(UserError, match=r"\(another network\)"):
        sampling(*given, "--checkpoint", tmp_path / "other.safetensors", "--existing", "refuse")
    monkeypatch.setattr(finished, "ROOMS", ("models",))
    with pytest.raises(UserError, match=r"\(another version of the code\)"):
        sampling(*given, "--existing", "refuse")
    monkeypatch.undo()


def test_a_file_of_somebody_else_is_replaced_by_default_and_said(sampling, tmp_path, caplog):
    given = ("--num_samples", 1, "--output_format", "mp4")
    video.save_mp4(np.zeros((4, 16, 16, 3), np.uint8), tmp_path / "out" / f"{NAMES[0]}.mp4")
    with pytest.raises(UserError, match=r"1 of the videos in .*out were made from something else; name another"):
        sampling(*given, "--existing", "refuse")
    with caplog.at_level("INFO", "latte"):
        assert sampling(*given) == [0] and "something else, and are replaced" in caplog.text
    (tmp_path / "out" / f"{NAMES[0]}.mp4").write_bytes(b"damaged")
    assert sampling(*given) == [0]


def test_ranks_share_the_videos_and_go_on_for_each_other(sampling, tmp_path, monkeypatch):
    for name, value in {"RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert sampling("--use_parallel") == [1, 3]
    assert sampling() == [0, 2]  # also those of a rank that has died
    assert sampling("--output_path", tmp_path / "alone") == [0, 1, 2, 3]
    assert of_videos(tmp_path / "out") == of_videos(tmp_path / "alone")


def test_another_seed_or_label_is_another_video(sampling, tmp_path):
    sampling()
    assert sampling("--class_labels", "[2,1]") == [1, 3]
    assert sampling("--seed", 43) == [0, 1, 2, 3]
    assert sampling() == []


def test_videos_that_are_not_of_the_sampling_are_said(sampling, tmp_path, caplog):
    """They would be evaluated with the others."""
    sampling("--num_samples", 3)
    with caplog.at_level("INFO", "latte"):
        assert sampling("--num_samples", 2, "--existing", "keep") == []
    assert f"also holds 1 video of other seeds, classes or prompts, such as {NAMES[2]}" in caplog.text
    with pytest.raises(UserError, match="also holds 1 video .*; name another --output_path"):
        sampling("--num_samples", 2, "--existing", "refuse")
    assert sampling("--existing", "refuse") == [3]


def test_a_dry_run_says_what_is_there_and_writes_nothing(sampling, tmp_path, capsys):
    sampling(die_after=3)
    before = contents(tmp_path / "out")
    sampling("--dry_run", die_after=0)
    assert "3 of this rank's videos are in" in capsys.readouterr().out and contents(tmp_path / "out") == before


def test_the_facts_are_readable_and_hold_no_path(sampling, tmp_path):
    sampling("--num_samples", 1)
    text = (tmp_path / "out" / "samples.json").read_text()
    facts = json.loads(text)
    assert facts["sampling_steps"] == 2 and facts["release"].startswith("latte ") and str(FIXTURES) not in text
    assert not {"seed", "output_path", "num_samples", "checkpoint"} & set(facts)


@pytest.mark.parametrize("form", ["png", "mp4", "gif"])
def test_a_comment_is_read_back_and_changes_no_pixel(form, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    (plain,) = video.save_video(frames, tmp_path / "plain", [form])
    (marked,) = video.save_video(frames, tmp_path / "marked", [form], comment="latte 0123")
    assert video.comment_of(marked) == "latte 0123" and video.comment_of(plain) == ""
    assert np.array_equal(video.read_any(marked), video.read_any(plain))
    assert video.comment_of(tmp_path / f"nowhere.{form}") == ""


def test_frames_are_written_all_or_none(tmp_path, monkeypatch):
    """Before, a killed process left the first frames: a shorter video."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    write, count = video._write_png, []

    def fail_at_the_third(*given):
        count.append(1)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        write(*given)

    monkeypatch.setattr(video, "_write_png", fail_at_the_third)
    with pytest.raises(UserError, match="cannot write .*a: No space left on device"):
        video.save_png_frames(frames, tmp_path / "a")
    assert not any(tmp_path.iterdir())
    video.save_png_frames(frames, tmp_path / "a")
    (tmp_path / "a" / "notes").mkdir()
    count.clear()
    with pytest.raises(UserError, match="No space left"):
        video.save_png_frames(255 - frames, tmp_path / "a")
    assert np.array_equal(video.read_frames(tmp_path / "a"), frames) and (tmp_path / "a" / "notes").is_dir()


def test_a_folder_that_cannot_be_exchanged_stays(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    real, calls = Path.replace, []

    def fail_at_the_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_second)
    with (
        pytest.raises(UserError, match="Input/output error"),
        atomic.whole_folder(tmp_path / "a", lambda _: True) as new,
    ):
        (new / "new").write_text("new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]


@pytest.mark.slow
def test_a_rank_that_was_killed_is_made_up_for(tmp_path):
    """Real videos: two ranks of mpirun, one of them killed; then one process, and the bytes of an undisturbed one."""
    words = [*map(str, TINY), "--num_samples", "12", "--output_format", "[png,mp4]", "--device_target", "CPU"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun is beside Python
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}

    def command(folder, *more):
        return [sys.executable, "sample.py", *words, "--output_path", str(tmp_path / folder), *more]

    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    ranks = subprocess.Popen(
        [*mpirun, *command("killed", "--use_parallel")], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 300
    while len(list((tmp_path / "killed").glob("video-*.mp4"))) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    victim = max(
        (each for each in psutil.Process(ranks.pid).children(recursive=True) if "sample.py" in each.cmdline()),
        key=lambda each: each.pid,
    )
    victim.send_signal(signal.SIGKILL)
    assert ranks.wait() != 0
    whole = of_videos(tmp_path / "killed")
    assert 0 < len([name for name in whole if name.endswith(".mp4")]) < 12
    done = subprocess.run(command("killed"), cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "of 12 videos are in" in done.stdout
    subprocess.run(command("undisturbed"), cwd=ROOT, env=environment, capture_output=True, check=True)
    found = of_videos(tmp_path / "killed")
    assert found == of_videos(tmp_path / "undisturbed") and len(found) == 12 * 5
    assert {name: found[name] for name in whole} == whole
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
