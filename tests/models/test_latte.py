"""The Latte network against what the official code computed from the same checkpoints."""

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, recorded, tiny

from latte import create_model, load_weights
from latte.components.loading import fill
from latte.diffusion.denoiser import guide
from latte.diffusion.loss import DiffusionLoss
from latte.diffusion.schedule import create_schedule
from latte.errors import UserError
from latte.models.latte import SIZES, Latte, LatteConfig
from latte.models.precision import pad_block, prepare
from latte.ops import ascend
from latte.runtime import device
from latte.weights.files import StateFile

PARAMETERS = {  # of the released and the published sizes, counted in the official code
    ("Latte-XL/2", None): 673_994_912,
    ("Latte-XL/2", 101): 674_112_416,
    ("Latte-L/2", None): 457_094_176,
    ("Latte-B/2", None): 129_755_936,
    ("Latte-S/2", None): 32_585_120,
}


def inputs(data, kind):
    names = ("x", "t", "y") if kind == "class" else ("x", "t")
    return [ms.Tensor(data[name]) for name in names]


@pytest.mark.parametrize("patch_embedder", ["conv", "linear"])
@pytest.mark.parametrize("weights", ["model", "ema"])
@pytest.mark.parametrize("kind", ["uncond", "class"])
def test_forward(kind, weights, patch_embedder):
    data = recorded(f"latte_{kind}")
    net = tiny(kind, weights, patch_embedder=patch_embedder)
    assert error(net(*inputs(data, kind)), data[f"{weights}_out"]) <= 1e-5


@pytest.mark.parametrize("patch_embedder", ["conv", pytest.param("linear", marks=pytest.mark.slow)])
def test_forward_as_one_graph_of_the_accelerators_form(patch_embedder):
    """GPU and Ascend compile the whole network, with a real convolution and the plain adaptive norm."""
    data = recorded("latte_class")
    with device.use("GPU"):
        graph = ms.jit(tiny("class", patch_embedder=patch_embedder).construct)
        assert error(graph(*inputs(data, "class")), data["ema_out"]) <= 1e-5


@pytest.mark.parametrize("batched", [False, True])
def test_guidance(batched):
    data = recorded("latte_class")
    net, labels = tiny("class"), ms.Tensor(data["cfg_y"])
    x, t = ms.Tensor(data["x"][:1]), ms.Tensor(data["t"][:1])
    if batched:
        both = net(ms.ops.concat((x, x), 0), ms.ops.concat((t, t), 0), labels)
        cond, uncond = both[:1], both[1:]
    else:
        cond, uncond = net(x, t, labels[:1]), net(x, t, labels[1:])
    out = guide(cond, uncond, float(data["cfg_scale"]), 4).asnumpy()
    second = np.concatenate([out[:, :, :4], uncond.asnumpy()[:, :, 4:]], axis=2)  # the official code's other half
    assert error(np.concatenate([out, second]), data["cfg_out"]) <= 1e-5


def test_loss_and_gradients():
    data = recorded("diffusion_training")
    net = tiny("uncond", "model")
    loss_net = DiffusionLoss(net, create_schedule())
    args = [ms.Tensor(data[name]) for name in ("x_start", "t", "noise")]
    named = {name: p for name, p in net.parameters_and_names() if p.requires_grad}

    def mean_loss(x_start, t, noise):
        loss, mse, vb = loss_net(x_start, t, noise)
        return loss.mean(), loss, mse, vb

    step = ms.jit(ms.value_and_grad(mean_loss, None, list(named.values()), has_aux=True))
    (_, loss, mse, vb), gradients = step(*args)
    for name, value in (("loss", loss), ("mse", mse), ("vb", vb)):
        assert error(value, data[f"term_{name}"]) <= 1e-5, name
    gradients = {name: g.asnumpy() for name, g in zip(named, gradients, strict=True)}
    names = [key.removeprefix("grad_") for key in data if key.startswith("grad_") and key != "grad_global_norm"]
    assert names
    for name in names:
        assert error(gradients[name], data[f"grad_{name}"]) <= 1e-4, name
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    assert abs(norm / float(data["grad_global_norm"]) - 1) <= 1e-4


@pytest.mark.slow
def test_wider_heads_change_nothing():
    data = recorded("latte_class")
    wide = create_model("Latte-S/2", hidden_size=48, depth=2, num_heads=4, input_size=8, num_frames=4, seed=3)
    for p in wide.get_parameters():  # so that neither the gates nor the last layer are zero
        if p.requires_grad:
            p.set_data(ms.Tensor(np.random.default_rng(0).normal(0, 0.05, p.shape).astype(np.float32)))
    args = inputs(data, "uncond")
    before = wide(*args).asnumpy()
    for block in wide.blocks:
        names = [p.name for p in block.attn.get_parameters()]
        pad_block(block, 4)  # from 12 to 16
        assert block.attn.qkv.weight.shape == (3 * 4 * 16, 48) and block.attn.proj.weight.shape == (48, 4 * 16)
        assert [p.name for p in block.attn.get_parameters()] == names
    assert np.abs(before).max() > 0.01
    assert error(wide(*args), before) <= 1e-5


