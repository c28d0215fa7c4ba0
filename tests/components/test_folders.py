"""Folders of others: what is not there, links to what lies elsewhere, and sizes that no network has."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from support.weights import FIXTURES

from latte.components import merge as merging
from latte.components.convert import convert_folder
from latte.components.folders import check_own, find_parts
from latte.components.loading import check, load_vae, read
from latte.components.text_encoder import load_tokenizer
from latte.errors import UserError
from latte.inference.pipeline import LattePipeline
from latte.weights.files import StateFile, read_state_dict
from latte.weights.mapped import map_file, stored_elements, view
from latte.weights.safetensors_file import read_safetensors

FOLDER = FIXTURES / "latte_t2v"
HASH = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "t2v")


def change(folder, name, **values):
    file = folder / name / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder / name


@pytest.mark.parametrize(
    "path, vae, said",
    [
        (
            "maxin-cn/Latte-1",
            None,
            "run `hf download maxin-cn/Latte-1 --local-dir models/Latte-1` and name models/Latte-1",
        ),
        ("maxin-cn/Latte", "x", "run `hf download maxin-cn/Latte --local-dir models/Latte`"),
        ("someone/some-model", None, "hf download someone/some-model .* if that is a repository; .* maxin-cn/Latte-1"),
        (
            "models/sky.pt",
            "x",
            r"models/sky.pt does not exist; .* maxin-cn/Latte .*and maxin-cn/Latte-1 \(text to video\)",
        ),
        (
            FIXTURES / "latte_uncond.pt",
            "nowhere.pt",
            "nowhere.pt does not exist; .* huggingface.co: stabilityai/sd-vae-ft-mse",
        ),
        (FIXTURES / "latte_uncond.pt", "stabilityai/sd-vae-ft-mse", "hf download stabilityai/sd-vae-ft-mse"),
        (
            "https://huggingface.co/maxin-cn/Latte-1/tree/main",
            None,
            "run `hf download maxin-cn/Latte-1 --local-dir models",
        ),
        (
            "maxin-cn/latte1/",
            None,
            "run `hf download maxin-cn/Latte-1 --local-dir models/Latte-1` and name models/Latt",
        ),
        ("Latte-1", None, "run `hf download maxin-cn/Latte-1 --local-dir Latte-1` and name Latte-1$"),
        (FOLDER / "model_index.json", None, "a part of a text-to-video folder; name the whole folder, .*latte_t2v$"),
        (FOLDER / "transformer" / "config.json", None, "name the whole folder, .*latte_t2v$"),
        (FOLDER / "transformer", None, "name the whole folder, .*latte_t2v$"),
        (FIXTURES / "latte_uncond.pt", None, "is one file and needs an autoencoder"),
        ("a" * 5000, None, "does not exist"),
        ("a" * 5000, "x", "does not exist"),
        ("nul\0", "x", "does not exist"),
    ],
)
def test_what_is_not_there_is_said_with_where_to_get_it(path, vae, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        LattePipeline.from_pretrained(path, vae)
    assert str(error.value).isprintable() and len(str(error.value)) < 900


def test_every_network_is_told_where_its_official_weights_are(tmp_path):
    for kind, repository in {"latte": "maxin-cn/Latte ", "latte_t2v": "Latte-1", "t5": "Latte-1"}.items():
        with pytest.raises(UserError, match=f"nowhere does not exist; .*{repository}"):
            read(tmp_path / "nowhere", kind)
    with pytest.raises(UserError, match=r"nowhere does not exist; .*stabilityai/sd-vae-ft-mse$"):
        load_vae(tmp_path / "nowhere")


def test_links_to_what_lies_elsewhere_are_not_copied(folder, tmp_path):
    """Else a folder that was downloaded could have a private file published with what is made of the folder."""
    secret = tmp_path / "id_rsa"
    secret.write_text("private")
    for place in ("tokenizer/notes.txt", "scheduler/notes.txt"):
        (folder / place).symlink_to(secret)
        with pytest.raises(UserError, match=rf"{place} is a link to .*id_rsa, outside of .*put a copy of it in place"):
            convert_folder(folder, tmp_path / "out")
        (folder / place).unlink()
    tokenizer = (folder / "tokenizer").rename(tmp_path / "tokenizer")
    (folder / "tokenizer").symlink_to(tokenizer)
    with pytest.raises(UserError, match="is a link to"):
        convert_folder(folder, tmp_path / "out")
    with pytest.raises(UserError, match="tokenizer is a link to a folder"):
        merging.files_beside(folder)
    (folder / "tokenizer").unlink()
    (folder / "vae" / "notes").symlink_to("../../id_rsa")
    with pytest.raises(UserError, match="id_rsa, outside of"):
        merging.files_beside(folder)
    (folder / "vae" / "notes").unlink()
    (folder / "vae" / "again.json").symlink_to("config.json")  # its own
    for old in ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "x.safetensors.index.fp16.json", "x.ckpt"):
        (folder / "transformer" / old).touch()
    beside = [path.relative_to(folder).as_posix() for path in merging.files_beside(folder)]
    assert "vae/again.json" in beside and "vae/diffusion_pytorch_model.safetensors" in beside
    assert [name for name in beside if name.startswith("transformer")] == ["transformer/config.json"]
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_cache_of_a_hub_is_converted(tmp_path):
    """There files are links to ../../blobs/HASH."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(FOLDER, snapshot)
    blobs.mkdir()
    for i, file in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        blob = file.rename(blobs / f"{i:064x}")
        file.symlink_to("../" * (len(file.relative_to(snapshot).parts) + 1) + f"blobs/{blob.name}")
    said = convert_folder(snapshot, tmp_path / "out", components="tokenizer,scheduler,vae")
    assert "3 components as ckpt" in said[-1]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    original = FOLDER / "tokenizer" / "spiece.model"
    assert (tmp_path / "out" / "tokenizer" / "spiece.model").read_bytes() == original.read_bytes()
    assert len(merging.files_beside(snapshot)) == sum(path.is_file() for path in FOLDER.rglob("*")) - 1
    for target in (tmp_path / "blobs" / "id_rsa", tmp_path / HASH):  # a name alone, or a place alone, is not enough
        target.parent.mkdir(exist_ok=True)
        target.write_text("private")
        link = snapshot / f"link-{target.name}"
        link.symlink_to(target)
        with pytest.raises(UserError, match="outside of"):
            check_own(link, snapshot)


