"""tools/doctor.py: what is there and what is missing, with stand-ins for other machines, and its exit codes."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden_values import ROOT

from latte.runtime import cuda, device, doctor
from latte.runtime.doctor import Finding

GOOD = Finding("Self-test", "ok", "CPU works")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine without cards, drivers and CANN, whatever this one has."""
    cuda.load.cache_clear()
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(doctor, "_exists", lambda path: False)
    monkeypatch.setattr(doctor, "_says", lambda *command, **options: None)
    monkeypatch.setattr(doctor, "_unloadable", lambda plugin: "libge_runner.so: cannot open")
    monkeypatch.setattr(cuda, "driver_problem", lambda: "NVIDIA's driver is missing (libcuda.so.1); install it")
    monkeypatch.setattr(cuda, "package_problem", lambda library: f"{library} is missing; install it")
    yield
    cuda.load.cache_clear()


def run(monkeypatch, *arguments):
    """Return the exit code of the tool."""
    monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
    try:
        runpy.run_path(str(ROOT / "tools" / "doctor.py"), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def states(findings):
    return [finding.state for finding in findings]


def test_everything_missing_has_a_remedy():
    assert set(states(doctor.ascend())) == {"missing"} and all(finding.mend for finding in doctor.ascend())
    lines = doctor.gpu()
    assert set(states(lines)) == {"missing"} and all(finding.mend for finding in lines[:-1])
    assert len([line for line in lines if "requirements-gpu.txt" in line.mend]) == 8
    asked = lines[-1].what.split(": ")[1].split(", ")
    assert asked[0] == "libcuda.so.1" and set(asked[1:]) == {Path(library).name for library in cuda.LIBRARIES}


def test_a_card_without_a_library(monkeypatch):
    monkeypatch.setattr(doctor, "_exists", lambda path: True)
    monkeypatch.setattr(doctor, "_says", lambda *command: "NVIDIA H100, 535.54")
    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "package_problem", lambda library: "x is broken; y" if "cublas" in library else None)
    card, tool, driver, *packages, plugin = doctor.gpu()
    assert {card.state, tool.state, driver.state} == {"ok"} and "535.54" in tool.what
    assert [line.state for line in packages].count("missing") == 1 and plugin.what.endswith("plugin: libcublas.so.11")


def test_a_whole_gpu(monkeypatch):
    for name in ("driver_problem", "package_problem"):
        monkeypatch.setattr(cuda, name, lambda *library: None)
    monkeypatch.setattr(device, "why_unavailable", lambda target: None)
    assert set(states(doctor.gpu()[2:])) == {"ok"}


@pytest.fixture
def whole_ascend(monkeypatch, tmp_path):
    """Return a function (version of CANN) -> findings, on a machine with everything but CANN's own packages."""
    driver, info = tmp_path / "driver.info", tmp_path / "latest" / "compiler" / "version.info"
    info.parent.mkdir(parents=True)
    driver.write_text("Version=24.1.rc3\npackage_version=24.1\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "latest"))
    monkeypatch.setattr(doctor, "DRIVER", str(driver))
    monkeypatch.setattr(doctor, "CANN_PACKAGES", {"json": "json", "xml.dom": "xml"})
    monkeypatch.setattr(doctor, "_exists", lambda path: True)
    monkeypatch.setattr(doctor, "_says", lambda *command: "npu-smi version: 24.1")
    monkeypatch.setattr(doctor, "_unloadable", lambda plugin: None)

    def findings(version):
        info.write_text(f"Name=compiler\nVersion={version}\n")
        return doctor.ascend()

    return findings


def test_a_whole_ascend(whole_ascend, tmp_path):
    lines = whole_ascend("8.2.RC1")
    assert [line.what for line in lines if line.state == "missing"] == [
        "Python package te, which comes with CANN",
        "Python package hccl, which comes with CANN",
    ]
    card, driver, tool, cann, *_, te, _hccl, _packages, _plugin = lines
    assert "davinci" in card.what and "24.1.rc3" in driver.what and "24.1" in tool.what
    assert "CANN 8.2.RC1" in cann.what and "8.2" in cann.what and te.mend == f"source {tmp_path}/set_env.sh"


def test_a_cann_that_this_mindspore_does_not_fit(whole_ascend, monkeypatch):
    cann = whole_ascend("7.0.0")[3]
    assert cann.state == "missing" and "but MindSpore" in cann.what and "CANN" in cann.mend
    monkeypatch.setattr(doctor, "_fitting_cann", list)  # a MindSpore that does not say
    assert whole_ascend("7.0.0")[3].state == "ok"


def test_python_packages_that_cann_lacks(whole_ascend, monkeypatch):
    monkeypatch.setattr(doctor, "CANN_PACKAGES", {"json": "json", "no_such_module": "no-such", "nor.this": "nor"})
    line = whole_ascend("8.2")[-2]
    assert line.what.endswith(": no-such, nor") and line.mend == doctor.INSTALL_ASCEND
    assert (ROOT / line.mend.split()[-1]).exists()


def test_the_extra_for_ascend_brings_what_doctor_asks_for():
    project = (ROOT / "pyproject.toml").read_text()
    extra = project.split("\nascend = [")[1].split("\n]")[0]
    brought = set(re.findall(r'"([a-z-]+)', extra + project.split("\ndependencies = [")[1].split("\n]")[0]))
    assert set(doctor.CANN_PACKAGES.values()) <= brought and "mindspore" not in extra


@pytest.mark.parametrize("said, state", [("bfloat16", "ok"), ("float32", "ok"), (None, "missing")])
def test_what_bf16_is_multiplied_in_is_measured(said, state, monkeypatch):
    monkeypatch.setattr(doctor, "_says", lambda *command, **options: said)
    (line,) = (line for line in doctor.cpu() if "bf16 is multiplied" in line.what or "bf16 products" in line.what)
    assert line.state == state and (said or "not measured") in line.what


def test_software_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"mindspore": "2.3.1", "numpy": "2.2.0"}.get)
    mindspore, numpy = doctor.software()[:2]
    assert mindspore.state == numpy.state == "missing" and "NumPy 1" in numpy.what and "2.10.0" in mindspore.what
    monkeypatch.setattr(doctor, "_version", {"mindspore": "2.7.1.post1", "numpy": "1.26.4"}.get)
    assert states(doctor.software()[:2]) == ["ok", "ok"]
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert states(doctor.software()[:2]) == ["missing", "missing"]


