"""tools/export_mindir.py: what is in the files computes what the pipeline computes, and errors leave nothing behind."""

import runpy
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import nn
from support.golden_values import FIXTURES, ROOT, error

from latte import LattePipeline
from latte.components.codec import Codec
from latte.components.loading import load_vae
from latte.components.text_encoder import load_t5
from latte.config import ExportConfig
from latte.errors import UserError
from latte.inference.export import build, dry_run, export
from latte.inference.latents import LatentSampler
from latte.runtime import device

T2V = {"checkpoint": str(FIXTURES / "latte_t2v"), "text_tokens": 7}
CLASSES = {
    "checkpoint": str(FIXTURES / "latte_class.pt"),
    "vae_checkpoint": str(FIXTURES / "vae"),
    "guidance_scale": 4.0,
}


def run(target, **options):
    """Export, and return the description and what the file computes."""
    cfg = ExportConfig(target=str(target), **options)
    export(cfg)
    described = yaml.safe_load(target.with_suffix(".yaml").read_text())
    (graph,) = (target.parent / name for name in described["files"] if name.endswith(".mindir"))
    return described, nn.GraphCell(ms.load(str(graph)))


def inputs_of(described, seed=0):
    """Return random inputs as the description asks for them."""
    rng, arrays = np.random.default_rng(seed), []
    for field in described["inputs"]:
        if field["name"].startswith(("mask", "attention_mask")):
            arrays.append(np.arange(field["shape"][1])[None].repeat(field["shape"][0], 0) < 5)
        elif field["dtype"] == "int32":
            arrays.append(rng.integers(0, 3, field["shape"]))
        else:
            arrays.append(rng.normal(size=field["shape"]) * (300 if field["name"] == "t" else 1))
        arrays[-1] = np.abs(arrays[-1]) if field["name"] == "t" else arrays[-1]
    return [array.astype(field["dtype"]) for array, field in zip(arrays, described["inputs"], strict=True)]


def denoised(pipe, arrays, scale):
    """Return what the pipeline's own denoiser makes of the inputs."""
    x, t, *conditions = map(ms.Tensor, arrays)
    return LatentSampler(pipe.net).graphs.whole(scale != 1)(x, t, ms.Tensor(np.float32(scale)), *conditions).asnumpy()


