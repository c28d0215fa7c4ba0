"""What tiny networks compute on MindSpore's Ascend back end over the stand-in, beside float32 on the CPU."""

import functools

import numpy as np
import pytest
from ascend import standin
from support import variants
from support.golden_values import FIXTURES, ROOT, error, recorded
from support.half_precision import emulate_latte, emulate_t2v, emulate_t5
from support.runs import run

from latte.components.loading import read

FLOAT32 = {
    "latte": ("latte uncond", "latte class"),
    "text_to_video": ("t2v", "t5"),
    "clip": ("clip",),
    "autoencoder": ("vae encode", "vae decode", "temporal decode"),
    "i3d": ("i3d",),
    "training": ("loss", "gradients"),
    "int8": ("latte int8",),
    "choices": (*variants.CHOICES, *(f"{name} gradients" for name in variants.TRAINED)),
    "sampling": ("guided sampling",),
    "ten_steps": ("ten losses", "ten steps", "ten steps, EMA"),
}
HALF = {"latte": FLOAT32["latte"], "text_to_video": FLOAT32["text_to_video"], "flash": ("latte flash",)}
FOLLOWS = {part: FLOAT32[part] for part in ("training", "int8", "choices", "sampling", "clip")} | {
    "vae_dtype": FLOAT32["autoencoder"]
}
LOOSE = {"fp16": 1e-2, "bf16": 8e-2}  # for what is not emulated, relative to the largest element
CASES = [(part, name) for part, names in FLOAT32.items() for name in names]


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """Return a function (target, dtype, part) -> results; each is a process, as one cannot change its device."""
    folder = tmp_path_factory.mktemp("numbers")

    @functools.cache
    def compute(target, dtype, part):
        file = folder / f"{target}-{dtype}-{part}.npz"
        variables = standin.environment() if target == "Ascend" else {}
        if variables:
            variables["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests:{variables['PYTHONPATH']}"
        run("tests/support/on_device.py", target, dtype, file, part, **variables)
        with np.load(file) as results:
            return dict(results)

    return compute


@pytest.mark.parametrize(
    "part, name", [pytest.param(*case, marks=[] if case[0] == "latte" else pytest.mark.slow) for case in CASES]
)
def test_float32_is_the_cpus(part, name, computed):
    expected = computed("CPU", "fp32", part)[name]
    found = error(computed("Ascend", "fp32", part)[name], expected)
    print(f"{name} fp32: {found:.2e} of the largest element")
    assert np.abs(expected).max() > 0 and found <= 1e-5


def emulated(name, dtype):
    """Return what a network gives if every operation rounds as half precision does, by NumPy."""
    if name.startswith("latte"):
        kind = "uncond" if name.endswith("uncond") else "class"
        data = recorded(f"latte_{kind}")
        given = [data[key] for key in ("x", "t", "y")[: 2 if kind == "uncond" else 3]]
        weights = read(FIXTURES / f"latte_{kind}.pt", weights="ema")
        return emulate_latte(weights, *given, dtype=dtype, flash=name.endswith("flash"), joint_bias=True)
    if name == "t2v":
        data, mask = recorded("latte_t2v"), (np.arange(120) < 9).astype(np.int32)[None]
        latents = np.ascontiguousarray(data["latents"].transpose(0, 2, 1, 3, 4))
        given = (latents, data["timestep"], data["text_hidden"], mask)
        return emulate_t2v(read(FIXTURES / "latte_t2v" / "transformer"), *given, dtype=dtype, joint_bias=True)
    data = recorded("t5/recorded")
    return emulate_t5(read(FIXTURES / "t5"), data["input_ids"], data["attention_mask"], dtype)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("part, name", [(part, name) for part, names in HALF.items() for name in names])
def test_half_precision_rounds_at_most_twice_as_much_as_numpy(part, name, dtype, computed):
    expected = computed("CPU", "fp32", part)[name]
    found, rounding = error(computed("Ascend", dtype, part)[name], expected), error(emulated(name, dtype), expected)
    print(f"{name} {dtype}: {found:.2e} of the largest element, NumPy {rounding:.2e}")
    assert rounding / 8 < found <= 2 * rounding  # and not float32 in disguise


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_gradient_of_a_block_is_float32s(dtype, computed):
    """By the fused kernel in half precision, of one video and of two, which take other operations."""
    expected, found = computed("CPU", "fp32", "blocks"), computed("Ascend", dtype, "blocks")
    errors = {name: error(found[name], expected[name]) for name in expected}
    print(dtype, {name: f"{value:.1e}" for name, value in errors.items()})
    assert len(errors) == 28 and max(errors.values()) <= (LOOSE | {"fp32": 1e-5})[dtype], errors


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("part, name", [(part, name) for part, names in FOLLOWS.items() for name in names])
def test_half_precision_follows_float32(part, name, dtype, computed):
    found = error(computed("Ascend", dtype, part)[name], computed("CPU", "fp32", part)[name])
    print(f"{name} {dtype}: {found:.2e} of the largest element")
    assert found <= LOOSE[dtype]
