"""tools/t2v_converter.py: folders there and back bit by bit; one sentence, exit code 2 and no trace for bad input."""

import json
import os
import re
import shutil
import sys

import mindspore as ms
import numpy as np
import pytest
from support.weights import FIXTURES, same

from latte.commands.convert import main_folder
from latte.components import convert as conversion
from latte.components.loading import check
from latte.components.text_encoder import load_t5, load_tokenizer
from latte.errors import run_main
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.torch_file import read_torch_file

FOLDER = FIXTURES / "latte_t2v"
WEIGHTS = ("transformer", "vae", "vae_temporal_decoder", "text_encoder")


@pytest.fixture
def convert(monkeypatch):
    def run(source, target, *argv):
        monkeypatch.setattr(
            sys, "argv", ["t2v_converter.py", "--source", str(source), "--target", str(target), *map(str, argv)]
        )
        run_main(main_folder)

    return run


@pytest.fixture
def source(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "source")


def listing(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def weights(folder, name):
    return read_state_dict(folder / name).tensors


def in_shards(folder, name, form="safetensors"):
    """Put the weights of a component into two shards with an index, every other tensor in either."""
    (file,) = (folder / name).glob("*.safetensors")
    tensors = read_state_dict(file).tensors
    tensors = {key: values.copy() for key, values in tensors.items()}
    file.unlink()
    stem, keys, places = file.stem, list(tensors), {}
    for i in range(2):
        shard = file.with_name(f"{stem}-0000{i + 1}-of-00002.{form}")
        write_state_dict(shard, {key: tensors[key] for key in keys[i::2]}, {})
        places |= dict.fromkeys(keys[i::2], shard.name)
    index = {"metadata": {}, "weight_map": places}
    file.with_name(f"{stem}.{form}.index.json").write_text(json.dumps(index))
    return [file.with_name(name) for name in sorted(set(places.values()))]


def test_there_and_back(tmp_path, convert, capsys):
    chain = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    chain[0].mkdir()  # an empty folder is as good as none
    for old, new, form in zip([FOLDER, *chain], chain, ("ckpt", "bin", "safetensors"), strict=False):
        convert(old, new, "--format", form)
        for name in WEIGHTS:
            same(weights(new, name), weights(FOLDER, name))
    assert listing(chain[2]) == listing(FOLDER)
    for file in FOLDER.rglob("*.*"):
        assert file.suffix == ".safetensors" or file.read_bytes() == (chain[2] / file.relative_to(FOLDER)).read_bytes()
    assert (chain[1] / "text_encoder" / "pytorch_model.bin").is_file()  # where transformers looks for it
    said = capsys.readouterr().out
    assert "transformer: 83 tensors, 288,864 elements, float32, 1.2 MB" in said
    assert f"{FOLDER} -> {chain[0]}: 6 components as ckpt, 5.2 MB" in said
    assert not list(tmp_path.glob(".*"))
    assert {path.stat().st_mode & 0o777 for path in (chain[0], chain[0] / "vae")} == {tmp_path_mode(tmp_path)}


def tmp_path_mode(tmp_path):
    (tmp_path / "made").mkdir()
    return (tmp_path / "made").stat().st_mode & 0o777


def test_a_converted_folder_is_loaded(tmp_path, convert):
    convert(FOLDER, tmp_path / "x")
    assert check(tmp_path / "x" / "transformer") == check(FOLDER / "transformer")
    for name in ("vae", "vae_temporal_decoder"):
        assert check(tmp_path / "x" / name) == check(FOLDER / name)
    nets = [load_t5(folder / "text_encoder") for folder in (FOLDER, tmp_path / "x")]
    for left, right in zip(*(net.get_parameters() for net in nets), strict=True):
        assert left.name == right.name and np.array_equal(left.asnumpy(), right.asnumpy())
    load_tokenizer(tmp_path / "x" / "tokenizer")
    loaded = ms.load_checkpoint(str(tmp_path / "x" / "transformer" / "diffusion_pytorch_model.ckpt"))
    assert list(loaded) == list(weights(FOLDER, "transformer"))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards(source, tmp_path, convert, form):
    for name in WEIGHTS:
        in_shards(source, name, form)
    convert(source, tmp_path / "x", "--format", "safetensors")
    assert listing(tmp_path / "x") == listing(FOLDER)
    for name in WEIGHTS:
        found, expected = weights(tmp_path / "x", name), weights(FOLDER, name)
        assert list(found) == [*list(expected)[::2], *list(expected)[1::2]]
        same({key: found[key] for key in expected}, expected)


def test_what_is_not_used_is_left_out(source, tmp_path, convert):
    """The null text of older transformers, and the decoder of a whole T5."""
    extra = {
        "transformer": {"caption_projection.y_embedding": np.zeros((120, 32), np.float32)},
        "text_encoder": {"lm_head.weight": np.ones((256, 32), np.float32)},
    }
    for name, more in extra.items():
        (file,) = (source / name).glob("*.safetensors")
        tensors = {key: values.copy() for key, values in read_state_dict(file).tensors.items()}
        write_state_dict(file, more | tensors, {})
    convert(source, tmp_path / "x")
    for name in extra:
        same(weights(tmp_path / "x", name), weights(FOLDER, name))


def test_half_precision_and_torchs_order_are_kept(source, tmp_path, convert):
    (file,) = (source / "text_encoder").glob("*.safetensors")
    halves = {key: values.astype(np.float16) for key, values in reversed(weights(FOLDER, "text_encoder").items())}
    write_state_dict(file, halves, {})
    convert(source, tmp_path / "x", "--format", "bin", "--components", "text_encoder")
    same(read_torch_file(tmp_path / "x" / "text_encoder" / "pytorch_model.bin"), halves)


def test_components(source, tmp_path, convert, capsys):
    shutil.rmtree(source / "text_encoder")
    with pytest.raises(SystemExit):
        convert(source, tmp_path / "x")
    said = capsys.readouterr().err
    assert f"{source} has no folder text_encoder" in said
    assert "--components transformer,vae,vae_temporal_decoder,tokenizer,scheduler" in said
    convert(source, tmp_path / "x", "--components", "transformer, vae")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["model_index.json", "transformer", "vae"]


def test_dry_run(tmp_path, convert, capsys):
    convert(FOLDER, tmp_path / "new" / "x", "--dry_run", "--quantize", "int8")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 7 and said[-1].endswith("6 components as ckpt, 4.5 MB, not written")
    assert said[0] == "transformer: 115 tensors, 291,680 elements, float32, int8, 0.5 MB"
    assert not any(tmp_path.iterdir())


def write(file, data):
    file.write_bytes(data)


def wrong_shape(source):
    shard = in_shards(source, "text_encoder")[1]
    tensors = {key: values.copy() for key, values in read_state_dict(shard).tensors.items()}
    key = next(key for key in tensors if key.endswith(("wi_0.weight", "k.weight")))
    write_state_dict(shard, tensors | {key: tensors[key][:-1]}, {})


def config_of(source, name, **changes):
    file = source / name / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BAD = {  # what is done to the folder, what the sentence must say
    "no index": (lambda s: (s / "model_index.json").unlink(), "is no folder with a model_index.json"),
    "index is text": (lambda s: write(s / "model_index.json", b"hello"), "model_index.json is not valid JSON"),
    "index is a list": (
        lambda s: write(s / "model_index.json", b"[]"),
        "model_index.json holds no JSON object but a list",
    ),
    "missing shard": (
        lambda s: in_shards(s, "vae")[1].unlink(),
        "are missing: diffusion_pytorch_model-00002-of-00002.safetensors",
    ),
    "wrong shape": (wrong_shape, "does not fit the network: 1 mis-shaped (encoder.block."),
    "cut shard": (lambda s: os.truncate(in_shards(s, "transformer")[0], 50_000), "is a safetensors file that is cut"),
    "cut bin": (lambda s: os.truncate(in_shards(s, "text_encoder", "bin")[1], 9_000), "zip file that is cut off"),
    "pointer": (
        lambda s: write(in_shards(s, "vae")[0], b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "is a Git LFS pointer",
    ),
    "empty shard": (lambda s: in_shards(s, "vae")[0].write_bytes(b""), "is empty"),
    "no weights": (lambda s: next((s / "vae").glob("*.safetensors")).unlink(), "is a folder without .safetensors"),
    "no config": (lambda s: (s / "vae" / "config.json").unlink(), "has no config.json"),
    "config of another size": (lambda s: config_of(s, "transformer", num_layers=3), "does not fit the network"),
    "another network's config": (
        lambda s: config_of(s, "transformer", _class_name="Transformer2DModel"),
        "describes a Transformer2DModel",
    ),
    "components swapped": (
        lambda s: shutil.copy(next((s / "vae").glob("*.safe*")), next((s / "transformer").glob("*.safe*"))),
        "holds an autoencoder, not the transformer",
    ),
    "no tokenizer": (lambda s: shutil.rmtree(s / "tokenizer"), "has no folder tokenizer"),
    "tokenizer without words": (
        lambda s: [(s / "tokenizer" / name).unlink() for name in ("tokenizer.json", "spiece.model")],
        "holds no tokenizer.json or spiece.model",
    ),
    "no scheduler's file": (lambda s: (s / "scheduler" / "scheduler_config.json").unlink(), "no scheduler_config.json"),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_folders(source, tmp_path, convert, capsys, how):
    breaking, words = BAD[how]
    breaking(source)
    with pytest.raises(SystemExit) as caught:
        convert(source, tmp_path / "deep" / "x", "--format", "safetensors")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--components", "transformer,unet"], "component 'unet' is not known"),
        (["--format", "onnx"], "format is"),
        (["--quantize", "int4"], "quantize is"),
    ],
)
def test_options(tmp_path, convert, capsys, argv, words):
    with pytest.raises(SystemExit) as caught:
        convert(FOLDER, tmp_path / "x", *argv)
    assert caught.value.code == 2 and words in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_targets_that_are_there(source, tmp_path, convert, capsys):
    before = listing(tmp_path)
    file = source / "model_index.json"
    for target, words in ((source, "not empty"), (file, "not empty"), (file / "x", "cannot write"), ("/", "mounted")):
        with pytest.raises(SystemExit):
            convert(source, target)
        assert words in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_a_full_disk(tmp_path, convert, capsys, monkeypatch):
    """Seen before anything is written, or while the third component is: nothing is left either way."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**7, 10**7, 10**6))
        with pytest.raises(SystemExit):
            convert(FOLDER, tmp_path / "deep" / "x")
    assert re.search(r"has 1\.0 MB free, but 6\.\d MB are needed", capsys.readouterr().err)

    def full(path, *rest):
        if "vae_temporal_decoder" in str(path):
            raise OSError(28, "No space left on device")
        write_state_dict(path, *rest)

    monkeypatch.setattr(conversion, "write_state_dict", full)
    with pytest.raises(SystemExit):
        convert(FOLDER, tmp_path / "deep" / "x")
    assert "deep/x: No space left on device" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
