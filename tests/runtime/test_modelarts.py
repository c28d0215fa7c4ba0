"""Jobs of ModelArts, by a stand-in for moxing that has OBS in a folder."""

import importlib.util
import shutil
import types
from pathlib import Path

import pytest
from support.golden_values import ROOT

from latte.errors import UserError

ARGUMENTS = ["train", "-c", "sky", "--data_url=obs://b/sky/", "--train_url", "obs://b/runs", "--max_steps", "3"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with its copies in a folder and OBS in another."""
    spec = importlib.util.spec_from_file_location("modelarts", ROOT / "scripts" / "modelarts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FAST_DISK", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "obs/b/sky").mkdir(parents=True)
    (tmp_path / "obs/b/sky/a.mp4").write_text("video")

    def there(path):
        return Path(str(path).replace("obs://", f"{tmp_path}/obs/"))

    def copy(source, target):
        there(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(there(source), there(target))

    file = types.SimpleNamespace(
        exists=lambda path: there(path).exists(),
        is_directory=lambda path: there(path).is_dir(),
        copy=copy,
        copy_parallel=lambda source, target: shutil.copytree(there(source), there(target), dirs_exist_ok=True),
    )
    monkeypatch.setattr(module, "load_moxing", lambda: types.SimpleNamespace(file=file))
    return module


def test_addresses_become_places_on_this_machine(script, tmp_path):
    copies = script.Copies(tmp_path)
    assert script.words_here(ARGUMENTS, copies) == [
        *("train", "-c", "sky", f"--data_folder={tmp_path}/b/sky", "--output_path", f"{tmp_path}/b/runs"),
        *("--max_steps", "3"),
    ]
    assert copies.read == {"obs://b/sky": tmp_path / "b/sky"} and list(copies.written) == ["obs://b/runs"]
    plain = ["sample", "--prompts", "a=b", "--seed=3"]
    assert script.words_here(plain, copies) == plain


def test_data_is_there_before_and_results_go_back(script, tmp_path, monkeypatch):
    """Those of an earlier job are there too, so that a run can be resumed; what is hidden is not whole."""
    (tmp_path / "obs/b/runs/old").mkdir(parents=True)
    (tmp_path / "obs/b/runs/old/log.txt").write_text("before")

    def command(words):
        data, out = tmp_path / "cache/obs/b/sky", tmp_path / "cache/obs/b/runs"
        assert f"--data_folder={data}" in words and (data / "a.mp4").read_text() == "video"
        assert (out / "old/log.txt").read_text() == "before"
        (out / "new").mkdir()
        (out / "new/ema.ckpt").write_text("weights")
        (out / "new/.state-half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "latte", command)
    (tmp_path / "obs/b/runs/old/log.txt").chmod(0o444)  # what has not changed is not written again
    with pytest.raises(KeyboardInterrupt):
        script.run(ARGUMENTS)
    found = {path.name for path in (tmp_path / "obs/b/runs").rglob("*") if path.is_file()}
    assert found == {"log.txt", "ema.ckpt"} and not (tmp_path / "obs/b/sky/ema.ckpt").exists()


def test_it_copies_while_the_command_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SECONDS", 0.05)

    def command(words):
        out = tmp_path / "cache/obs/b/runs"
        (out / "a.txt").write_text("1")
        for _ in range(200):
            if (tmp_path / "obs/b/runs/a.txt").exists():
                return
            script.time.sleep(0.05)
        raise AssertionError("nothing was copied")

    monkeypatch.setattr(script, "latte", command)
    script.run(ARGUMENTS)


def test_of_several_ranks_one_copies(script, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(script, "latte", called.append)
    script.run(ARGUMENTS)
    for name, value in (("RANK_ID", "3"), ("RANK_SIZE", "8"), ("DEVICE_ID", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(script, "load_moxing", None)
    script.run(ARGUMENTS)
    assert called[0] == called[1]


def test_the_other_ranks_do_not_wait_for_a_copy_that_failed(script, monkeypatch):
    monkeypatch.setattr(script, "latte", None)
    missing = ["train", "--data_url", "obs://b/nothing"]
    with pytest.raises(UserError, match="does not exist"):
        script.run(missing)
    for name, value in (("RANK_ID", "1"), ("RANK_SIZE", "2"), ("DEVICE_ID", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="first rank of this machine could not copy"):
        script.run(missing)


def test_without_addresses_it_is_the_command(script, monkeypatch):
    called = []
    monkeypatch.setattr(script, "latte", called.append)
    script.run(["train", "--data_url=datasets/sky", "--train_url", "outputs"])
    assert called == [["train", "--data_folder=datasets/sky", "--output_path", "outputs"]]


def test_what_is_missing_is_said(script, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="obs://b/nothing does not exist"):
        script.run(["train", "--data_url", "obs://b/nothing"])
    monkeypatch.undo()
    with pytest.raises(UserError, match="need moxing"):
        script.load_moxing()
