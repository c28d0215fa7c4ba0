"""The variants and the other choices of the paper: against NumPy, what they see, their counts, files and refusals."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from support.golden_values import FIXTURES, ROOT, error
from support.variants import CHOICES, CLASSES, SMALL, Reference, inputs, network, rotated, tensors

from latte import create_model
from latte.commands.convert import main_latte
from latte.components.loading import load, read
from latte.components.quantize import matrices
from latte.config import ExportConfig
from latte.diffusion.loss import DiffusionLoss
from latte.diffusion.schedule import create_schedule
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference import caches
from latte.inference.export import export
from latte.inference.latents import LatentSampler, Request
from latte.models import latte
from latte.models.latte import SIZES, Latte, LatteConfig, named_sizes
from latte.models.precision import prepare
from latte.ops.attention import _rotated
from latte.runtime import device
from latte.training.identity import compare
from latte.weights.files import CONFIG, write_state_dict


def quick(*names):
    """Return all choices as parameters, of which only these are not slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in CHOICES]


PAPER = {1: 673.68, 2: 673.68, 3: 676.33, 4: 676.44}  # millions of parameters of XL/2, without position embeddings


@pytest.mark.parametrize("name", quick("variant 3", "everything"))
def test_each_choice_computes_what_numpy_does(name):
    net, given = network(name), inputs()
    expected = Reference(net)(*given)
    assert expected.std() > 0.1 and error(net(*tensors(given)), expected) <= 1e-5
    if net.config.patch_embedding == "uniform":  # images skip attention over frames
        image = inputs(frames=1)
        assert error(net(*tensors(image)), Reference(net)(*image)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_the_accelerators_graph_is_the_same(name):
    net, given = network(name), inputs()
    with device.use("GPU"):
        found = ms.jit(net.construct)(*tensors(given))
    assert error(found, Reference(net)(*given)) <= 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", PAPER)
def test_parameters_are_those_of_the_paper(size, variant):
    config = LatteConfig(**named_sizes(f"Latte-{size}/2", variant), variant=variant)
    count = config.parameter_count - config.hidden_size * (256 + 16)
    first = LatteConfig(**named_sizes(f"Latte-{size}/2"))
    assert (config.parameter_count == first.parameter_count) == (variant < 3)
    assert abs(config.parameter_count / first.parameter_count - 1) < 0.03
    if size == "XL":
        assert config.depth == (28 if variant < 3 else 23)
        assert abs(count / 1e6 - PAPER[variant]) < (0.005 if variant < 3 else 0.1)


@pytest.mark.parametrize("name", CHOICES)
def test_parameters_are_counted_without_building_the_network(name):
    net = network(name)
    assert net.config.parameter_count == sum(math.prod(weight.shape) for weight in net.get_parameters())


def test_weights_of_a_block_are_in_the_official_order():
    """By which norms of gradients are summed, and files written; so it is the same as ever."""
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    net = network("variant 1")
    found = [weight.name for weight in net.get_parameters() if weight.name.startswith("blocks.0.")]
    assert found == [f"blocks.0.{name}" for name in names]
    ends = ["linear.weight", "linear.bias", "adaLN_modulation.1.weight", "adaLN_modulation.1.bias"]
    assert [weight.name for weight in net.final_layer.get_parameters()] == [f"final_layer.{end}" for end in ends]


def changed(net, block, at):
    """Return which frames and patches of a block's output depend on one token of its input, (F, T) of bool."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 6, 32)).astype(np.float32)
    c = ms.Tensor(rng.normal(size=(1, 32)).astype(np.float32))
    more = (4, True) if block.both else ()
    before = block(ms.Tensor(x), c, *more).asnumpy()
    x[(0, *at)] += rng.normal(size=32)  # a norm does not see what is the same for all
    return np.abs(block(ms.Tensor(x), c, *more).asnumpy() - before).max(-1)[0] > 1e-6


@pytest.mark.parametrize(
    "name", ["variant 2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("variant 1", "rotary"))]
)
def test_a_spatial_block_never_mixes_frames_and_a_temporal_one_never_patches(name):
    net = network(name, depth=4)
    for block in net.blocks:
        seen = np.zeros((4, 6), bool)
        seen[(slice(None), 2) if block.temporal else 1] = True
        assert np.array_equal(changed(net, block, (1, 2)), seen)
    order = [block.temporal for block in net.blocks]
    assert order == ([False, False, True, True] if name == "variant 2" else [False, True, False, True])


def test_blocks_of_variants_three_and_four_see_a_frame_and_a_patch():
    """In variant 4 both halves read the same tokens: a cross; in 3 what the frame has gathered goes to all others."""
    cross = np.zeros((4, 6), bool)
    cross[1], cross[:, 2] = True, True
    third, fourth = network("variant 3"), network("variant 4")
    assert changed(third, third.blocks[0], (1, 2)).all()
    assert np.array_equal(changed(fourth, fourth.blocks[0], (1, 2)), cross)


def test_the_halves_of_variant_four_are_added():
    """Each has half of the heads; without one of them, the other is what is left."""
    net, given = network("variant 4", depth=1), inputs()
    assert net.blocks[0].over_patches.settings()[0] == net.blocks[0].over_frames.settings()[0] == 2
    for half in (net.blocks[0].temporal_attn, net.blocks[0].attn):
        half.proj.weight.set_data(ms.Tensor(np.zeros(half.proj.weight.shape, np.float32)))
        assert error(net(*tensors(given)), Reference(net)(*given)) <= 1e-5


def test_rotary_attention_sees_only_how_far_frames_are_apart():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 12)).astype(np.float32).repeat(7, 3)
    q, k = (np.broadcast_to(each[:, :, :1], (1, 1, 7, 12)).copy() for each in (q[..., :12], k[..., :12]))
    turned = [_rotated(ms.Tensor(each), 12).asnumpy() for each in (q, k)]
    assert error(turned[0], rotated(q.astype(np.float64))) <= 1e-6
    scores = turned[0][0, 0] @ turned[1][0, 0].T
    for apart in range(-6, 7):
        assert np.ptp(np.diagonal(scores, apart)) <= 1e-5
    assert np.ptp(scores) > 0.1
    padded = np.concatenate([q, q[..., :4]], 3)  # for the fused kernel heads are wider
    assert np.array_equal(_rotated(ms.Tensor(padded), 12).asnumpy()[..., 12:], padded[..., 12:])


def test_tubelets_halve_the_tokens_and_one_token_more_is_that_of_the_condition():
    x, t, y = tensors(inputs())
    shapes = {name: network(name).embed(x, t, y)[0].shape for name in CHOICES}
    assert shapes["variant 1"] == shapes["rotary"] == (2, 4, 6, 32)
    assert shapes["compression"] == (2, 2, 6, 32) and shapes["all_tokens"] == (2, 4, 7, 32)
    assert shapes["everything"] == (2, 2, 7, 32)


@pytest.mark.parametrize("name", quick("everything"))
def test_official_initialisation_gives_zeros(name):
    net = create_model("Latte-S/2", **SMALL, **CLASSES, **CHOICES[name])
    x, t, _ = inputs()
    out = net(*tensors(inputs())).asnumpy()
    if net.config.prediction_type == "v_prediction":  # a velocity of zero: the share of x_t that is noise
        noise = np.sqrt(1 - create_schedule().alphas_cumprod[t]).reshape(-1, 1, 1, 1, 1)
        assert error(out[:, :, :4], noise * x) <= 1e-6
        out = out[:, :, 4:]
    assert not out.any()
    for weight in net.get_parameters():
        values = weight.asnumpy()
        if ".qkv.weight" in weight.name or ".proj.weight" in weight.name:
            bound = np.sqrt(6 / (values.shape[0] + values[0].size))
            assert 0.9 * bound < np.abs(values).max() <= bound, weight.name
        if weight.name.endswith("scale_shift_table"):
            gates = values[2::3]
            assert (gates == 1).all() and values.sum() == gates.size


def test_a_velocity_becomes_noise_between_timesteps_and_with_one_for_each_frame():
    net, (x, _, y) = network("velocity"), inputs()
    times = np.array([0.25, 998.5], np.float32)
    assert error(net(*tensors((x, times, y))), Reference(net)(x, times, y)) <= 1e-5
    each = np.array([[0, 0, 700, 700], [0, 31, 31, 31]], np.int32)
    out = ms.jit(net.construct)(*tensors((x, each, y))).asnumpy()
    clean = network("velocity")
    clean.config = dataclasses.replace(clean.config, prediction_type="epsilon")
    velocity = ms.jit(clean.construct)(*tensors((x, each, y))).asnumpy()[:, :, :4]
    signal = np.sqrt(create_schedule().alphas_cumprod)[each].reshape(2, 4, 1, 1, 1)
    assert error(out[:, :, :4], signal * velocity + np.sqrt(1 - signal**2) * x) <= 1e-5


@pytest.mark.parametrize("t", [7, 500, 999])
def test_weighted_by_v_the_loss_of_a_velocity_is_its_squared_error(t):
    """Salimans and Ho, 2022: v = sqrt(a) noise - sqrt(1 - a) x_0."""
    net, (x, _, y) = network("velocity"), inputs()
    alpha = create_schedule().alphas_cumprod[t]
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    x_t = (np.sqrt(alpha) * x + np.sqrt(1 - alpha) * noise).astype(np.float32)
    net.config, kept = dataclasses.replace(net.config, prediction_type="epsilon"), net.config
    given = np.full(2, t, np.int32)
    velocity = net(*tensors((x_t, given, y))).asnumpy()[:, :, :4]
    net.config = kept
    expected = np.square(velocity - (np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * x)).mean((1, 2, 3, 4))
    loss, _, bound = DiffusionLoss(net, create_schedule(), "v")(*tensors((x, given, noise, y)))
    assert error(loss.asnumpy() - bound.asnumpy(), expected) <= 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_weight_has_a_gradient(name, recompute):
    """That of a weight is what a small step against it changes the loss by, by which it is checked."""
    net = network(name, for_training=True)
    for block in net.blocks if recompute else ():
        block.recompute()
    loss_net = DiffusionLoss(net, create_schedule())
    x, t, y = inputs()
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    trained = [weight for weight in net.get_parameters() if weight.requires_grad]

    def mean_loss(x, t, noise, y):
        return loss_net(x, t, noise, y)[0].mean()

    step = ms.jit(ms.value_and_grad(mean_loss, None, trained))
    given = tensors((x, t, noise, y))
    before, gradients = step(*given)
    gradients = [gradient.asnumpy().astype(np.float64) for gradient in gradients]
    for weight, gradient in zip(trained, gradients, strict=True):
        assert np.abs(gradient).max() > 0, weight.name
    rate = 1e-2 * float(before.asnumpy()) / sum((each**2).sum() for each in gradients)
    for weight, gradient in zip(trained, gradients, strict=True):
        ms.ops.assign(weight, ms.Tensor(weight.asnumpy() - (rate * gradient).astype(np.float32)))
    after, _ = step(*given)
    assert abs((1 - float(after.asnumpy()) / float(before.asnumpy())) / 1e-2 - 1) < 0.2


def written(net, path, told=True):
    tensors = {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    write_state_dict(path, tensors, {CONFIG: json.dumps(net.config.to_json())} if told else {})
    return path


@pytest.mark.parametrize("name", quick("variant 2", "everything"))
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_files_tell_their_choices(name, suffix, tmp_path):
    net = network(name)
    path = written(net, tmp_path / f"net{suffix}")
    again, values = load(path), {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    assert again.config == net.config
    assert all(np.array_equal(weight.asnumpy(), values[name]) for name, weight in again.parameters_and_names())
    assert read(path, **CHOICES[name]).config == net.config
    with pytest.raises(UserError, match="variant"):
        read(path, variant=1 if net.config.variant > 1 else 2)


def test_files_that_do_not_tell_are_asked_for(tmp_path):
    """Names and shapes tell all but variant 2 of 1, 4 of 3, and what attention and outputs are."""
    for name in CHOICES:
        path = written(network(name, input_size=4), tmp_path / f"{name}.safetensors", told=False)
        config = network(name, input_size=4).config
        asked = {key: getattr(config, key) for key in ("variant", "temporal_position", "prediction_type")}
        assert read(path, **asked, num_heads=4, num_frames=4).config == config
    with pytest.raises(UserError, match="of variant 3 or 4, but does not tell of which; give it with --variant"):
        read(tmp_path / "variant 3.safetensors", num_heads=4)
    with pytest.raises(UserError, match="has no blocks of variant 3"):
        read(tmp_path / "variant 1.safetensors", num_heads=4, variant=3)
    with pytest.raises(UserError, match="temp_embed missing"):
        read(tmp_path / "rotary.safetensors", num_heads=4)
    assert read(FIXTURES / "latte_class.pt").config.variant == 1


def test_a_converted_file_tells_its_variant(tmp_path):
    source = written(network("variant 4", input_size=4), tmp_path / "net.safetensors", told=False)
    words = ["--source", str(source), "--target", str(tmp_path / "net.ckpt"), "--num_heads=4"]
    with pytest.raises(UserError, match="give it with --variant"):
        main_latte(words)
    main_latte([*words, "--variant=4"])
    assert read(tmp_path / "net.ckpt").config == network("variant 4", input_size=4).config


def test_a_run_of_before_is_variant_one_when_it_is_resumed():
    told = LatteConfig(**SMALL).to_json()
    before = {key: value for key, value in told.items() if key not in latte.CHOICES}
    stored = {CONFIG: json.dumps(before), "world_size": "1"}
    assert compare(stored, {CONFIG: json.dumps(told)}, "state") == []
    other = LatteConfig(**SMALL, variant=2).to_json()
    with pytest.raises(UserError, match="a network with variant 1, but the options ask for variant 2"):
        compare(stored, {CONFIG: json.dumps(other)}, "state")


@pytest.mark.parametrize("name", [pytest.param("variant 3", marks=pytest.mark.slow), "everything"])
def test_int8_weights_of_both_attentions(name, tmp_path):
    net = network(name)
    path = written(net, tmp_path / "net.safetensors")
    int8 = load(path, quantize="int8")
    assert {"blocks.0.attn.qkv", "blocks.2.temporal_attn.proj"} < set(matrices(int8))
    assert 1e-4 < error(int8(*tensors(inputs())), net(*tensors(inputs())).asnumpy()) < 0.05


@pytest.mark.parametrize(
    "name, cache",
    [
        ("variant 4", "pab:111"),
        *(
            pytest.param(name, cache, marks=pytest.mark.slow)
            for name in ("variant 2", "rotary", "all_tokens", "everything")
            for cache in ("every2-order1", "teacache:0.4", "pab:111")
        ),
    ],
)
def test_ways_to_skip_work(name, cache):
    net = network(name)
    request = {
        "seeds": (3,),
        "shape": net.config.latent_shape(),
        "conditions": (np.array([1], np.int32),),
        "num_inference_steps": 6,
        "solver": Solver("ddim"),
    }
    walk = caches.Walk.of(Solver("ddim"), 6, 1.0, 3, False)
    sampler = LatentSampler(net)
    if cache.startswith("pab") and net.blocks[0].both:
        with pytest.raises(UserError, match="one attention per block, not for variants 3 and 4; take teacache"):
            sampler.sample(Request(**request, cache=caches.choose(cache, 0.0, walk)))
        return
    plain = sampler.sample(Request(**request))
    found = sampler.sample(Request(**request, cache=caches.choose(cache, 0.0, walk)))
    assert np.isfinite(found).all() and error(found, plain) < (1e-5 if cache == "pab:111" else 1.0)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"variant": 5}, "variant must be one of 1, 2, 3, 4, but is 5"),
        ({"variant": True}, "variant must be one of"),
        ({"injection": "cross"}, "injection must be one of adaln, all_tokens"),
        ({"variant": 4, "num_heads": 1}, "variant 4 halves its heads, but num_heads is 1"),
        ({"patch_embedding": "compression", "num_frames": 5}, "num_frames is 5; take an even"),
        ({"prediction_type": "sample"}, "prediction_type must be one of epsilon, v_prediction"),
        ({"temporal_position": "rotary", "hidden_size": 12, "num_heads": 4}, "even head width"),
    ],
)
def test_impossible_choices_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        LatteConfig(**(SMALL | wrong))
    with pytest.raises(ValueError, match="the network takes x"):
        network("compression")(*tensors(inputs(frames=1)))


def test_heads_of_a_half_are_padded_by_themselves():
    net = Latte(LatteConfig(**(SMALL | CLASSES | {"hidden_size": 40, "variant": 4})), flash=True)
    prepare(net)
    for attention in (net.blocks[0].attn, net.blocks[0].temporal_attn):  # two heads of 20, padded to 32
        assert attention.qkv.weight.shape == (3 * 2 * 32, 40) and attention.proj.weight.shape == (40, 2 * 32)


@pytest.mark.slow
def test_two_ranks_share_the_frames_of_every_choice(tmp_path):
    """By exchanges around each attention over frames; four frames, six patches and one token more in some."""
    found = []
    for ranks in (1, 2):
        file = tmp_path / f"{ranks}.npz"
        words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
        words += [sys.executable, "tests/support/in_parts.py", "CPU", "fp32", str(file), str(ranks), "1", "choices"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun is beside Python
        environment = os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        with np.load(file) as arrays:
            found.append({name: values for name, values in arrays.items() if not name.endswith("sent")})
    one, two = found
    assert set(one) == set(two) > set(CHOICES)
    for name, values in one.items():
        assert error(two[name], values) <= (1e-4 if "gradients" in name else 1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["variant 3", "everything"])
def test_a_mindir_file_computes_the_same(name, tmp_path):
    path = written(network(name, input_size=4), tmp_path / "net.ckpt")
    target, vae = str(tmp_path / "graph.mindir"), str(FIXTURES / "vae")
    export(ExportConfig(checkpoint=str(path), vae_checkpoint=vae, target=target))
    (file,) = tmp_path.glob("*.mindir")
    x, t, y = inputs(videos=1)
    given = tensors((x[..., :4].copy(), t.astype(np.float32), y))
    assert error(nn.GraphCell(ms.load(str(file)))(*given), load(path)(*given).asnumpy()) <= 1e-5
