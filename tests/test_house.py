"""The laws of the house that no tool knows, on every file; and that the tools catch what breaks the others.

A check takes the path of a file from the repository's root and its text, and returns "path:line: what and the remedy".
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from latte import config
from latte.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

DEVICE_WORDS = {"Ascend", "GPU", "CPU"}
KNOWS_DEVICES = (
    "latte/runtime/",
    "latte/ops/",
    "latte/config/",
    "latte/commands/doctor.py",
    "tools/benchmark",
    "tests/",
)
CONFIGS = {
    "inference": "SampleConfig",
    "training": "TrainConfig",
    "training/ablation": "TrainConfig",
    "training/data": "DataConfig",
}


def check_devices(path: str, text: str) -> list[str]:
    """Law 3: one place for devices."""
    if path.startswith(KNOWS_DEVICES):
        return []
    return [
        f"{path}:{node.lineno}: names the device {node.value}; ask a capability of latte.runtime.device instead"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DEVICE_WORDS
    ]


def check_pickled_arrays(path: str, text: str) -> list[str]:
    """No code from data: ruff finds eval and pickle, but not arrays of objects."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node.func)} can run code from data; leave allow_pickle out"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        if any(key.arg == "allow_pickle" and ast.unparse(key.value) != "False" for key in node.keywords)
    ]


