"""Folders as diffusers and transformers write them: which files are the weights, in every layout that they have."""

import json
import os

import numpy as np
import pytest

from latte.errors import UserError
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.shards import files_of


def write(folder, *names, value=0.0):
    """Write files of one tensor each, called after the file; an index gets the shards that go with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_state_dict(folder / name, {f"w.{name}": np.full(3, value, np.float32)}, {})


def write_index(folder, name, *files):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {f"w.{file}": file for file in files}}))


def shards(stem, count=2, form="safetensors"):
    return [stem.format(f"-{i + 1:05d}-of-{count:05d}") + f".{form}" for i in range(count)]


NEW, OLD, WHOLE = shards("model.fp16{}"), shards("model{}.fp16"), shards("model{}")
DIFFUSERS = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "files, taken",
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "model.fp16.safetensors"], ["pytorch_model.bin"]),  # full precision goes first
        (["pytorch_model.fp16.bin", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin"], ["pytorch_model.bin"]),
        (["model.fp16.safetensors", "optimizer.bin"], ["model.fp16.safetensors"]),
        ([f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.non_ema.safetensors"], [f"{DIFFUSERS}.safetensors"]),
        (["model.ema.safetensors", "model.non_ema.safetensors"], ["model.ema.safetensors"]),
        ([f"{DIFFUSERS}.non_ema.bin"], [f"{DIFFUSERS}.non_ema.bin"]),
        (["model.fp32.safetensors", "model.fp16.safetensors"], ["model.fp32.safetensors"]),
        (["._model.safetensors", "model.safetensors"], ["model.safetensors"]),  # what a Mac leaves
        (WHOLE, WHOLE),  # the index was not downloaded
        (NEW, NEW),
        (OLD, OLD),
        ([*NEW, "model.safetensors"], ["model.safetensors"]),
        ([*NEW, *WHOLE], WHOLE),
        (["sky.pt"], ["sky.pt"]),
    ],
    ids=lambda files: " ".join(files)[:60],
)
def test_the_files_of_a_folder_in_full_precision_or_else_what_is_there(tmp_path, files, taken):
    write(tmp_path, *files)
    assert [file.name for file in files_of(tmp_path)] == sorted(taken)


@pytest.mark.parametrize("stem", ["model", DIFFUSERS])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("pattern", ["{0}.{1}{{}}", "{0}{{}}.{1}"], ids=["new names", "old names"])
def test_shards_of_a_variant_are_read_and_those_of_full_precision_before_them(tmp_path, stem, form, variant, pattern):
    parts = shards(pattern.format(stem, variant), 3, form)
    write(tmp_path, *parts, "training_args.bin")
    write_index(tmp_path, f"{stem}.{form}.index.{variant}.json", *parts)
    assert set(read_state_dict(tmp_path).tensors) == {f"w.{part}" for part in parts}
    assert set(read_state_dict(tmp_path / f"{stem}.{form}.index.{variant}.json").tensors) == {f"w.{p}" for p in parts}
    full = shards(f"{stem}{{}}", 2, form)
    write(tmp_path, *full)
    write_index(tmp_path, f"{stem}.{form}.index.json", *full)
    assert set(read_state_dict(tmp_path).tensors) == {f"w.{part}" for part in full}


def test_parts_that_are_missing_without_an_index_are_said(tmp_path):
    write(tmp_path, NEW[1])
    with pytest.raises(UserError, match=r"holds 1 parts of model.fp16-00002-of-00002.safetensors, not all 2"):
        read_state_dict(tmp_path)


def test_several_variants_without_full_precision_are_named(tmp_path):
    write(tmp_path, "model.fp16.safetensors", "model.bf16.safetensors")
    with pytest.raises(
        UserError, match=r"holds its weights as bf16 and fp16 and not in full precision; .*name its file"
    ):
        read_state_dict(tmp_path)
    write_index(tmp_path, "x.safetensors.index.fp16.json")
    write(tmp_path, "model.safetensors")
    assert files_of(tmp_path) == [tmp_path / "model.safetensors"]
    write_index(tmp_path, "x.safetensors.index.json")
    with pytest.raises(UserError, match=r"name one: model.safetensors, x.safetensors.index.json"):
        read_state_dict(tmp_path)
    write(tmp_path / "other", "a.fp16.safetensors", "b.fp16.safetensors")
    with pytest.raises(UserError, match=r"several files of weights; name one: a.fp16.safetensors, b.fp16.safetensors"):
        read_state_dict(tmp_path / "other")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/model.safetensors", "..", ".", "", "a\\b.bin", "a\0.bin", "config.json", 3],
    ids=repr,
)
def test_an_index_names_files_of_its_folder_only(tmp_path, name):
    write(tmp_path / "in", "model.safetensors")
    write(tmp_path, "x.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"which is no file of weights in its folder|is not the index") as error:
        read_state_dict(tmp_path / "in")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"weight_map": {}}', "is not the index of a set of weight files"),
        ('{"weight_map": ["model.safetensors"]}', "is not the index"),
        ("{}", "is not the index"),
        ("[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"a": "x.bin", "a": "y.bin"}}', "is there twice"),
        ('{"weight_map": {"a": "x.bin", "b": "y.bin", "c": "here.bin"}}', r"2 of 3 .* are missing: x.bin, y.bin; "),
        (json.dumps({"weight_map": {"a": "x" * 300 + ".bin"}}), "1 of 1 files that are missing"),
    ],
)
def test_a_damaged_index_is_one_sentence(tmp_path, content, said):
    write(tmp_path, "here.bin")
    (tmp_path / "model.bin.index.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_state_dict(tmp_path)
    assert len(str(error.value)) < 400


def test_a_weight_in_two_parts_is_refused(tmp_path):
    write(tmp_path, *WHOLE)
    write_state_dict(tmp_path / WHOLE[1], {f"w.{WHOLE[0]}": np.zeros(3)}, {})
    with pytest.raises(UserError, match=r"holds w.model-00001-of-00002.safetensors, as another part does"):
        read_state_dict(tmp_path)


def test_weights_in_the_cache_of_a_hub_are_links(tmp_path):
    """As huggingface_hub keeps them: the names of a snapshot are links to blobs that are called after their hash."""
    write(tmp_path / "blobs", *WHOLE)
    there = tmp_path / "snapshots" / "0123"
    there.mkdir(parents=True)
    for i, name in enumerate(WHOLE):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / (f"{i}" * 8))
        (there / name).symlink_to("../../blobs/" + f"{i}" * 8)
    write_index(there, "model.safetensors.index.json", *WHOLE)
    assert set(read_state_dict(there).tensors) == {f"w.{name}" for name in WHOLE}
    (tmp_path / "blobs" / "00000000").unlink()  # a download that was interrupted
    with pytest.raises(UserError, match=r"1 of 2 files that are missing: model-00001-of-00002.safetensors"):
        read_state_dict(there)


def test_the_configuration_beside_weights_must_be_a_file_of_json(tmp_path):
    write(tmp_path, "model.safetensors", "x.bin")
    for place, weights in (("config.json", "."), ("config.json", "model.safetensors"), ("x.json", "x.bin")):
        beside = tmp_path / place
        for make, said in (
            (lambda file: os.mkfifo(file), "a pipe, a socket or a device"),
            (lambda file: file.symlink_to("/dev/zero"), "a pipe, a socket or a device"),
            (lambda file: file.write_text("[1]"), "no JSON object but a list"),
            (lambda file: file.write_text(" " * 2**21), "larger than 1 MiB"),
        ):
            make(beside)
            with pytest.raises(UserError, match=rf"{place} .*{said}.*; download it again, or move it away"):
                read_state_dict(tmp_path / weights)
            beside.unlink()
        beside.write_text('{"depth": 1}')
        assert read_state_dict(tmp_path / weights).metadata["config"] == '{"depth": 1}'
        beside.unlink()