def test_heads_of_a_multiple_of_sixteen_stay():
    block = tiny("class").blocks[0]
    before = block.attn.qkv.weight
    pad_block(block, 4)
    assert block.attn.qkv.weight is before and before.shape == (192, 64)


@pytest.mark.parametrize("name, classes", PARAMETERS)
def test_parameter_counts(name, classes):
    condition = "class" if classes else None
    net = create_model(name, condition=condition, num_classes=classes, seed=None)
    assert sum(p.size for p in net.get_parameters()) == PARAMETERS[name, classes]


def test_official_initialisation():
    net = create_model("Latte-S/2", condition="class", num_classes=101, depth=2, input_size=8, num_frames=4)
    values = {p.name: p.asnumpy() for p in net.get_parameters()}
    for name, value in values.items():
        if name in ("pos_embed", "temp_embed"):
            continue
        if name.endswith("bias") or "adaLN" in name or name.startswith("final_layer"):
            assert not value.any(), name
        elif name.startswith(("t_embedder", "y_embedder")):
            assert abs(value.std() / 0.02 - 1) < 0.02 and abs(value.mean()) < 1e-3, name
        else:
            bound = np.sqrt(6 / (value.shape[0] + value[0].size))
            assert 0.99 * bound < np.abs(value).max() <= bound, name
            assert abs(value.std() / (bound / np.sqrt(3)) - 1) < 0.02, name
    official = {p.name: p.asnumpy() for p in tiny("uncond").get_parameters()}
    fresh = create_model("Latte-S/2", hidden_size=64, depth=4, num_heads=4, input_size=8, num_frames=4)
    for name in ("pos_embed", "temp_embed"):
        assert np.array_equal(dict(fresh.parameters_and_names())[name].asnumpy(), official[name])


def test_text_condition_steers_blocks_but_not_the_final_layer():
    net = create_model("Latte-S/2", hidden_size=16, depth=2, num_heads=2, input_size=4, num_frames=2, condition="text")
    rng = np.random.default_rng(0)
    for p in net.get_parameters():
        if p.requires_grad and "text" not in p.name:
            p.set_data(ms.Tensor(rng.normal(0, 0.1, p.shape).astype(np.float32)))
    x, t = ms.Tensor(rng.normal(size=(2, 2, 4, 4, 4)).astype(np.float32)), ms.Tensor([1, 2], ms.int32)
    texts = [ms.Tensor(rng.normal(size=(2, 77, 768)).astype(np.float32)) for _ in range(2)]
    first, second = (net(x, t, y).asnumpy() for y in texts)
    assert first.shape == (2, 2, 8, 4, 4) and np.abs(first - second).max() > 1e-3
    for block in net.blocks:  # without the blocks' modulation, nothing of the text is left
        ada = block.adaLN_modulation[1]
        ada.weight.set_data(ms.Tensor(np.zeros(ada.weight.shape, np.float32)))
    first, second = (net(x, t, y).asnumpy() for y in texts)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "size, patch", [*((size, 2) for size in SIZES), pytest.param("S", 4, marks=pytest.mark.slow), ("S", 8)]
)
def test_every_named_size_and_uneven_images(size, patch):
    net = create_model(f"Latte-{size}/{patch}", depth=2, hidden_size=32, num_heads=2, input_size=(16, 8), num_frames=3)
    x = ms.Tensor(np.ones((1, 3, 4, 16, 8), np.float32))
    assert net(x, ms.Tensor([5], ms.int32)).shape == (1, 3, 8, 16, 8)


def test_float16_is_close_and_keeps_the_ends_in_float32():
    data = recorded("latte_class")
    net = tiny("class", dtype="fp16")
    assert {p.dtype for p in net.blocks.get_parameters()} == {ms.float16}
    assert {p.dtype for p in net.get_parameters() if not p.name.startswith("blocks")} == {ms.float32}
    out = net(*inputs(data, "class"))
    assert out.dtype == ms.float32 and 1e-6 < error(out, data["ema_out"]) <= 1e-2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "Latte-XXL/2"}, "Latte-XL/2"),
        ({"name": "Latte-XL/3"}, "Latte-XL/4"),
        ({"condition": "class"}, "num_classes"),
        ({"condition": "audio"}, "audio"),
        ({"input_size": 33}, "multiple of patch_size"),
        ({"num_heads": 7}, "heads"),
        ({"hidden_size": 66, "num_heads": 6}, "multiple of 4"),
        ({"heads": 7}, "num_heads"),
        ({"dtype": "int8"}, "bf16"),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        create_model(**arguments)


def test_flash_attention_is_said_to_be_exact_attention_once(caplog):
    data = recorded("latte_class")
    for _ in range(2):
        net = tiny("class", enable_flash_attention=True)
    assert [r for r in caplog.messages if "exact attention" in r] == caplog.messages and len(caplog.messages) == 1
    assert error(net(*inputs(data, "class")), data["ema_out"]) <= 1e-5


