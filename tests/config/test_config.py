"""Reading options: precedence, types, and what is said about mistakes."""

import dataclasses
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

import latte
from latte.config import (
    CacheConfig,
    DataConfig,
    ExportConfig,
    Options,
    SampleConfig,
    TrainConfig,
    VaeTrainConfig,
    option,
    parse_config,
    save_config,
)
from latte.config.parser import REQUIRED, describe_settings
from latte.config.sample import SolverName
from latte.diffusion.solvers import SOLVERS
from latte.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parse(tmp_path):
    """Parse command-line words, and a YAML text if given, as the options of sample.py."""

    def run(*words, text=None):
        if text is not None:
            (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
            words = (*words, "-c", str(tmp_path / "a.yaml"))
        return parse_config(SampleConfig, [str(word) for word in words], "Sample videos.")

    return run


def test_no_option_gives_the_defaults(parse):
    assert parse() == SampleConfig()


@pytest.mark.parametrize("before", [True, False])
def test_command_line_over_yaml_over_default(parse, tmp_path, before):
    (tmp_path / "b.yaml").write_text("seed: 1\nfps: 3")
    file, option = ["-c", tmp_path / "b.yaml"], ["--seed", 2]
    config = parse(*option, *file) if before else parse(*file, *option)
    assert (config.seed, config.fps, config.num_samples) == (2, 3, 1)


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("guidance_scale: 1e-4", "guidance_scale", 1e-4),
        ("guidance_scale: 1e3", "guidance_scale", 1000.0),
        ("guidance_scale: 4", "guidance_scale", 4.0),
        ("condition: null", "condition", None),
        ("condition:", "condition", None),
        ("device_target: CPU", "device_target", "CPU"),
        ("enable_flash_attention: True", "enable_flash_attention", True),
        ("mode: 1", "mode", 1),
        ("class_labels: [1, 2]", "class_labels", [1, 2]),
        ("output_format: [mp4, gif]", "output_format", ["mp4", "gif"]),
        ("output_format: gif", "output_format", ["gif"]),
        ("", "seed", 42),
        ("# only a comment", "seed", 42),
        ("\ufeffseed: 3", "seed", 3),
        ("output_path: 2024-01-05", "output_path", "2024-01-05"),
        ("output_path: 20240105", "output_path", "20240105"),
        ("output_path: 0123", "output_path", "0123"),
        ("negative_prompt: off", "negative_prompt", "off"),
        ("negative_prompt: 12:30", "negative_prompt", "12:30"),
        ('negative_prompt: "null"', "negative_prompt", "null"),
        ("checkpoint: ~", "checkpoint", None),
        ("prompts: [2024-01-05, yes, a dog]", "prompts", ["2024-01-05", "yes", "a dog"]),
        ("prompts: a cat, with a hat", "prompts", ["a cat, with a hat"]),
        ("class_labels: 1, 2", "class_labels", [1, 2]),
        ("seed: 010", "seed", 10),
        ("seed: 1_000", "seed", 1000),
        ("mask_feature: no", "mask_feature", False),
    ],
)
def test_yaml_value(parse, text, key, value):
    found = getattr(parse(text=text), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "words, key, value",
    [
        (["--guidance_scale", "1e-4"], "guidance_scale", 1e-4),
        (["--enable_flash_attention", "True"], "enable_flash_attention", True),
        (["--enable_flash_attention=false"], "enable_flash_attention", False),
        (["--use_parallel", "true"], "use_parallel", True),
        (["--condition", "null"], "condition", None),
        (["--checkpoint", "123"], "checkpoint", "123"),
        (["--class_labels", "[1,2]"], "class_labels", [1, 2]),
        (["--class_labels", "3"], "class_labels", [3]),
        (["--output_format", "[mp4,gif]"], "output_format", ["mp4", "gif"]),
        (["--output_format", "gif"], "output_format", ["gif"]),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_command_line_value(parse, words, key, value):
    found = getattr(parse(*words, text="condition: class"), key)
    assert found == value and type(found) is type(value)


BOMB = "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9))


@pytest.mark.parametrize(
    "text, said",
    [
        ("sampling_step: 3", "there is no option 'sampling_step'; the nearest is 'sampling_steps'"),
        ("config: b.yaml", "there is no option 'config'"),
        ("1: 2", "there is no option '1'"),
        ("seed: a", 'seed is "a", but must be a whole number'),
        ("seed: true", "seed is true, but must be a whole number"),
        ("seed: 1.5", "seed is 1.5, but must be a whole number"),
        ("seed: null", "seed is null, but must be a whole number"),
        ("mode: true", "mode is true, but must be one of 0, 1"),
        ("eta: [0.1]", "eta is [0.1], but must be a number"),
        ("use_parallel: 1", "use_parallel is 1, but must be true or false"),
        ("checkpoint: [a]", 'checkpoint is ["a"], but must be text or null'),
        ("output_path: null", "a.yaml, line 1: output_path is null, but must be text"),
        ("seed: 1:30", 'seed is "1:30", but must be a whole number'),
        ("seed: " + "9" * 5000, "999..., but must be a whole number"),
        ("eta: 1e999", "but must be a finite number"),
        ("sd_scale_factor: -.inf", "sd_scale_factor is -.inf, but must be a finite number"),
        ("fps: 3\n\nseed: a", "a.yaml, line 3: seed is"),
        ("seed: 1\nfps: 3\nseed: 2", "line 3 is not valid YAML: 'seed' stands there twice, the first time in line 1"),
        ("class_labels: &a [*a]", "line 1 is not valid YAML: *a stands for nothing that ends before it"),
        ("class_labels: " + "[" * 20000, "line 1 is not valid YAML: lists are nested more than 8 deep"),
        ("{a: " * 5000, "line 1 is not valid YAML: lists are nested more than 8 deep"),
        ("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + BOMB, "more than 10,000 values"),
        ("seed: 1\n---\nseed: 2", "line 2 is not valid YAML: a second document begins"),
        ("seed: !!python/name:os.system", "the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed"),
        ("? [seed]\n: 1", "a name must be text"),
        ("seed: 1 # \x07", "is not valid YAML: "),
        ("device_target: xpu", 'device_target is "xpu", but must be one of Ascend, GPU, CPU or null'),
        ("output_format: [mp4, avi]", "but must be a list such as [mp4, gif, png]"),
        ("sampling_steps: 0", "sampling_steps is 0, but must be from 1 to 1000"),
        ("guidance_scale: .nan", "but must be a finite number"),
        ("[1, 2]", "must hold lines of the form `name: value`"),
        ("seed: [", "line 1 is not valid YAML"),
        ("prompts: [draft] a cat", "put a text with such characters in quotation marks"),
        ("prompts: Paris: a film", "put a text with such characters in quotation marks"),
        ("prompts: @file", "put a text with such characters in quotation marks"),
        ("prompts: [null]", 'prompts is [null], but must be a list such as ["a", "b"] or null'),
        ("\tseed: 1", "line 1 is not valid YAML"),
    ],
)
def test_mistake_in_yaml_names_the_file(parse, text, said):
    with pytest.raises(UserError) as error:
        parse(text=text)
    assert said in str(error.value) and "a.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sead", "3"], "command line: there is no option 'sead'; the nearest is 'seed'"),
        (["--sampling_step=3"], "the nearest is 'sampling_steps'"),  # an abbreviation is not an option
        (["--seed", "a"], 'command line: seed is "a", but must be a whole number'),
        (["--seed", "null"], "seed is null, but must be a whole number"),
        (["--seed"], "--seed: expected one argument"),
        (["--prompts", "-blur"], "expected at least one argument; a value that begins with - is written --name=VALUE"),
        (["-c", "a" * 5000], "there is no such file, and the nearest that is shipped is"),
        (["-c", "dmeo"], "there is no such file, and the nearest that is shipped is 'demo'"),
        (["-c", "configs/inference/t2v"], "the nearest that is shipped is 't2v'"),
        (["--seed", "1", "2"], "'2' is no option; write --name value"),
        (["--dtype", "fp8"], 'dtype is "fp8", but must be one of fp32, fp16, bf16'),
        (["--fps", "0"], "command line: fps is 0, but must be from 1 to 100"),
        (["-c", "nowhere.yaml"], "cannot read the config file nowhere.yaml"),
        (["-c", "."], "cannot read the config file ."),
        (["-c", "/dev/zero"], "cannot read the config file /dev/zero: it is a folder, a pipe or a device"),
        (["--seed", "3 # comment"], 'seed is "3 # comment", but must be a whole number'),
        (["--seed", "9" * 5000], "..., but must be a whole number"),
    ],
)
def test_mistake_on_command_line(parse, words, said):
    with pytest.raises(UserError) as error:
        parse(*words)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling_steps": 1001},
        {"eta": 1.5, "ddim_sampling": True},
        {"eta": float("nan"), "ddim_sampling": True},
        {"eta": 0.5},  # DDPM has no eta
        {"eta": 0.5, "sampler": "unipc"},
        {"sampler": "euler", "ddim_sampling": True},
        {"guidance_scale": float("inf")},
        {"image_size": 100},
        {"image_size": 0},
        {"num_frames": 0},
        {"num_classes": 0},
        {"hidden_size": 10, "num_heads": 4},
        {"seed": -1},
        {"num_samples": 0},
        {"batch_size": 0},
        {"class_labels": []},
        {"class_labels": [-1]},
        {"vae_slice": -1},
        {"sd_scale_factor": 0.0},
        {"device_id": -1},
        {"fps": 101},
        {"output_format": []},
        {"output_format": ["gif", "gif"]},
    ],
)
def test_value_out_of_range(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is "):
        SampleConfig(**options)


@pytest.mark.parametrize(
    "options, solver",
    [
        ({}, "ddpm"),
        ({"ddim_sampling": True, "eta": 0.5}, "ddim"),
        ({"ddim_sampling": True, "sampler": "ddim"}, "ddim"),
        ({"sampler": "ddim", "eta": 0.5}, "ddim"),
        ({"sampler": "dpmpp_2m"}, "dpmpp_2m"),
    ],
)
def test_two_options_name_the_solver(options, solver):
    assert SampleConfig(**options).solver == solver


def test_the_samplers_are_the_solvers_there_are():
    assert typing.get_args(SolverName) == tuple(SOLVERS)


def test_saved_config_reads_back(parse, tmp_path):
    config = SampleConfig(guidance_scale=1e-5, class_labels=[1], output_format=["png"], checkpoint="a: b")
    save_config(config, tmp_path / "new" / "config.yaml")
    assert parse("-c", tmp_path / "new" / "config.yaml") == config
    assert set(yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())) == set(dataclasses.asdict(config))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_help_shows_every_option_with_its_text_and_default(parse, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(SampleConfig):
        assert f"--{field.name} " in text
    assert "denoising steps, 1 to 1000; null = 250, 50 for text to video" in " ".join(text.split())
    assert text.index("Device:") < text.index("Model;") < text.index("Sampling:") < text.index("Output:")


@pytest.mark.parametrize("cls", [SampleConfig, TrainConfig])
def test_no_heading_of_help_is_there_twice(cls, capsys):
    with pytest.raises(SystemExit):
        parse_config(cls, ["--help"])
    titles = [line for line in capsys.readouterr().out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(titles) > 8 and len(set(titles)) == len(titles)


def test_the_config_of_the_other_program_is_told_apart(tmp_path):
    with pytest.raises(UserError, match="'data_folder', which is one of train.py; the nearest is"):
        parse_config(SampleConfig, ["--data_folder", "clips"])
    with pytest.raises(UserError, match="line [0-9]+: there is no option 'checkpoint', which is one of sample.py;"):
        parse_config(TrainConfig, ["-c", str(ROOT / "configs" / "inference" / "sky.yaml")])
    save_config(TrainConfig(), tmp_path / "config.yaml")
    said = f"which is one of train.py; .*; to sample from a run name its folder: --checkpoint {tmp_path}$"
    for is_run in (False, True):
        with pytest.raises(UserError) as error:
            parse_config(SampleConfig, ["-c", str(tmp_path / "config.yaml")])
        assert bool(re.search(said, str(error.value))) == is_run
        (tmp_path / "ckpt").mkdir(exist_ok=True)


def test_program_exits_with_2_and_one_sentence():
    program = """
import sys
import typing
from latte.config import SampleConfig, parse_config
from latte.errors import run_main
run_main(lambda: parse_config(SampleConfig, ["--sead", "3"], ""))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: there is no option 'sead'") and done.stderr.count("\n") == 1


def test_reading_options_does_not_import_mindspore():
    program = "import latte.config, sys; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def options_of(path):
    """Return the class of options of a file of configs/."""
    kinds = {"inference": SampleConfig, "training": TrainConfig, "ablation": TrainConfig, "data": DataConfig}
    return kinds[path.parent.name]


def of_defaults_and_includes(path):
    """Return the values that the options would have if the file itself were empty."""
    values = dataclasses.asdict(options_of(path)())
    for name in yaml.safe_load(path.read_text(encoding="utf-8")).get("include", []):
        values |= dataclasses.asdict(parse_config(options_of(path), ["-c", str(path.parent / name)]))
    return values


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_names_only_what_differs(path):
    config, without = parse_config(options_of(path), ["-c", str(path)]), of_defaults_and_includes(path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [key for key in given if key != "include" and getattr(config, key) == without[key]] == []


@pytest.mark.parametrize("cls", [SampleConfig, TrainConfig, CacheConfig, ExportConfig, DataConfig, VaeTrainConfig])
def test_every_option_has_a_text(cls):
    for field in dataclasses.fields(cls):
        text = field.metadata.get("help", "")
        assert len(text) > 5 and text[-1] not in ".;," and "\n" not in text, f"{field.name}: {text!r}"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"seed: 1\nfps: \xff", "line 2 is not UTF-8; save the file as UTF-8"),
        ("seed: 1".encode("utf-16"), "line 1 is not UTF-8"),
        (b"#" * (1 << 20) + b"#", "is larger than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_text_of_options(tmp_path, content, said):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        parse_config(SampleConfig, ["-c", str(tmp_path / "a.yaml")])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="a pipe or a device; name a file"):
        parse_config(SampleConfig, ["-c", str(tmp_path / "a.yaml")])


@pytest.fixture
def files(tmp_path):
    """Write YAML files, by name and text, and return their folder."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_command_line_over_yaml_over_its_includes_over_its_data(files):
    folder = files(
        a="include: [b.yaml, sub/c.yaml]\ndata_config: sub/data.yaml\nseed: 1",
        b="seed: 2\nepochs: 2\nmax_steps: 2\nnum_workers: 2",
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "c.yaml").write_text("epochs: 3\ndata_config: nowhere.yaml")
    (folder / "sub" / "data.yaml").write_text("seed: 4\nepochs: 4\nnum_workers: 4\nsample_stride: 4\nrandom_flip: true")
    config = parse_config(TrainConfig, ["-c", str(folder / "a.yaml"), "--sample_stride", "5"])
    found = (config.seed, config.epochs, config.max_steps, config.num_workers, config.sample_stride, config.random_flip)
    assert found == (1, 3, 2, 2, 5, True)


def test_an_included_file_finds_its_own_data(files):
    folder = files(a="include: [sub/b.yaml]")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.yaml").write_text("data_config: data.yaml")
    (folder / "sub" / "data.yaml").write_text("include: [more.yaml]\nsample_stride: 4")
    (folder / "sub" / "more.yaml").write_text("sample_stride: 3\nnum_workers: 7")
    config = parse_config(TrainConfig, ["-c", str(folder / "a.yaml")])
    assert (config.sample_stride, config.num_workers) == (4, 7)


@pytest.mark.parametrize(
    "texts, said",
    [
        ({"a": "include: [b.yaml]", "b": "include: [a.yaml]"}, "which includes it in turn"),
        ({"a": "include: [a.yaml]"}, "which includes it in turn"),
        ({"a": "include: {b: 3}"}, "a.yaml, line 1: include is {b: 3}, but must be a list such as"),
        ({"a": "include: [c.yaml]"}, "cannot read the config file"),
        ({"a": "include: b.yaml", "b": "epochs: 0"}, "b.yaml, line 1: epochs is 0, but must be at least 1"),
        (
            {"a": "include: b.yaml", "b": "epoch: 0"},
            "b.yaml, line 1: there is no option 'epoch'; the nearest is 'epochs'",
        ),
        (
            {"a": "data_config: b.yaml", "b": "num_workers: 0"},
            "b.yaml, line 1: num_workers is 0, but must be at least 1",
        ),
    ],
)
def test_mistake_in_an_included_file(files, texts, said):
    folder = files(**texts)
    with pytest.raises(UserError) as error:
        parse_config(TrainConfig, ["-c", str(folder / "a.yaml")])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_default_that_is_not_allowed_is_in_no_file():
    with pytest.raises(UserError, match=r"^cache_folder is null, but must be the folder to write to"):
        parse_config(CacheConfig, ["-c", str(ROOT / "configs" / "training" / "sky_video.yaml")])


@pytest.mark.parametrize(
    "words, key, value",
    [
        (["--class_labels", "3", "14"], "class_labels", [3, 14]),
        (["--class_labels", "[3,14]"], "class_labels", [3, 14]),
        (["--class_labels=[3,14]"], "class_labels", [3, 14]),
        (["--prompts", "a dog: running", "[a cat"], "prompts", ["a dog: running", "[a cat"]),
        (["--prompts", "[a dog, a cat]"], "prompts", ["a dog", "a cat"]),
        (["--prompts", "[1, 2]"], "prompts", ["[1, 2]"]),
        (["--prompts", "12"], "prompts", ["12"]),
        (["--prompts", "null"], "prompts", ["null"]),
        (["--prompts", "# sunset over the sea"], "prompts", ["# sunset over the sea"]),
        (["--prompts", "&amp"], "prompts", ["&amp"]),
        (["--prompts", "- a dog"], "prompts", ["- a dog"]),
        (["--prompts", "a cat, with a hat"], "prompts", ["a cat, with a hat"]),
        (["--prompts", '"quoted"'], "prompts", ['"quoted"']),
        (["--prompts", '["a cat, with a hat", a dog]'], "prompts", ["a cat, with a hat", "a dog"]),
        (["--prompts", "[a # b", "2024-01-05"], "prompts", ["[a # b", "2024-01-05"]),
        (["--checkpoint", "a #b"], "checkpoint", "a #b"),
        (["--class_labels", "3,14,15"], "class_labels", [3, 14, 15]),
        (["--class_labels", "3,", "14"], "class_labels", [3, 14]),
        (["--class_labels", "null"], "class_labels", None),
        (["--output_format", "mp4,gif"], "output_format", ["mp4", "gif"]),
        (["--guidance_scale", "-1"], "guidance_scale", -1.0),
        (["--negative_prompt", "null"], "negative_prompt", "null"),
        (["--jit_level", "O1"], "jit_level", "O1"),
        (["--mode", "1"], "mode", 1),
    ],
)
def test_words_of_the_command_line(words, key, value):
    found = getattr(parse_config(SampleConfig, words), key)
    assert found == value and type(found) is type(value)


@dataclasses.dataclass(kw_only=True)
class Needed(Options):
    """Group"""

    source: str = option(REQUIRED, "file to read, 100 % of it")


def test_a_required_option_is_asked_for_and_shown(capsys):
    with pytest.raises(UserError, match=r"^--source is not given; it is the file to read"):
        parse_config(Needed, [])
    assert parse_config(Needed, ["--source", "a"]).source == "a"
    with pytest.raises(SystemExit):
        parse_config(Needed, ["--help"])
    text = capsys.readouterr().out
    assert "--source TEXT [-c CONFIG]" in text and "file to read, 100 % of it (required)" in text


def test_help_keeps_paragraphs_and_command_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["tools/some.py"])
    command = "    python tools/some.py --source " + "x" * 60
    with pytest.raises(SystemExit) as stop:
        parse_config(Needed, ["--help"], f"One line.\n\n{command}\n{command}\n\nMore words{' and more' * 20}.\n")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: python tools/some.py --source TEXT [-c CONFIG]")
    assert f"\n\nOne line.\n\n{command}\n{command}\n\nMore words and" in text
    assert all(len(line) <= 60 for line in text.splitlines() if line not in (command, text.splitlines()[0]))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(SampleConfig, ["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"latte {latte.__version__}, MindSpore ")


def test_a_flag_alone_is_true():
    assert parse_config(SampleConfig, ["--dry_run", "--seed", "1"]).dry_run is True
    assert parse_config(SampleConfig, ["--seed", "1", "--use_parallel"]).use_parallel is True
    assert parse_config(SampleConfig, ["--dry_run", "False"]).dry_run is False
    with pytest.raises(UserError, match="seed"):
        parse_config(SampleConfig, ["--seed", "--dry_run"])


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "the defaults"),
        (["-c", "demo"], "demo.yaml"),
        (["-c", "demo", "--sampling_steps", "20"], "demo.yaml"),
        (
            ["-c", "demo", "--sampling_steps", "4", "--prompts", "a cat", "--verbose"],
            'demo.yaml; but sampling_steps 4 (20), prompts ["a cat"]',
        ),
        (["--seed", "7"], "the defaults; but seed 7 (42)"),
    ],
)
def test_settings_are_told_by_what_differs(words, said):
    assert describe_settings(parse_config(SampleConfig, words)) == said


def test_files_that_are_included_are_told_too():
    words = ["-c", "demo_fine_video", "--max_steps", "3"]
    said = describe_settings(parse_config(TrainConfig, words))
    assert said.startswith("demo_fine_video.yaml, demo_video.yaml") and said.endswith("; but max_steps 3 (5000)")


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "use_recompute is false, but must be true with zero_stage 3"),
        ({"use_recompute": True, "recompute_every": 2}, "recompute_every is 2, but must be 1 with zero_stage 3"),
        ({"use_recompute": True, "variant": 3}, "zero_stage is 3, but must be 0, 1 or 2 for variants 3 and 4"),
    ],
)
def test_blocks_that_gather_their_weights_are_recomputed(given, said):
    with pytest.raises(UserError, match=said):
        TrainConfig(zero_stage=3, **given)
