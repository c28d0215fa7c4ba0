"""Each row of the tables in docs/from-diffusers.md with the tiny folder; what the pipeline keeps, saves and shows."""

import json
import operator
import re
import sys
import types

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, ROOT, error

from latte import LattePipeline, Solver
from latte.components.codec import Codec
from latte.diffusion.denoiser import guide
from latte.diffusion.solvers import SOLVERS
from latte.errors import UserError
from latte.inference import captions
from latte.inference.callbacks import ordered_latents
from latte.inference.from_diffusers import ELSEWHERE, LEFT_OUT
from latte.io.json_files import read_json

FOLDER, LORA = FIXTURES / "latte_t2v", FIXTURES / "lora"
NAMES = json.loads((LORA / "arguments.json").read_text())  # of diffusers
SHORT = {"num_inference_steps": 2, "video_length": 3, "seed": 5, "progress": False, "output_type": "latent"}
NOISE = np.random.default_rng(0).normal(size=(1, 3, 4, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def pipe():
    return LattePipeline.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def plain(pipe):
    return pipe("x", **SHORT).frames


def rows(title):
    """Return the first cells of the table under a heading."""
    text = (ROOT / "docs" / "from-diffusers.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_tables_have_every_argument_of_diffusers():
    assert rows("Calling the pipeline") == NAMES["call"] == list(CALLS)
    loading = rows("Loading")
    assert sorted(loading) == NAMES["from_pretrained"] and len(set(loading)) == len(loading)


def frames(pipe, *given, **changes):
    return pipe(*(given or ("x",)), **(SHORT | changes)).frames


def same(pipe, plain, **changes):
    return np.array_equal(frames(pipe, **changes), plain)


def of_prompts(pipe, plain):
    embeds, _ = pipe.prompts.encode(["x", ""])
    given = frames(pipe, None, prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:])
    return given.shape == plain.shape and np.array_equal(given, frames(pipe, mask_feature=False))


def of_callback(pipe, plain):
    told = []

    def note(pipe, step, t, arrays):
        told.append((step, t, {name: values.shape for name, values in arrays.items()}))
        return arrays

    note.tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    assert same(pipe, plain, callback_on_step_end=note)
    shapes = {"latents": (1, 3, 4, 8, 8), "prompt_embeds": (1, 120, 32), "negative_prompt_embeds": (1, 120, 32)}
    return told == [(0, 500.0, shapes), (1, 0.0, shapes)]


def of_wanted(pipe, plain):
    told = []
    call = lambda pipe, step, t, arrays: told.append(sorted(arrays))  # noqa: E731
    assert same(pipe, plain, callback_on_step_end=call, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert same(pipe, plain, callback_on_step_end=call, callback_on_step_end_tensor_inputs=None)
    with pytest.raises(UserError, match="changed prompt_embeds, which is fixed"):
        frames(
            pipe,
            callback_on_step_end=lambda pipe, step, t, arrays: {"prompt_embeds": arrays["prompt_embeds"] + 1},
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    return told == 2 * [["prompt_embeds"]] + 2 * [["latents", "negative_prompt_embeds", "prompt_embeds"]]


def of_latents(pipe, plain):
    ours, theirs = (frames(pipe, latents=given) for given in (NOISE, NOISE.transpose(0, 2, 1, 3, 4)))
    tensor = frames(pipe, latents=ms.Tensor(NOISE))
    return np.array_equal(ours, theirs) and np.array_equal(ours, tensor) and error(ours, plain) > 0.01


def of_generator(pipe, plain):
    with pytest.raises(UserError, match="no seed and no generator of NumPy"):
        frames(pipe, seed=None, generator=object())
    one, two = (frames(pipe, seed=None, generator=np.random.default_rng(1)) for _ in range(2))
    return same(pipe, plain, seed=None, generator=5) and np.array_equal(one, two)


def of_outputs(pipe, plain):
    images, floats, tensor, ints = (frames(pipe, output_type=kind) for kind in ("pil", "np", "ms", "uint8"))
    assert np.array_equal(np.stack([np.asarray(image) for image in images[0]]), ints[0])
    assert isinstance(tensor, ms.Tensor) and np.array_equal(tensor.asnumpy().transpose(0, 1, 3, 4, 2), floats)
    with pytest.raises(UserError, match="'pt' is not known; choose one of pil, np, ms"):
        frames(pipe, output_type="pt")
    return floats.dtype == np.float32 and tensor.shape == (1, 3, 3, 16, 16)


def of_eta(pipe, plain):
    with pytest.raises(UserError, match="eta = 1.0 has no meaning for unipc"):
        frames(pipe, eta=1.0, sampler="unipc")
    return error(frames(pipe, eta=1.0), plain) > 1e-3


def of_cleaning(pipe, plain):
    if captions_are_there():
        return np.array_equal(frames(pipe, "X https://a.com/b", clean_caption=True), plain)
    with pytest.raises(UserError, match="pip install beautifulsoup4 ftfy"):
        frames(pipe, clean_caption=True)
    return True


def captions_are_there():
    try:
        captions.check_packages()
    except UserError:
        return False
    return True


CALLS = {  # argument: whether its row is true
    "prompt": lambda pipe, plain: len(frames(pipe, ["x", "y"])) == 2,
    "negative_prompt": lambda pipe, plain: error(frames(pipe, "x", "y"), plain) > 1e-5,
    "num_inference_steps": lambda pipe, plain: pipe.net.config.default_steps == 50,
    "timesteps": lambda pipe, plain: same(
        pipe, frames(pipe, sampler="ddim"), sampler="ddim", num_inference_steps=None, timesteps=[500, 0]
    ),
    "guidance_scale": lambda pipe, plain: (
        same(pipe, plain, guidance_scale=7.5) and same(pipe, frames(pipe, guidance_scale=1), guidance_scale=0.5)
    ),
    "num_images_per_prompt": lambda pipe, plain: np.array_equal(frames(pipe, num_images_per_prompt=2)[:1], plain),
    "video_length": lambda pipe, plain: frames(pipe, video_length=2).shape[1] == 2,
    "height": lambda pipe, plain: frames(pipe, height=24).shape[3] == 12,
    "width": lambda pipe, plain: frames(pipe, width=8).shape[4] == 4,
    "eta": of_eta,
    "generator": of_generator,
    "latents": of_latents,
    "prompt_embeds": of_prompts,
    "negative_prompt_embeds": of_prompts,
    "output_type": of_outputs,
    "return_dict": lambda pipe, plain: np.array_equal(pipe("x", return_dict=False, **SHORT)[0], plain),
    "callback_on_step_end": of_callback,
    "callback_on_step_end_tensor_inputs": of_wanted,
    "clean_caption": of_cleaning,
    "mask_feature": lambda pipe, plain: np.array_equal(frames(pipe, ["x", "a longer one"])[:1], plain),
    "enable_temporal_attentions": lambda pipe, plain: error(frames(pipe, enable_temporal_attentions=False), plain) > 0,
    "decode_chunk_size": lambda pipe, plain: np.array_equal(
        frames(pipe, decode_chunk_size=2, output_type="uint8"), frames(pipe, output_type="uint8")
    ),
}


LONGER = (
    "height",
    "width",
    "video_length",
    "negative_prompt_embeds",
    "decode_chunk_size",
    "enable_temporal_attentions",
)


@pytest.mark.parametrize(
    "argument", [pytest.param(name, marks=pytest.mark.slow) if name in LONGER else name for name in CALLS]
)
def test_a_row_of_the_call(argument, pipe, plain):
    assert CALLS[argument](pipe, plain)


@pytest.mark.parametrize(
    "argument",
    sorted({*NAMES["from_pretrained"], *LEFT_OUT} - {"torch_dtype", "dtype", "pretrained_model_name_or_path"}),
)
def test_a_row_of_loading(argument):
    with pytest.raises(
        UserError, match=f"^from_pretrained has no argument '{argument}': {re.escape(LEFT_OUT[argument])}$"
    ):
        LattePipeline.from_pretrained(FOLDER, **{argument: None})


def test_the_order_of_the_arguments_is_that_of_diffusers():
    import inspect

    assert list(inspect.signature(LattePipeline.__call__).parameters)[1 : len(NAMES["call"]) + 1] == NAMES["call"]


def test_layouts_are_told_by_the_shape_alone():
    values = np.arange(1 * 3 * 4 * 2 * 2).reshape(1, 3, 4, 2, 2)
    ours = ordered_latents(values, (1, 3, 4, 2, 2), None)
    assert ours.dtype == np.float32 and np.array_equal(ours, values)
    assert np.array_equal(ordered_latents(values.transpose(0, 2, 1, 3, 4), (1, 3, 4, 2, 2), None), values)
    square = np.arange(16.0).reshape(1, 4, 4, 1, 1)
    assert np.array_equal(ordered_latents(square, (1, 4, 4, 1, 1), "BFCHW"), square)
    assert np.array_equal(ordered_latents(square, (1, 4, 4, 1, 1), "BCFHW"), square.transpose(0, 2, 1, 3, 4))
    for wrong, layout in ((values[:, :2], None), (values, "BCFHW"), (values.astype(str), None), (3, None)):
        with pytest.raises(UserError, match="these videos take"):
            ordered_latents(wrong, (1, 3, 4, 2, 2), layout)


def test_an_interrupted_sampling_returns_what_has_begun(pipe):
    options = SHORT | {"num_inference_steps": 4, "guidance_scale": 1.0}
    steps, states = [], []

    def stop(pipe, step, t, arrays):
        steps.append(step)
        states.append(arrays["latents"])
        pipe.interrupt = step == 1 and len(steps) > 4  # in the second video

    made = pipe(["x", "y", "z"], callback_on_step_end=stop, **options)
    assert steps == [0, 1, 2, 3, 0, 1] and made.frames.shape[0] == 2 and made.seeds == (5, 6)
    assert np.array_equal(made.frames[1], states[-1][0])
    assert np.array_equal(made.frames[:1], pipe("x", **options).frames)  # and the next call is not interrupted


def test_guidance_rescale_gives_the_deviation_of_the_condition(pipe, plain):
    rng = np.random.default_rng(0)
    cond, uncond = (rng.normal(size=(2, 3, 8, 4, 4)).astype(np.float32) for _ in range(2))
    eps, none = cond[:, :, :4], uncond[:, :, :4]
    guided = none + 7.0 * (eps - none)
    ratio = eps.std((1, 2, 3, 4), keepdims=True) / guided.std((1, 2, 3, 4), keepdims=True)
    scale = ms.Tensor(np.float32([7.0, 0.6]))
    out = guide(ms.Tensor(cond), ms.Tensor(uncond), scale, 4).asnumpy()
    assert error(out[:, :, :4], 0.6 * guided * ratio + 0.4 * guided) <= 1e-5
    assert np.array_equal(out[:, :, 4:], cond[:, :, 4:])
    assert same(pipe, plain, guidance_rescale=0.0) and error(frames(pipe, guidance_rescale=0.7), plain) > 1e-3
    alone = frames(pipe, guidance_scale=1.0)
    assert np.array_equal(frames(pipe, guidance_scale=1.0, guidance_rescale=0.7), alone)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_that_of_its_own_configuration(name):
    solver = Solver(name, beta_schedule="scaled_linear", beta_end=0.012)
    again = Solver.from_config(solver.config)
    assert again.name == name and again.steps(20).sigmas == solver.steps(20).sigmas
    assert again.steps(20).timesteps.tolist() == solver.steps(20).timesteps.tolist()
    other = Solver.from_config(solver.config, "unipc", steps_offset=0)
    assert other.name == "unipc" and other.beta_end == 0.012


def test_the_scheduler_can_be_set(plain):
    pipe = LattePipeline.from_pretrained(FOLDER)
    assert pipe.scheduler.name == "ddim" and pipe.scheduler.spacing == "leading"
    given = frames(pipe, sampler="unipc")
    pipe.scheduler = Solver.from_config(pipe.scheduler.config, "unipc")
    assert same(pipe, given) and "scheduler: unipc" in repr(pipe)
    assert same(pipe, plain, sampler="ddim")
    for wrong, words in (("unipc", "is a str, but must be a Solver"), ({}, "is a dict, but must be a Solver")):
        with pytest.raises(UserError, match=words):
            pipe.scheduler = wrong
    for wrong, options, words in (
        (3, {}, "config is int, but must be a dictionary"),
        ({"_class_name": "LCMScheduler"}, {}, "no solver for the scheduler LCMScheduler"),
        (pipe.scheduler.config, {"order": 3}, "a Solver has no option 'order'"),
    ):
        with pytest.raises(UserError, match=words):
            Solver.from_config(wrong, **options)


@pytest.mark.slow
def test_slices_and_tiles_of_the_autoencoder(pipe, monkeypatch):
    sizes = []
    decode = Codec._decoded
    monkeypatch.setattr(Codec, "_decoded", lambda codec, z: sizes.append((len(z), codec.tile)) or decode(codec, z))
    usual = pipe.codec.frames_per_slice
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling(16)
    assert "tiles of 16" in repr(pipe)
    pipe.decode(NOISE)
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert sizes == [(1, 16)] * 3 and pipe.codec.frames_per_slice == usual and pipe.codec.tile == 0
    for wrong in (0, 7, True, 8.0, "8"):
        with pytest.raises(UserError, match="must be a multiple of 2 pixels"):
            pipe.enable_vae_tiling(wrong)
    with pytest.raises(UserError, match="frames"):
        pipe.enable_vae_slicing(0)


def test_progress_bars_take_options_of_tqdm(pipe, capsys):
    pipe.set_progress_bar_config(desc="my words")
    frames(pipe, progress=True)
    assert "my words" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    frames(pipe, progress=True)
    assert not capsys.readouterr().err
    pipe.set_progress_bar_config()


def test_a_saved_text_to_video_pipeline_makes_the_same_videos(tmp_path):
    pipe = LattePipeline.from_pretrained(FOLDER, sd_scale_factor=0.2)
    pipe.load_lora_weights(LORA)
    pipe.scheduler = Solver.from_config(pipe.scheduler.config, "unipc")
    made = frames(pipe, output_type="uint8")
    folder = pipe.save_pretrained(tmp_path / "saved")
    again = LattePipeline.from_pretrained(folder)
    assert np.array_equal(frames(again, output_type="uint8"), made) and again.scheduler.name == "unipc"
    assert read_json(folder / "vae" / "config.json")["down_block_types"] == ["DownEncoderBlock2D"] * 2
    assert read_json(FOLDER / "scheduler" / "scheduler_config.json")["_class_name"] == "DDIMScheduler"  # is untouched
    with pytest.raises(UserError, match="is there already"):
        pipe.save_pretrained(folder)
    pipe.prompts = None
    with pytest.raises(UserError, match="has no text encoder to save"):
        pipe.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_saved_class_conditional_pipeline_makes_the_same_videos(tmp_path):
    pipe = LattePipeline.from_pretrained(FIXTURES / "latte_class.pt", FIXTURES / "vae.bin", num_frames=3)
    options = {"num_inference_steps": 2, "seed": 0, "progress": False, "output_type": "uint8"}
    pipe.scheduler = Solver.from_config(pipe.scheduler.config, "ddim")
    made = pipe(class_labels=[1], **options).frames
    again = LattePipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved"))
    assert np.array_equal(again(class_labels=[1], **options).frames, made) and made.shape[1] == 3
    assert again.scheduler.name == "ddim" and again.net.config.num_frames == 3


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_takes_the_place_of_an_attribute_is_there(name, pipe):
    assert not hasattr(pipe, name)
    said = ELSEWHERE[name]
    with pytest.raises(AttributeError, match=re.escape(f"{name!r} here: {said}")):
        getattr(pipe, name)
    for path in re.findall(r"pipe\.([\w.]+\w)", said):
        operator.attrgetter(path)(pipe)


def test_a_misspelt_attribute_is_told_the_nearest(pipe):
    with pytest.raises(AttributeError, match="'enable_vae_tilling'; the nearest is 'enable_vae_tiling'"):
        pipe.enable_vae_tilling()


def test_captions_are_cleaned_as_diffusers_does():
    if not captions_are_there():
        pytest.skip("needs beautifulsoup4 and ftfy")
    for text, expected in json.loads((LORA / "captions.json").read_text()).items():
        assert captions.clean_caption(text) == expected


@pytest.mark.slow
def test_prompts_are_cleaned_where_the_packages_are(pipe, monkeypatch):
    for name in captions.PACKAGES:
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["ftfy"].fix_text = lambda text: text
    sys.modules["bs4"].BeautifulSoup = lambda text, features: types.SimpleNamespace(text=text)
    assert np.array_equal(frames(pipe, "X https://a.com/b", clean_caption=True), frames(pipe, "x"))
    assert np.array_equal(frames(pipe, ["X @me"], ["(y)"], clean_caption=True), frames(pipe, "x", "y"))
