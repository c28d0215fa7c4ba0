"""The two converters as users call them: from file to file, and one sentence with exit code 2 for what is wrong."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.weights import FIXTURES, LATTE, same

from latte.commands.convert import main_latte, main_vae
from latte.components.loading import read
from latte.errors import run_main
from latte.weights.files import CONFIG, read_state_dict, write_state_dict
from latte.weights.torch_file import read_torch_file

ROOT = FIXTURES.parents[1]
MAINS = {"latte_converter": main_latte, "vae_converter": main_vae}


@pytest.fixture
def convert(monkeypatch):
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
        run_main(MAINS[name])

    return run


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_latte_converter(tmp_path, convert, capsys, weights):
    source = FIXTURES / "latte_class.pt"
    chain = [tmp_path / "a.ckpt", tmp_path / "b.safetensors", tmp_path / "c.pt"]
    convert("latte_converter", "--source", source, "--target", chain[0], "--weights", weights)
    convert("latte_converter", "--source", chain[0], "--target", chain[1])
    convert("latte_converter", "--source", chain[1], "--target", chain[2])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "53 tensors, 332,512 elements, float32, 1.3 MB; hidden_size 64, depth 4, num_heads 4" in lines[0]
    official = read_torch_file(source)[weights]
    same(read_torch_file(chain[2])["ema"], official)
    for path in chain:
        state = read_state_dict(path)
        same(state.tensors, official)
        assert json.loads(state.metadata[CONFIG]) == LATTE


@pytest.mark.parametrize("source, groups", [("vae.bin", 8), ("vae", 8), ("weights/sd_full.ckpt", 2)])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin"])
def test_vae_converter(tmp_path, convert, source, groups, suffix):
    target = tmp_path / f"x{suffix}"
    argv = ["--source", FIXTURES / source, "--target", target]
    convert("vae_converter", *argv, *(["--norm_num_groups", 2] if groups == 2 else []))
    found = read(target)
    same(read_state_dict(target).tensors, read(FIXTURES / source, norm_num_groups=groups).tensors)
    assert found.config.norm_num_groups == groups


def test_dry_run(tmp_path, convert, capsys):
    convert("latte_converter", "--source", FIXTURES / "latte_uncond.pt", "--target", tmp_path / "x.pt", "--dry_run")
    assert "(not written): 52 tensors" in capsys.readouterr().out and not any(tmp_path.iterdir())


BAD = {
    "missing.pt": None,
    "empty.pt": b"",
    "text.pt": b"hello\n" * 100,
    "image.pt": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "cut.pt": (FIXTURES / "latte_uncond.pt").read_bytes()[:5000],
    "cut.ckpt": b"\x0a\x80\x02\x0a\x05abc",
    "vae.bin": (FIXTURES / "vae.bin").read_bytes(),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_of_latte(tmp_path, convert, capsys, name):
    path = tmp_path / name
    if BAD[name] is not None:
        path.write_bytes(BAD[name])
    target = tmp_path / "out" / "x.ckpt"
    with pytest.raises(SystemExit) as caught:
        convert("latte_converter", "--source", path, "--target", target)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and str(path) in said
    assert not target.parent.exists()
    if name == "vae.bin":
        assert "tools/vae_converter.py" in said


@pytest.mark.parametrize(
    "name, argv, said",
    [
        ("vae_converter", ["--source", "{f}/latte_uncond.pt", "--target", "{t}/x.ckpt"], "tools/latte_converter.py"),
        ("vae_converter", ["--source", "{f}/vae.bin", "--target", "{t}/x.zip"], "must end in one of .ckpt,"),
        ("vae_converter", ["--source", "{f}/vae.bin", "--target", "{f}/vae.bin"], "is the source itself"),
        ("vae_converter", ["--source", "{f}/..", "--target", "{t}/x.ckpt"], "is a folder without"),
        ("vae_converter", ["--source", "{f}/vae.bin", "--target", "{f}/vae.bin/x.ckpt"], "cannot write"),
        ("latte_converter", ["--source", "{f}/weights/bare.pt", "--target", "{t}/x.ckpt"], "x_embedder.proj.weight"),
        ("latte_converter", ["--source", "{f}/latte_uncond.pt", "--target", "{t}/x.ckpt", "--weights", "e"], "ema"),
        ("latte_converter", ["--sorce", "x"], "sorce"),
    ],
)
def test_errors_of_use(tmp_path, convert, capsys, name, argv, said):
    with pytest.raises(SystemExit) as caught:
        convert(name, *[text.format(f=FIXTURES, t=tmp_path) for text in argv])
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_missing_number_of_heads_and_weights(tmp_path, convert, capsys):
    source = tmp_path / "alone.pt"  # without the .json beside it that says the number of heads
    shutil.copy(FIXTURES / "latte_uncond.pt", source)
    argv = ["--source", source, "--target", tmp_path / "x.ckpt"]
    with pytest.raises(SystemExit):
        convert("latte_converter", *argv)
    assert "give it with --num_heads" in capsys.readouterr().err
    convert("latte_converter", *argv, "--num_heads", "8")
    assert json.loads(read_state_dict(tmp_path / "x.ckpt").metadata[CONFIG])["num_heads"] == 8
    again = ("--source", tmp_path / "x.ckpt", "--target", tmp_path / "y.ckpt", "--num_heads", "4")
    with pytest.raises(SystemExit, match="2"):
        convert("latte_converter", *again)
    assert "num_heads 8, but num_heads 4 is asked for" in capsys.readouterr().err and not (tmp_path / "y.ckpt").exists()
    state = read_torch_file(source)
    del state["ema"]["blocks.2.mlp.fc1.bias"]
    write_state_dict(tmp_path / "less.pt", state["ema"], {CONFIG: '{"num_heads": 4}'})
    with pytest.raises(SystemExit):
        convert("latte_converter", "--source", tmp_path / "less.pt", "--target", tmp_path / "y.ckpt")
    assert "1 missing (blocks.2.mlp.fc1.bias)" in capsys.readouterr().err and not (tmp_path / "y.ckpt").exists()


def test_as_a_program(tmp_path):
    command = [sys.executable, "tools/latte_converter.py", "--source", FIXTURES / "latte_uncond.pt", "--target"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, tmp_path / "x.ckpt"], **options)
    assert done.returncode == 0 and "52 tensors" in done.stdout, done.stderr
    failed = subprocess.run([*command, tmp_path / "x.txt"], **options)
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