@pytest.mark.parametrize("kind", ["uncond", "class"])
def test_a_missing_or_superfluous_condition_is_said(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MindSpore leaves its report of a graph that raises
    data = recorded(f"latte_{kind}")
    wrong = inputs(data, "uncond") + ([ms.Tensor([0, 1], ms.int32)] if kind == "uncond" else [])
    with pytest.raises(ValueError, match="exactly if it has a condition"):
        tiny(kind)(*wrong)
    with pytest.raises(ValueError, match="exactly if it has a condition"):
        ms.jit(tiny(kind).construct)(*wrong)


def exact_flash_attention(q, k, v, heads, *others):
    """What Ascend's kernel is documented to compute and to take, its arguments in the order of MindSpore's function."""
    *absent, keep, scalar_value, before, after, _precise, input_layout, sparse_mode = others
    assert absent == [None] * 7 and keep == 1 and min(before, after) > max(q.shape) and sparse_mode == 0
    assert input_layout == "BSH" and q.shape[0] <= 2048 and q.shape[-1] // heads % 16 == 0
    split = [a.asnumpy().reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float64) for a in (q, k, v)]
    scores = split[0] @ split[1].swapaxes(-1, -2) * scalar_value
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ split[2]
    return ms.Tensor(out.transpose(0, 2, 1, 3).reshape(q.shape).astype(np.float32))


class ExactKernel:
    """The same as the operation that blocks are given."""

    def __init__(self, heads, *settings):
        self.heads, self.settings = heads, settings

    def __call__(self, q, k, v, *absent):
        return (exact_flash_attention(q, k, v, self.heads, *absent, *self.settings),) * 4


@pytest.mark.parametrize("limit", [2048, 6])  # 6: temporal attention in three parts, the last one shorter
def test_the_fused_kernels_way_computes_the_same(limit, monkeypatch):
    """With its 12-wide heads widened to 16, in the layout and with the scale that the kernel is given."""
    monkeypatch.setattr(ascend.ops, "flash_attention_score", exact_flash_attention)
    monkeypatch.setattr(ascend, "FlashAttentionScore", ExactKernel)
    monkeypatch.setattr(ascend, "_made", {})
    monkeypatch.setattr(ascend, "FLASH_BATCH", limit)
    data = recorded("latte_class")
    config = LatteConfig(hidden_size=48, depth=2, num_heads=4, input_size=8, num_frames=4)
    with device.use(graph_mode=False):
        exact, fused = Latte(config, flash=False), Latte(config, flash=True)
    rng = np.random.default_rng(0)
    for a, b in zip(exact.get_parameters(), fused.get_parameters(), strict=True):
        values = a.asnumpy() if "pos" in a.name or "temp" in a.name else rng.normal(0, 0.2, a.shape).astype(np.float32)
        a.set_data(ms.Tensor(values))
        b.set_data(ms.Tensor(values))
    args = inputs(data, "uncond")
    with device.use(graph_mode=False):
        expected = prepare(exact)(*args).asnumpy()
        assert np.abs(expected).max() > 0.1
        assert error(prepare(fused)(*args), expected) <= 1e-5


def test_create_then_load_weights():
    sizes = {"hidden_size": 64, "depth": 4, "num_heads": 4, "input_size": 8, "num_frames": 4}
    data = recorded("latte_uncond")
    for seed in (0, None):  # already prepared, or not yet
        net = load_weights(create_model(seed=seed, dtype="fp16", **sizes), FIXTURES / "latte_uncond.pt")
        assert net.blocks[0].mlp.fc1.weight.dtype == ms.float16 and net.dtype == ms.float16
        assert 1e-6 < error(net(*inputs(data, "uncond")), data["ema_out"]) <= 1e-2
    wide = create_model(hidden_size=48, depth=1, num_heads=4, input_size=8, num_frames=4, seed=1)
    official = {name: p.asnumpy() for name, p in wide.parameters_and_names()}
    for seed in (0, None):
        with device.use("Ascend"):
            net = create_model(
                **sizes | {"hidden_size": 48, "depth": 1}, seed=seed, dtype="fp16", enable_flash_attention=True
            )
            fill(net, StateFile(official, {}, "here"))
        qkv = net.blocks[0].attn.qkv.weight.asnumpy().reshape(3, 4, 16, 48)
        expected = official["blocks.0.attn.qkv.weight"].reshape(3, 4, 12, 48).astype(np.float16)
        assert np.array_equal(qkv[:, :, :12], expected) and not qkv[:, :, 12:].any()
    with pytest.raises(UserError, match=r"blocks\.3"):
        load_weights(create_model(seed=None, **sizes | {"depth": 3}), FIXTURES / "latte_uncond.pt")


@pytest.mark.parametrize("shape", [(2, 2, 4, 8, 8), (2, 4, 4, 8, 4), (2, 4, 3, 8, 8), (1, 4, 4, 8, 8)])
def test_other_shapes_are_not_broadcast(shape):
    x, t, y = (ms.Tensor(a) for a in (np.zeros(shape, np.float32), np.zeros(2, np.int32), np.zeros(2, np.int32)))
    with pytest.raises(ValueError, match="takes x"):
        tiny("class")(x, t, y)


def test_heads_may_be_of_odd_width():
    assert LatteConfig(hidden_size=60, num_heads=4).hidden_size == 60
