"""The commands in the blocks of shell code of README.md, docs/ and the model card, and what starts each one."""

import re
import shlex
from pathlib import Path

from support.golden_values import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models/demo/README.md"]
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
STAND_INS = {
    "[options": "",
    "of": "",
    "train.py]": "",
    "$@": "",
    "${own[@]}": "",
    "$vae_steps": "100",
    "$size": "512",
    "sample.py]": "",
}  # what readers put their own words in place of
LAUNCHERS = {"scripts/run_mpirun.sh": 2, "scripts/run_msrun.sh": 2, "scripts/run_distributed.sh": 4}  # own words first
OTHERS = {  # programs of others, and scripts that take no options; what follows the name is not looked at
    "source",
    "git",
    "pip",
    "pytest",
    "hf",
    "tensorboard",
    "export",
    "cd",
    "examples/own_clips.sh",
    "examples/own_clips_cpu.sh",
    "scripts/quickstart.sh",
    "scripts/test.sh",
    "scripts/run_distributed_sky_numpy_video.sh",
    "tests/golden/make_estimate_tables.py",
}


def commands():
    """Return (page, command line) of every command in the blocks of shell code, and in the examples."""
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    for script in sorted((ROOT / "examples").glob("*.sh")):
        lines = script.read_text(encoding="utf-8").splitlines()
        found += [(script.name, line.strip()) for line in lines if line.strip().startswith("latte ")]
    return found


def program(line):
    """Return the program that a command line starts, and its arguments; None if it is not one of ours.

    Launchers and variables before it are left out.
    """
    words = [word for part in shlex.split(line, comments=True) if (word := STAND_INS.get(part, part))]
    if "&&" in words:
        words = words[: words.index("&&")]
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    if words[0] == "mpirun":
        words = words[words.index("python") :]
    if words[0] in ("sbatch", "srun"):
        words = words[next(k for k, word in enumerate(words) if word == "python" or word.endswith(".slurm")) :]
    name, *rest = words
    if name.endswith(".slurm"):
        assert (ROOT / name).is_file(), f"there is no {name}"
        return f"{Path(name).stem}.py", ["-c", *rest]
    if name in ("python", "bash"):
        name, *rest = rest
    if name == "-m":
        name, *rest = rest
    if name == "tests/ascend/standin.py":  # starts another program
        rest = rest[rest.index("python") + 1 :] if "python" in rest else []
        return (rest[0], rest[1:]) if rest else None
    if name in LAUNCHERS:
        assert (ROOT / name).is_file(), f"there is no {name}"
        return "train.py", ["-c", rest[0], *rest[LAUNCHERS[name] :]]
    if name in OTHERS or name == "venv":
        assert "/" not in name or (ROOT / name).is_file(), f"there is no {name}"
        return None
    return name, rest