def test_denoiser_with_labels(tmp_path):
    described, graph = run(tmp_path / "net.mindir", **CLASSES)
    assert [field["name"] for field in described["inputs"]] == ["x", "t", "y", "y_null"]
    assert described["guidance_scale"] == 4.0 and described["sd_scale_factor"] == 0.18215
    arrays = inputs_of(described)
    pipe = LattePipeline.from_pretrained(CLASSES["checkpoint"], CLASSES["vae_checkpoint"])
    out = graph(*map(ms.Tensor, arrays)).asnumpy()
    assert list(out.shape) == described["outputs"][0]["shape"]
    assert error(out, denoised(pipe, arrays, 4.0)) < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mindir", "net.yaml"]

    np.savez(tmp_path / "inputs.npz", *arrays)
    code = """
import numpy as np, mindspore as ms
graph, file = ms.nn.GraphCell(ms.load("net.mindir")), np.load("inputs.npz")
np.save("out.npy", graph(*[ms.Tensor(file[name]) for name in file.files]).asnumpy())
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), out)


@pytest.mark.slow
def test_the_two_graphs_of_a_schedule(tmp_path):
    """With the residual of one, the other says what the network says; the description has the schedule."""
    given = CLASSES | {"cache": "every2-order1", "sampling_steps": 4, "sampler": "ddim"}
    described, whole = run(tmp_path / "all.mindir", part="denoiser_all", **given)
    schedule = {"computed": [0, 2, 3], "calls": 4, "blocks": [0, 4], "order": 1}
    assert described["schedule"] == schedule
    names = [field["name"] for field in described["outputs"]]
    assert names == ["noise", "residual", "residual_null"]
    arrays = list(map(ms.Tensor, inputs_of(described)))
    noise, *residuals = whole(*arrays)
    assert [list(each.shape) for each in residuals] == [field["shape"] for field in described["outputs"][1:]]
    described, rest = run(tmp_path / "rest.mindir", part="denoiser_rest", **given)
    assert [field["name"] for field in described["inputs"]] == ["x", "t", *names[1:], "y", "y_null"]
    again = rest(*arrays[:2], *residuals, *arrays[2:])
    assert error(again, noise.asnumpy()) <= 1e-5


def test_a_schedule_belongs_to_the_parts_that_have_one():
    with pytest.raises(UserError, match="denoiser_all and denoiser_rest are the parts with one"):
        ExportConfig(target="x.mindir", **CLASSES, cache="every2")
    with pytest.raises(UserError, match="cache is null, but must be a schedule"):
        ExportConfig(target="x.mindir", **CLASSES, part="denoiser_all")
    with pytest.raises(UserError, match="cache teacache is no schedule, and cannot be exported"):
        dry_run(ExportConfig(target="x.mindir", **CLASSES, part="denoiser_all", cache="teacache"))


@pytest.mark.slow
def test_denoiser_of_text_to_video(tmp_path):
    """The same with the weights beside the graph, as beyond 1 GB: their names hold after they moved into place."""
    from mindspore.train import serialization

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serialization, "_save_together", lambda *_: False)
        described, graph = run(tmp_path / "net.mindir", **T2V, num_frames=3)
    assert described["files"] == ["net_graph.mindir", "net_variables"] and described["temporal"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.yaml", "net_graph.mindir", "net_variables"]
    arrays = inputs_of(described)
    pipe = LattePipeline.from_pretrained(T2V["checkpoint"])
    expected = denoised(pipe, arrays, described["guidance_scale"])
    assert error(graph(*map(ms.Tensor, arrays)), expected) < 1e-6


@pytest.mark.slow
def test_autoencoder(tmp_path):
    options = {**T2V, "image_size": 16, "vae_slice": 2}
    encoder, encode = run(tmp_path / "encoder.mindir", part="vae_encoder", **options)
    decoder, decode = run(tmp_path / "decoder.mindir", part="vae_decoder", **options)
    (images,), (latents,) = inputs_of(encoder), inputs_of(decoder)
    with device.use(graph_mode=False):  # so that the test compiles nothing else
        codec = Codec(load_vae(FIXTURES / "latte_t2v" / "vae"))
        assert error(encode(ms.Tensor(images)), codec.moments(images)) < 1e-6
        expected = codec.vae.decode(ms.Tensor(latents / np.float32(codec.scale_factor))).asnumpy()
    assert error(decode(ms.Tensor(latents)), expected) < 1e-6


def test_text_encoder(tmp_path):
    described, graph = run(tmp_path / "t5.mindir", part="t5", **T2V)
    arrays = inputs_of(described)
    expected = load_t5(FIXTURES / "latte_t2v" / "text_encoder")(*map(ms.Tensor, arrays)).asnumpy()
    assert error(graph(*map(ms.Tensor, arrays)), expected) < 1e-6


def test_errors_and_dry_run(tmp_path):
    target = str(tmp_path / "new" / "net.mindir")
    said = dry_run(ExportConfig(**CLASSES, target=target))
    assert "x: float32 [1, 4, 4, 8, 8]" in said and "y_null: int32 [1]" in said and target in said
    for part in ("vae_encoder", "vae_decoder"):
        assert "images: float32 [1, 3, 256, 256]" in dry_run(ExportConfig(**CLASSES, part=part, dry_run=True))
    assert "input_ids: int32 [1, 7]" in dry_run(ExportConfig(**T2V, part="t5", dry_run=True))
    with pytest.raises(UserError, match="part t5 is of text-to-video folders"):
        export(ExportConfig(**CLASSES, target=target, part="t5"))
    with pytest.raises(UserError, match="needs a conditional model"):
        export(ExportConfig(**CLASSES | {"checkpoint": str(FIXTURES / "latte_uncond.pt")}, target=target))
    with pytest.raises(UserError, match=r"ends with \.mindir"):
        ExportConfig(**CLASSES, target="net.onnx")
    with pytest.raises(UserError, match="unless report"):
        ExportConfig(**CLASSES)
    (tmp_path / "net.yaml").touch()
    with pytest.raises(UserError, match=r"net\.yaml is there already"):
        export(ExportConfig(**CLASSES, target=str(tmp_path / "net.mindir")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ms, "export", fail)
        with pytest.raises(UserError, match="No space left"):
            export(ExportConfig(**CLASSES, target=str(tmp_path / "other.mindir")))
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def fail(*_, file_name, **__):
    """Write half a file and stop, as on a full disk."""
    with Path(file_name).open("wb") as file:
        file.write(b"half")
    raise OSError(28, "No space left on device")


def test_a_device_that_is_not_there(monkeypatch, capsys, caplog):
    """The graph has its settings: a fused kernel a block, in half precision."""
    words = ["export_mindir.py", "--report", "--device_target=Ascend", "--dtype=bf16", "--enable_flash_attention=true"]
    monkeypatch.setattr(sys, "argv", [*words, *(f"--{key}={value}" for key, value in CLASSES.items())])
    with device.use():
        runpy.run_path(str(ROOT / "tools" / "export_mindir.py"), run_name="__main__")
    table = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    rows = {row[1]: dict(zip(table[0][2:], row[2:], strict=True)) for row in table}
    assert rows["blocks.0"]["Flash"] == rows["blocks.1"]["Flash"] == "1" and rows["total"]["Softmax"] == "0"
    assert "there is no Ascend here" in caplog.text


def test_the_device_reaches_the_cell():
    with device.use("Ascend"):
        cell, signature = build(ExportConfig(**T2V, report=True, dtype="bf16", enable_flash_attention=True))
    assert cell.net.flash and cell.net.dtype == ms.bfloat16
    assert [field.name for field in signature.inputs] == ["x", "t", "text", "mask", "text_null", "mask_null"]
