"""Every program: its --help and --version, and the `latte` program that calls the commands by name."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import typing

import pytest
from support.golden_values import FIXTURES, ROOT

import latte
from latte.commands import convert
from latte.commands import main as program
from latte.config.parser import Options
from latte.config.values import allowed_by

PROGRAMS = ["sample.py", "train.py", *sorted(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))]
PARTS = ["tools/benchmark_common.py", "tools/benchmark_ours.py", "tools/benchmark_torch.py"]


def run(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def imports_mindspore(done):
    """Return whether a program that ran with -X importtime imported MindSpore, which takes seconds."""
    assert re.search(r"\| +latte.config.parser$", done.stderr, re.MULTILINE)
    return re.search(r"\| +mindspore$", done.stderr, re.MULTILINE) is not None


@pytest.mark.parametrize("path", [path for path in PROGRAMS if path not in PARTS])
def test_help_of_every_program(path):
    done = run("-X", "importtime", path, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python {path} ") and "default: " in done.stdout
    assert f"\n    python {path}" in done.stdout or path in ("tools/doctor.py", "tools/make_demo_data.py")
    assert " at 0x" not in done.stdout and "==SUPPRESS==" not in done.stdout
    assert not imports_mindspore(done)


@pytest.mark.parametrize("path", [path for path in PROGRAMS if path not in PARTS])
def test_an_unknown_option_of_every_program(path):
    done = run(path, "--versoin")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.match("error: command line: there is no option 'versoin'; the nearest is '[a-z_0-9]+'", done.stderr)


@pytest.mark.parametrize("path", ["tools/benchmark_ours.py", "tools/benchmark_torch.py"])
def test_a_part_of_the_benchmark_says_so(path):
    done = run(path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "part of tools/benchmark.py" in done.stderr


@pytest.mark.parametrize("path", [path for path in PROGRAMS if not path.startswith("tools/benchmark")])
def test_a_program_is_a_command_under_the_name_of_the_tutorial(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line and not line.startswith('"""')]
    assert code[0].startswith("from latte.commands.") and code[1] == "from latte.errors import run_main"
    assert code[2] == 'if __name__ == "__main__":' and code[3].startswith("    run_main(main") and len(code) == 4


def test_the_commands_are_the_modules():
    modules = {path.stem for path in (ROOT / "latte" / "commands").glob("[!_]*.py")}
    assert modules - {"main"} == set(program.COMMANDS)


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_option_of_a_command_has_a_text(name):
    module = importlib.import_module(f"latte.commands.{name}")
    assert callable(module.main)
    own = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, Options)]
    assert own
    for field in (field for cls in own for field in dataclasses.fields(cls)):
        assert len(field.metadata.get("help", "")) > 5, f"{name}: {field.name}"


@pytest.mark.parametrize("name", program.COMMANDS)
def test_the_options_that_matter_are_options(name):
    module = importlib.import_module(f"latte.commands.{name}")
    classes = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, Options)]
    known = {field.name for cls in classes for field in dataclasses.fields(cls)} | {"config", "help"}
    assert set(re.findall(r"--(\w+)", module.__doc__)) <= known


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_latte_lists_the_commands(words):
    done = run("-X", "importtime", "-m", "latte", *words)
    assert done.returncode == 0 and not imports_mindspore(done)
    for name, text in program.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", done.stdout, re.MULTILINE)


def test_latte_calls_a_command():
    done = run("-m", "latte", "sample", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: latte sample [-c CONFIG]")
    done = run("-m", "latte", "train", "--epochs", "0")
    assert done.returncode == 2 and done.stderr == "error: command line: epochs is 0, but must be at least 1\n"
    done = run("-m", "latte", "--version")
    assert done.returncode == 0 and done.stdout.startswith(f"latte {latte.__version__}, MindSpore ")


def test_a_command_is_called_with_the_words_after_its_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["latte"])
    words = ["demo_data", "--folder", str(tmp_path), "--clips", "1", "--num_frames", "2", "--size", "16"]
    program.main([*words, "--formats", "frames"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.csv", "frames"]
    assert "3 clips of 2 frames" in capsys.readouterr().out


def test_the_shipped_configuration_and_model_are_found_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "latte", "sample", "-c", "configs/inference/demo.yaml", "--dry_run"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and "models/demo/latte.safetensors" in done.stdout, done.stderr


@pytest.mark.parametrize("word, nearest", [("samples", "sample"), ("merge-lora", "merge_lora"), ("--versoin", "")])
def test_an_unknown_command_names_the_nearest(word, nearest, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main([word])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: there is no command {word!r}; the nearest is {nearest and repr(nearest)}")


@pytest.mark.parametrize(
    "source, said",
    [
        ("latte_class.pt", "53 tensors"),
        ("vae.bin", "block_out_channels"),
        ("vae", "block_out_channels"),
        ("latte_t2v/vae", "block_out_channels"),
        ("latte_t2v", "6 components as ckpt"),
    ],
)
def test_convert_recognises_its_source(source, said, tmp_path, capsys):
    words = ["--source", str(FIXTURES / source), "--target", str(tmp_path / "x.ckpt")]
    convert.main([*words, "--dry_run"])
    assert said in capsys.readouterr().out and not any(tmp_path.iterdir())
    convert.main(words)
    assert said in capsys.readouterr().out and (tmp_path / "x.ckpt").is_dir() == (source == "latte_t2v")


@pytest.mark.parametrize(
    "source, words, said",
    [
        (
            "latte_class.pt",
            ["--norm_num_groups", "8"],
            "--norm_num_groups does not go with .*, which is a Latte network",
        ),
        ("latte_class.pt", ["--format", "ckpt"], "--format does not go with"),
        ("vae.bin", ["--num_heads", "4"], "--num_heads does not go with .*, which is an autoencoder; leave it out"),
        ("latte_t2v", ["--weights", "ema"], "--weights does not go with .*, which is a text-to-video folder"),
        ("latte_t2v/transformer", [], "holds the transformer .*; name its folder; tools/t2v_export.py makes one"),
        ("latte_t2v/scheduler", [], "is a folder without"),
    ],
)
def test_convert_refuses_what_does_not_fit(source, words, said, tmp_path):
    with pytest.raises(latte.errors.UserError, match=said):
        convert.main(["--source", str(FIXTURES / source), "--target", str(tmp_path / "x.ckpt"), *words])
    assert not any(tmp_path.iterdir())


def test_the_choices_of_convert_are_those_there_are():
    from latte.components.convert import FORMS
    from latte.components.quantize import KINDS

    hints = typing.get_type_hints(convert.FolderOptions)
    assert allowed_by(hints["format"]) == f"one of {', '.join(FORMS)} or null"
    assert allowed_by(hints["quantize"]) == f"one of {', '.join(KINDS)} or null"