WRONG = {  # component, its config.json, what is said
    "num_layers 10**9": ("transformer", {"num_layers": 10**9}, "num_layers must be a whole number from 1 to 256"),
    "num_layers 0": ("transformer", {"num_layers": 0}, "num_layers must be a whole number"),
    "num_layers 4.0": ("transformer", {"num_layers": 4.0}, "num_layers must be a whole number"),
    "num_layers true": ("transformer", {"num_layers": True}, "num_layers must be a whole number"),
    "patch_size 10**9": ("transformer", {"patch_size": 10**9}, "patch_size must be a whole number from 1 to 256"),
    "patch_size -2": ("transformer", {"patch_size": -2}, "patch_size must be a whole number from 1 to 256"),
    "patch_size list": ("transformer", {"patch_size": [1, 2, 2]}, r"patch_size must be .* but is \[1, 2, 2\]"),
    "patch beyond its sample": ("transformer", {"patch_size": 256, "sample_size": 8}, "patch_size 256 is larger than"),
    "captions of 10**12": ("transformer", {"caption_channels": 10**12}, "caption_channels must be a whole number"),
    "wide and deep": (
        "transformer",
        {"num_layers": 16, "attention_head_dim": 4096, "num_attention_heads": 16, "cross_attention_dim": 1 << 16},
        r"holds [\d,]+ elements, but a network of the sizes that it tells has 1,\d\d\d,\d\d\d,\d\d\d,\d\d\d",
    ),
    "no width": ("transformer", {"cross_attention_dim": 32}, "cross_attention_dim 32 is not the width"),
    "a class of escapes": ("transformer", {"_class_name": "\x1b[2J" * 99}, r"describes a \\x1b\[2J"),
    "norm_eps list": ("transformer", {"norm_eps": [1] * 10**4}, r"norm_eps \[1, 1, "),
    "T5 num_layers 10**9": ("text_encoder", {"num_layers": 10**9}, "num_layers must be a whole number from 1 to 256"),
    "T5 num_layers 10**30": ("text_encoder", {"num_layers": 10**30}, "num_layers must be a whole number"),
    "T5 d_ff 10**12": ("text_encoder", {"d_ff": 10**12}, "d_ff must be a whole number"),
    "T5 words": ("text_encoder", {"vocab_size": 1 << 24, "d_model": 1 << 16}, "elements, but a network of the sizes"),
    "T5 num_layers 256": ("text_encoder", {"num_layers": 256}, "has 21 weights, too few for a network of 256 blocks"),
    "T5 epsilon 0": ("text_encoder", {"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a number from 1e-20 to 1"),
    "T5 epsilon NaN": ("text_encoder", {"layer_norm_epsilon": float("nan")}, '"layer_norm_epsilon" is nan'),
    "T5 epsilon list": ("text_encoder", {"layer_norm_epsilon": [1e-6]}, "layer_norm_epsilon must be a number"),
    "T5 buckets 3": ("text_encoder", {"relative_attention_num_buckets": 3}, "relative_attention_num_buckets must be"),
    "T5 distance": ("text_encoder", {"relative_attention_max_distance": 8}, "max_distance 8 is too small"),
    "factor inf": ("vae", {"scaling_factor": float("inf")}, '"scaling_factor" is inf, not a finite number'),
    "factor of 400 digits": ("vae", {"scaling_factor": 10**400}, "scaling_factor.* of more than 40 digits"),
    "factor 0": ("vae", {"scaling_factor": 0}, "scaling_factor must be a number from 1e-06 to 1e"),
    "factor -1": ("vae", {"scaling_factor": -1.5}, "scaling_factor must be a number"),
    "factor text": ("vae", {"scaling_factor": "0.18"}, "scaling_factor must be a number .* but is '0.18'"),
    "groups list": ("vae", {"norm_num_groups": [8]}, r"norm_num_groups must be a whole number .* but is \[8\]"),
    "groups 0": ("vae", {"norm_num_groups": 0}, "norm_num_groups must be a whole number"),
    "groups 3": ("vae", {"norm_num_groups": 3}, "3 groups do not divide"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_size_that_no_network_has_is_refused_before_it_is_built(folder, how, monkeypatch):
    monkeypatch.setattr("latte.components.loading.Kind.build", lambda *args, **options: pytest.fail("built"))
    component, values, said = WRONG[how]
    there, start = change(folder, component, **values), time.perf_counter()
    with pytest.raises(UserError, match=said) as error:
        check(there)
    message = str(error.value)
    assert str(there) in message and message.isprintable() and len(message) < len(str(there)) + 300
    assert time.perf_counter() - start < 2


def hostile(name, *shape, **others):
    """Return the weights of the unconditional fixture with a tensor of a shape that repeats one element, or others."""
    tensors = read_state_dict(FIXTURES / "latte_uncond.pt").tensors
    return tensors | ({name: np.broadcast_to(np.float32(0), shape)} if name else {}) | others


TENSORS = {
    "width 2**40": (hostile("x_embedder.proj.weight", 2**40, 4, 2, 2), "hidden_size must be a whole number"),
    "width 2**16": (hostile("x_embedder.proj.weight", 2**16, 0, 2, 2), "x_embedder.proj.weight missing, empty"),
    "patches of 0": (hostile("x_embedder.proj.weight", 64, 4, 0, 0), "x_embedder.proj.weight missing, empty"),
    "patches of 100": (hostile("x_embedder.proj.weight", 64, 4, 100, 1), "does not fit the network"),
    "2**40 frames": (hostile("temp_embed", 1, 2**40, 64), "num_frames must be a whole number"),
    "2**40 patches": (hostile("pos_embed", 1, 2**40, 64), "input_size must be a whole number"),
    "2**40 classes": (hostile("y_embedder.embedding_table.weight", 2**40, 64), "num_classes must be a whole number"),
    "10**7 classes": (hostile("y_embedder.embedding_table.weight", 10**7, 0), "embedding_table.weight missing, empty"),
    "512 blocks": (
        hostile("", **{f"blocks.{i}.x": np.empty(0, np.float32) for i in range(512)}),
        "weights, too few for a network of 512 blocks",
    ),
    "20,000 blocks": (
        hostile("", **{f"blocks.{i}.x": np.empty(0, np.float32) for i in range(20_000)}),
        "depth must be a whole number from 1 to 512, but is 20000",
    ),
}


@pytest.mark.parametrize("how", TENSORS)
def test_sizes_off_tensors_that_hold_nothing_are_one_sentence(how):
    tensors, said = TENSORS[how]
    with pytest.raises(UserError, match=rf"x\.pt.*({said}|missing, empty or not as wide)") as error:
        check(StateFile(tensors, {"config": '{"num_heads": 4}'}, "x.pt"))
    assert len(str(error.value)) < 400


def test_what_is_held_is_counted_off_files_not_off_shapes():
    """A view that repeats one element, or overlaps others, promises more than its file can hold."""
    file = FOLDER / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = list(read_safetensors(file)[0].values())
    assert stored_elements(tensors) == sum(values.size for values in tensors)
    data = map_file(file)
    whole = [view(data, np.dtype(np.float32), (1 << 20, 1 << 20), 0, len(data), (0, 0)) for _ in range(3)]
    assert stored_elements(whole) == file.stat().st_size
    assert stored_elements([*whole, np.zeros(5)]) == file.stat().st_size + 5


def test_heads_and_levels_that_no_network_has():
    for heads in (-4, 3, 10**9):
        with pytest.raises(UserError, match="num_heads|does not divide into 3 heads"):
            check(FIXTURES / "latte_uncond.pt", num_heads=heads)
    state = read_state_dict(FIXTURES / "vae.bin")
    levels = {f"encoder.down_blocks.{i}.resnets.0.conv1.weight": np.broadcast_to(0.0, (16, 1, 3, 3)) for i in range(40)}
    with pytest.raises(UserError, match="has 40 levels, but 1 to 8 are known"):
        check(StateFile(state.tensors | levels, state.metadata, "x.bin"))
    wide = {"encoder.down_blocks.0.resnets.0.conv1.weight": np.broadcast_to(np.float32(0), (1 << 14, 1, 3, 3))}
    with pytest.raises(UserError, match=r"x.bin holds [\d,]+ elements, but a network of the sizes that it tells"):
        check(StateFile(state.tensors | wide, state.metadata, "x.bin"))


def test_files_of_a_tokenizer_that_would_hang_are_refused(folder):
    tokenizer = folder / "tokenizer"
    settings = tokenizer / "tokenizer_config.json"
    told = json.loads(settings.read_text())
    for wrong in (10**8, -1, "100", 1.5):
        settings.write_text(json.dumps(told | {"extra_ids": wrong}))
        with pytest.raises(UserError, match=r"tokenizer_config.json: extra_ids must be a whole number from 0 to 1,000"):
            load_tokenizer(tokenizer)
    settings.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"tokenizer_config.json .*nested too deeply"):
        load_tokenizer(tokenizer)
    settings.unlink()
    os.mkfifo(tokenizer / "special_tokens_map.json")
    with pytest.raises(UserError, match=r"special_tokens_map.json is a pipe, a socket or a device"):
        load_tokenizer(tokenizer)
    (tokenizer / "special_tokens_map.json").unlink()
    with (tokenizer / "spiece.model").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"spiece.model is larger than 32 MiB"):
        load_tokenizer(tokenizer)


def test_a_pipeline_of_another_kind_is_said_without_its_escapes(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "\x1b[2J" * 1000}))
    with pytest.raises(UserError, match=r"is a folder of \\x1b") as error:
        find_parts(folder)
    assert str(error.value).isprintable() and len(str(error.value)) < 400
