"""The laws of the house, checked on every file; each check is also shown to catch a file that breaks it.

A check takes the path of a file from the repository's root and its text, and returns "path:line: what and the remedy".
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from latte import config
from latte.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# Imports only go to lower numbers, or stay inside a package; a file of layer 2 imports no other package of layer 2.
LAYERS = {
    "errors": 0,
    **dict.fromkeys(("io", "runtime", "diffusion"), 1),
    **dict.fromkeys(("config", "weights", "ops"), 2),
    **dict.fromkeys(("data", "models"), 3),
    **{name: 4 + i for i, name in enumerate(("components", "inference", "training", "commands"))},
}
NO_NEIGHBOURS = {3}
DEVICE_WORDS = {"Ascend", "GPU", "CPU"}
KNOWS_DEVICES = (
    "latte/runtime/",
    "latte/ops/",
    "latte/config/",
    "latte/commands/doctor.py",
    "tools/benchmark",
    "tests/",
)
KNOWS_TORCH = ("tests/golden/make_", "tools/benchmark_torch.py")
RUNS_CODE = re.compile(r"(builtins\.)?(eval|exec)|(pickle|dill)\.(load|loads|Unpickler)|yaml\.(full_|unsafe_)?load")
CONFIGS = {"inference": "SampleConfig", "training": "TrainConfig", "training/data": "DataConfig"}


def check_imports(path: str, text: str) -> list[str]:
    """Law 2: one direction. Programs and tools stand on top and may import everything of latte, but nobody them."""
    found = []
    own = _module(path)
    if own is not None and own not in LAYERS:
        return [f"{path}:1: latte.{own} has no layer; give it one in LAYERS of tests/test_house.py"]
    for line, name in _imported_names(path, text):
        parts = name.split(".")
        if path.startswith("latte/") and parts[0] in ("tools", "tests", "sample", "train"):
            found.append(f"{path}:{line}: latte imports {name}, which stands above it; move what it needs into latte/")
        if parts[0] != "latte" or len(parts) < 2 or own is None or own == parts[1]:
            continue
        here, there = LAYERS[own], LAYERS.get(parts[1])
        if there is None:
            found.append(f"{path}:{line}: {name} has no layer; give it one in LAYERS of tests/test_house.py")
        elif there > here:
            found.append(f"{path}:{line}: {own} (layer {here}) imports {name} (layer {there}); turn it around")
        elif there == here and here in NO_NEIGHBOURS:
            found.append(f"{path}:{line}: {own} imports its neighbour {name}; let a file of layer 3 join the two")
    return found


def check_devices(path: str, text: str) -> list[str]:
    """Law 3: one place for devices."""
    if path.startswith(KNOWS_DEVICES):
        return []
    return [
        f"{path}:{node.lineno}: names the device {node.value}; ask a capability of latte.device instead"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DEVICE_WORDS
    ]


def check_forbidden(path: str, text: str) -> list[str]:
    """Law 6: no sys.path, no torch, no bare except; and no code from data: no eval, exec or unpickling."""
    found = []
    if not path.startswith(KNOWS_TORCH):
        found += [
            f"{path}:{line}: imports {name}; torch is not there at run time, use MindSpore or NumPy"
            for line, name in _imported_names(path, text)
            if name.split(".")[0] in ("torch", "torchvision")
        ]
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{path}:{node.lineno}: bare except; name the exceptions")
        elif (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path") or (
            names and node.module == "sys" and "path" in names
        ):
            found.append(f"{path}:{node.lineno}: sys.path; `pip install -e .` makes latte importable everywhere")
        elif names and node.module in ("pickle", "dill") and {"load", "loads"} & set(names):
            found.append(f"{path}:{node.lineno}: {node.module} can run code from data; parse the data instead")
        elif RUNS_CODE.fullmatch(call) or any(
            key.arg == "allow_pickle" and ast.unparse(key.value) != "False" for key in getattr(node, "keywords", ())
        ):
            found.append(f"{path}:{node.lineno}: {call} can run code from data; parse the data instead")
    return found


def check_signatures(path: str, text: str) -> list[str]:
    """Public functions and classes of latte have docstrings, and public functions type hints on all they take."""
    if not path.startswith("latte/"):
        return []
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) or not text.strip() else [f"{path}:1: no docstring; say what the file is for"]
    for node, is_method in _public_definitions(tree):
        where = f"{path}:{node.lineno}: {node.name}"
        # `construct` and `__init__` need no sentence: the docstring of their class is theirs.
        if not ast.get_docstring(node) and not (is_method and node.name in ("construct", "__init__")):
            found.append(f"{where} has no docstring; one sentence, then shapes, dtypes and the errors raised")
        if isinstance(node, ast.ClassDef) or (is_method and node.name == "construct"):
            continue
        static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
        taken = [*node.args.posonlyargs, *node.args.args][int(is_method and not static) :]
        taken += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
        bare = [arg.arg for arg in taken if arg.annotation is None]
        if bare:
            found.append(f"{where} has no type hint for {', '.join(bare)}; add it")
        if node.returns is None and node.name != "__init__":
            found.append(f"{where} has no type hint for what it returns; add it")
    return found


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


def _module(path: str) -> str | None:
    """The part of latte that a file belongs to; None for latte/__init__.py and everything outside, which is on top."""
    parts = Path(path).with_suffix("").parts
    return parts[1] if parts[0] == "latte" and parts[1] not in ("__init__", "__main__") else None


def _imported_names(path: str, text: str) -> Iterator[tuple[int, str]]:
    """The line and full name of every import, also of those inside functions; relative ones are made absolute."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            # `from latte import video` imports latte.video; of a deeper `from`, the module is what counts.
            if base == ["latte"]:
                yield from ((node.lineno, f"latte.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, ".".join(base)


def _public_definitions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, bool]]:
    """The public functions and classes of a module, and with True the public methods of those classes."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node, False
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            is_public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
            if is_public or getattr(method, "name", "") == "__init__":
                yield method, True


CHECKS = (check_imports, check_devices, check_forbidden, check_signatures)


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
            check_imports,
            "latte/io/video.py",
            "from latte import inference",
            "video.py:1: io (layer 1) imports latte.inf",
        ),
        (check_imports, "latte/io/video.py", "def f():\n    import latte.ops.norm", "video.py:2: io (layer 1)"),
        (check_imports, "latte/models/latte.py", "from latte.data.loader import f", "its neighbour latte.data"),
        (check_imports, "latte/models/latte.py", "from ..data import clips", "its neighbour latte.data"),
        (
            check_imports,
            "latte/models/latte.py",
            "from .. import inference",
            "(layer 3) imports latte.inference (layer 5)",
        ),
        (check_imports, "latte/models/latte.py", "from latte.other import f", "latte.other has no layer"),
        (check_imports, "latte/other.py", "from latte.io.video import grid", "latte.other has no layer"),
        (check_imports, "latte/inference/pipeline.py", "import sample", "stands above it"),
        (check_imports, "latte/inference/pipeline.py", "from tools.convert import f", "stands above it"),
        (
            check_devices,
            "latte/inference/pipeline.py",
            'x = 1\nif target == "Ascend":\n    pass',
            "pipeline.py:2: names the dev",
        ),
        (check_devices, "tools/convert.py", 'x = ["CPU"]', "names the device CPU"),
        (check_devices, "sample.py", 'match t:\n    case "GPU":\n        pass', "sample.py:2: names the device GPU"),
        (check_forbidden, "train.py", "try:\n    pass\nexcept:\n    pass", "train.py:3: bare except"),
        (check_forbidden, "train.py", "import sys\nsys.path.insert(0, 'x')", "train.py:2: sys.path"),
        (check_forbidden, "train.py", "from sys import path", "train.py:1: sys.path"),
        (check_forbidden, "latte/io/video.py", "def f():\n    import torch.nn as nn", "video.py:2: imports torch.nn"),
        (check_forbidden, "latte/io/video.py", "from torch import nn", "imports torch"),
        (check_forbidden, "tests/test_a.py", "import torchvision", "imports torchvision"),
        (check_forbidden, "train.py", "eval('1')", "eval can run code"),
        (check_forbidden, "train.py", "exec('1')", "exec can run code"),
        (check_forbidden, "train.py", "import pickle\npickle.loads(b'')", "train.py:2: pickle.loads can run code"),
        (check_forbidden, "train.py", "from pickle import load", "pickle can run code"),
        (check_forbidden, "train.py", "np.load('x', allow_pickle=True)", "np.load can run code"),
        (check_forbidden, "train.py", "yaml.load('x')", "yaml.load can run code"),
        (check_signatures, "latte/a.py", "x = 1", "a.py:1: no docstring"),
        (check_signatures, "latte/a.py", '"""A."""\ndef f() -> None:\n    pass', "a.py:2: f has no docstring"),
        (check_signatures, "latte/a.py", '"""A."""\nclass F:\n    pass', "a.py:2: F has no docstring"),
        (check_signatures, "latte/a.py", '"""A."""\ndef f(x) -> None:\n    """F."""', "f has no type hint for x;"),
        (check_signatures, "latte/a.py", '"""A."""\ndef f(*, x) -> None:\n    """F."""', "f has no type hint for x;"),
        (check_signatures, "latte/a.py", '"""A."""\ndef f(**x) -> None:\n    """F."""', "f has no type hint for x;"),
        (check_signatures, "latte/a.py", '"""A."""\ndef f(x: int):\n    """F."""', "hint for what it returns"),
        (
            check_signatures,
            "latte/a.py",
            '"""A."""\nclass F:\n    """F."""\n    def __init__(self, x): pass',
            "__init__ has no type hint for x;",
        ),
    ],
)
def test_check_catches(check, path, text, said):
    problems = check(path, text)
    assert len(problems) == 1 and said in problems[0], problems


@pytest.mark.parametrize(
    "check, path, text",
    [
        (
            check_imports,
            "latte/inference/pipeline.py",
            "import latte.ops\nimport latte.components.codec",
        ),
        (check_imports, "latte/models/latte.py", "from .layers import Block\nfrom latte.models import embeddings"),
        (check_imports, "sample.py", "from latte.inference.pipeline import LattePipeline\nimport latte"),
        (check_devices, "latte/inference/pipeline.py", '"""On Ascend."""\nx = "runs on CPU"  # CPU'),
        (check_devices, "latte/ops/norm.py", 'x = "CPU"'),
        (check_forbidden, "train.py", "network.eval()\nnp.load('x', allow_pickle=False)\njson.loads('1')"),
        (check_forbidden, "tests/golden/make_fixtures.py", "import torch"),
        (check_signatures, "latte/a.py", '"""A."""\ndef _f(x): pass\nclass _G: pass'),
        (check_signatures, "latte/a.py", '"""A."""\nclass F:\n    """F."""\n    def construct(self, x): pass'),
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