def check_tests_stand_alone(path: str, text: str) -> list[str]:
    """What two tests share is in tests/support."""
    if not path.startswith("tests/"):
        return []
    imported = [
        (node.lineno, name)
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "", *(alias.name for alias in node.names)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    return [
        f"{path}:{line}: imports the test {name}; move what both need into tests/support"
        for line, name in imported
        if name == "tests" or name.startswith("tests.") or re.match(r"(.*\.)?test_\w+$", name)
    ]


def check_config(path: str) -> list[str]:
    """Law 5: a YAML file holds known options with allowed values."""
    folder = str(Path(path).parent.relative_to("configs"))
    cls = getattr(config, CONFIGS.get(folder, ""), None)
    if cls is None:
        return [f"{path}:1: no options for configs/{folder}; name their class in CONFIGS of tests/test_house.py"]
    try:
        config.parse_config(cls, ["-c", str(ROOT / path)])
    except UserError as error:
        return [f"{path}:1: {error}"]
    return []


CHECKS = (check_devices, check_pickled_arrays, check_tests_stand_alone)


def _files(pattern: str) -> list[str]:
    """The files of the repository: those that git tracks or would, or without git those outside hidden folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = listed.stdout.splitlines()
    else:
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob(pattern)]
    return sorted(name for name in names if not name.startswith(".") and (ROOT / name).is_file())


@pytest.mark.parametrize("check", CHECKS)
def test_every_file(check):
    files = _files("*.py")
    assert "latte/config/train.py" in files
    problems = [problem for name in files for problem in check(name, (ROOT / name).read_text(encoding="utf-8"))]
    assert not problems, "\n" + "\n".join(problems)


def test_every_config():
    files = [name for name in _files("*.yaml") if name.startswith("configs/")]
    assert "configs/inference/demo.yaml" in files
    problems = [problem for name in files for problem in check_config(name)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "check, path, text, said",
    [
        (
            check_devices,
            "latte/inference/pipeline.py",
            'x = 1\nif target == "Ascend":\n    pass',
            ":2: names the device",
        ),
        (check_devices, "tools/convert.py", 'x = ["CPU"]', "names the device CPU"),
        (check_devices, "sample.py", 'match t:\n    case "GPU":\n        pass', "sample.py:2: names the device GPU"),
        (check_pickled_arrays, "train.py", "np.load('x', allow_pickle=True)", "np.load can run code"),
        (check_tests_stand_alone, "tests/a/test_b.py", "from test_c import f", ":1: imports the test test_c"),
        (
            check_tests_stand_alone,
            "tests/a/test_b.py",
            "\nimport tests.a.test_c",
            ":2: imports the test tests.a.test_c",
        ),
        (check_tests_stand_alone, "tests/a/test_b.py", "from . import test_c", "imports the test test_c"),
    ],
)
def test_check_catches(check, path, text, said):
    problems = check(path, text)
    assert len(problems) == 1 and said in problems[0], problems


@pytest.mark.parametrize(
    "check, path, text",
    [
        (check_devices, "latte/inference/pipeline.py", '"""On Ascend."""\nx = "runs on CPU"  # CPU'),
        (check_devices, "latte/ops/norm.py", 'x = "CPU"'),
        (check_pickled_arrays, "train.py", "np.load('x', allow_pickle=False)"),
        (check_tests_stand_alone, "tests/a/test_b.py", "from support.weights import f\nimport pytest"),
    ],
)
def test_check_allows(check, path, text):
    assert check(path, text) == []


def test_config_check_catches(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "configs" / "inference").mkdir(parents=True)
    (tmp_path / "configs" / "inference" / "a.yaml").write_text("sampling_step: 3")
    assert "sampling_steps" in check_config("configs/inference/a.yaml")[0]
    assert "name their class" in check_config("configs/other/a.yaml")[0]


@pytest.mark.parametrize(
    "path, text, rule",
    [
        ("train.py", "try:\n    pass\nexcept:\n    pass", "E722"),
        ("train.py", "import sys\nsys.path.insert(0, 'x')", "TID251"),
        ("train.py", "from sys import path", "TID251"),
        ("latte/io/video.py", "def f():\n    import torch.nn as nn", "TID251"),
        ("latte/io/video.py", "from torch import nn", "TID251"),
        ("tests/test_a.py", "import torchvision", "TID251"),
        ("tests/golden/make_fixtures.py", "import torch", None),
        ("latte/inference/pipeline.py", "import sample", "TID251"),
        ("latte/inference/pipeline.py", "from tools.convert import f", "TID251"),
        ("train.py", "eval('1')", "S307"),
        ("train.py", "exec('1')", "S102"),
        ("train.py", "network.eval()", None),
        ("train.py", "import pickle\npickle.loads(b'')", "TID251"),
        ("train.py", "import yaml\nyaml.load('x', yaml.Loader)", "TID251"),
        ("latte/a.py", "x = 1", "D100"),
        ("latte/a.py", "class F:\n    pass", "D101"),
        ("latte/a.py", "def f() -> None:\n    pass", "D103"),
        ("latte/a.py", "def f(x) -> None:\n    pass", "ANN001"),
        ("latte/a.py", "def f(x: int):\n    return x", "ANN201"),
        ("latte/a.py", "print('x')", "T201"),
        ("latte/commands/a.py", "print('x')", None),
    ],
)
def test_ruff_catches(path, text, rule):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--stdin-filename", path, "-"], input=text, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert not done.stderr, done.stderr
    wanted = re.findall(r": (E722|TID251|S307|S102|T201|D10[013]|ANN\d+) ", done.stdout)
    assert rule in wanted if rule else not {"TID251", "S307", "T201"} & set(wanted), done.stdout


def test_import_linter_knows_every_room(tmp_path):
    """A room that the layers do not name, and an import upward, both end the check with an error."""
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "latte", tmp_path / "latte", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]

    def lint() -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    assert not lint()
    (tmp_path / "latte/io/upward.py").write_text("def f():\n    from latte.training import trainer\n")
    assert "latte.io.upward -> latte.training.trainer" in lint()
    (tmp_path / "latte/io/upward.py").unlink()
    (tmp_path / "latte/attic.py").write_text("")
    assert "attic" in lint()


def _requirements(text: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "-")):
            requirement = Requirement(line.partition("  #")[0])
            found.setdefault(requirement.name.lower(), []).append(requirement)
    return found


def test_every_dependency_is_pinned_within_its_range():
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    ranges = _requirements("\n".join(re.findall(r'^    "(.*?)"', listed, re.MULTILINE)))
    pins = _requirements((ROOT / "requirements.txt").read_text())
    assert set(ranges) == set(pins) - {"mpi4py", "openmpi"}  # of the extra mpi
    for name, wanted in ranges.items():
        for pin in pins[name]:
            (exact,) = pin.specifier
            assert exact.operator == "==" and wanted[0].specifier.contains(exact.version), pin
    assert "mindspore" in ranges and not any("<" in part.operator for part in ranges["mindspore"][0].specifier)


def test_pre_commit_has_the_pinned_versions():
    pins = _requirements((ROOT / "requirements-dev.txt").read_text())
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for name, repository in (("ruff", "ruff-pre-commit"), ("codespell", "codespell")):
        assert f"{repository}\n    rev: v{next(iter(pins[name][0].specifier)).version}\n" in hooks