def test_mindspore_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindspore", None)
    assert "failed" in states(doctor.examine()) and {"Software", "CPU"} == {line.part for line in doctor.examine()}


def test_the_versions_are_those_of_the_requirements():
    assert f"mindspore=={doctor.MINDSPORE}\n" in (ROOT / "requirements.txt").read_text()


def test_this_machine(capfd, monkeypatch):
    """On the CPU, for real."""
    assert run(monkeypatch, "--device_target", "CPU", "--all") == 0
    out = capfd.readouterr().out
    assert out.rstrip().endswith("ok       CPU works") and "fp32: forward" in out and "fp16: forward" in out
    assert "missing  libraries of MindSpore's plugin: libcuda.so.1" in out and "fix: pip install -r" in out


def test_a_machine_without_an_accelerator_is_told_so_in_a_line_for_each(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "try_device", lambda *given: [GOOD])
    shown = {}
    for given in ((), ("--all",), ("--device_target", "GPU")):
        assert run(monkeypatch, *given) == 0
        shown[given] = capsys.readouterr().out
    parts = dict(zip(("Software", "Ascend", "GPU"), shown[()].split("\nCPU\n")[0].split("\n  none "), strict=True))
    assert "--all lists the 9 things" in parts["Ascend"] and "missing" not in parts["Ascend"] + parts["GPU"]
    assert shown[("--all",)].count("missing") > 15 and "  none  " not in shown[("--all",)]
    assert (
        "none     neither" in shown[("--device_target", "GPU")] and "libcuda.so.1" in shown[("--device_target", "GPU")]
    )


def test_what_is_there_of_an_accelerator_shows_all_that_it_lacks(monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", "/opt/cann")
    shown = doctor.shorten(doctor.ascend() + doctor.gpu())
    assert [line.part for line in shown] == ["Ascend"] * len(doctor.ascend()) + ["GPU"] and shown[-1].state == "none"


@pytest.mark.parametrize(
    "answer, said",
    [
        ('{"failed": "no such device"}', "no such device"),
        ('{"target": "GPU", "errors": {"fp32": {"forward": 0.5}}}', "GPU computes wrongly"),
        ('{"target": "GPU", "errors": {"fp32": {"forward": NaN}}}', "GPU computes wrongly"),
        ("", "ended with code -11: Segmentation fault"),
        (None, "no answer in"),
    ],
)
def test_a_device_that_fails(answer, said, monkeypatch, capsys):
    def ended(command, **options):
        if answer is None:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, -11, answer, "Segmentation fault\n")

    monkeypatch.setattr(doctor, "examine", lambda: [GOOD])
    monkeypatch.setattr(subprocess, "run", ended)
    assert run(monkeypatch) == 1 and said in capsys.readouterr().out


def test_findings_for_programs(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "try_device", lambda *given: [GOOD])
    assert run(monkeypatch, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["part"] for row in rows} == {"Software", "Ascend", "GPU", "CPU", "Self-test"}
    assert rows[-1] == {"part": "Self-test", "state": "ok", "what": "CPU works", "mend": ""}


@pytest.mark.parametrize("arguments", [("--device_target", "TPU"), ("--device_id", "-1"), ("--quick",)])
def test_bad_arguments(arguments, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
