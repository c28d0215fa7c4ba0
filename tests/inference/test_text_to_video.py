"""Text to video from a folder: the pipeline against diffusers, its arguments, sample.py, and refusals."""

import dataclasses
import json
import re
import shutil
import sys

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, recorded

from latte import LattePipeline, export_to_gif, export_to_video
from latte.commands import sample
from latte.components import text_encoder
from latte.data.demo import make_clip
from latte.errors import UserError
from latte.inference.pipeline import dtype_name
from latte.io.video import fit, read_any, read_video, save_png_frames
from latte.runtime import device

SLOW, LONG = pytest.mark.slow, [pytest.mark.slow, pytest.mark.long]
FOLDER = FIXTURES / "latte_t2v"
QUIET = {"progress": False, "output_type": "latent"}
SHORT = QUIET | {"num_inference_steps": 2, "video_length": 4, "seed": 5}  # as long as the recorded ones: same graphs


@pytest.fixture(scope="module")
def pipe():
    return LattePipeline.from_pretrained(FOLDER)


def called():
    """Return the arguments that the recorded videos were made with."""
    described = json.loads((FIXTURES / "latte_t2v.json").read_text())
    noise = recorded("latte_t2v")["latents"].transpose(0, 2, 1, 3, 4)
    return described | {"latents": noise, "latents_layout": "BFCHW", "progress": False}


@pytest.mark.parametrize("target", ["CPU", pytest.param("GPU", marks=SLOW)])
def test_the_recorded_pipeline(pipe, target):
    data = recorded("latte_t2v")
    with device.use(target):
        pipe = pipe if target == "CPU" else LattePipeline.from_pretrained(FOLDER)
        made = pipe(**called(), output_type="latent").frames
    assert error(made, data["pipeline_latents"].transpose(0, 2, 1, 3, 4)) <= 1e-3
    frames = pipe.decode(made, "np")
    assert np.abs(frames - data["pipeline_frames"].transpose(0, 1, 3, 4, 2)).max() <= 1e-3


def test_output_types(pipe, tmp_path):
    arguments = called() | {"num_inference_steps": 2}
    images = pipe(**arguments).frames[0]
    floats, ints = (pipe(**arguments, output_type=kind).frames[0] for kind in ("np", "uint8"))
    assert len(images) == 4 and images[0].size == (16, 16)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), ints)
    assert floats.dtype == np.float32 and np.abs(floats * 255 - ints).max() <= 0.51
    assert np.array_equal(read_any(export_to_gif(ints, tmp_path / "a.gif")).shape, ints.shape)
    assert read_video(export_to_video(floats, tmp_path / "a.mp4")).shape == ints.shape


@pytest.mark.slow
def test_prompts_and_embeddings_are_the_same(pipe):
    prompts = ["a dog", "A DOG ", "", "🦊 ../../etc/passwd", "a dog"]
    made = pipe(prompts, guidance_scale=3.0, **(SHORT | {"seed": [5, 5, 6, 7, 5]})).frames
    assert made.shape == (5, 4, 4, 8, 8) and np.isfinite(made).all()
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[4])  # stripped, in lower case
    assert error(made[2], made[3]) > 0.1
    embeds, _ = pipe.prompts.encode(["a dog", ""])
    options = SHORT | {"guidance_scale": 3.0}
    unmasked = pipe("a dog", mask_feature=False, **options).frames
    given = pipe(prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:], **options).frames
    assert np.array_equal(given, unmasked) and error(unmasked[0], made[0]) > 1e-4
    assert error(pipe("a dog", negative_prompt="a cat", **options).frames[0], made[0]) > 1e-4


@SLOW
def test_a_batch_is_its_videos(pipe):
    together = pipe(["a dog", "a small red cat"], num_videos_per_prompt=2, **SHORT).frames
    alone = pipe("a small red cat", **(SHORT | {"seed": 8})).frames
    assert np.array_equal(together[3:], alone)
    with device.use("GPU"):
        batched = LattePipeline.from_pretrained(FOLDER)(["a dog", "a small red cat"], num_videos_per_prompt=2, **SHORT)
    assert error(batched.frames, together) <= 1e-4


def test_five_hundred_words(pipe, caplog):
    assert np.isfinite(pipe("word " * 500, **SHORT).frames).all()
    assert "longer than 120 tokens" in caplog.text


@pytest.mark.slow
def test_sizes_and_lengths(pipe):
    assert pipe("x", height=24, width=8, **(SHORT | {"video_length": 7})).frames.shape == (1, 7, 4, 12, 4)
    image = pipe("x", **(SHORT | {"video_length": 1})).frames
    same = pipe("x", enable_temporal_attentions=False, **(SHORT | {"video_length": 1})).frames
    assert image.shape == (1, 1, 4, 8, 8) and np.array_equal(image, same)


@pytest.mark.parametrize("solver", ["ddpm", "pndm", pytest.param("kdpm2_a", marks=LONG), "unipc"])
def test_every_solver(pipe, solver):
    made = pipe("x", sampler=solver, **(SHORT | {"num_inference_steps": 5})).frames
    assert np.isfinite(made).all() and made.std() > 0.1


def test_seeds_and_generators(pipe):
    a, b = (pipe("x", generator=np.random.default_rng(1), **(SHORT | {"seed": None})).frames for _ in range(2))
    assert np.array_equal(a, b) and not np.array_equal(a, pipe("x", **(SHORT | {"seed": None})).frames)


@pytest.mark.parametrize("solver", ["unipc", *(pytest.param(name, marks=LONG) for name in ("ddim", "ddpm", "heun"))])
def test_conditioning_frames_stay(pipe, solver):
    given = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    options = SHORT | {"num_inference_steps": 8, "sampler": solver, "guidance_scale": 1.0}
    mean = np.split(pipe.codec.moments(given.transpose(0, 3, 1, 2) / np.float32(127.5) - 1), 2, 1)[0] * 0.18215
    made = pipe("x", frames=given, **options).frames
    assert error(made[0, :2], mean) <= 1e-5
    last = pipe("x", frames=given, frame_indices=[3, 0], **options).frames
    assert error(last[0, [3, 0]], mean) <= 1e-5
    assert error(made[0, 2:], pipe("x", **options).frames[0, 2:]) > 1e-5  # the other frames have seen them


@pytest.mark.slow
def test_strength_keeps_more_of_the_conditioning_frames(pipe):
    given = np.full((1, 16, 16, 3), 200, np.uint8)
    options = SHORT | {"video_length": 3, "num_inference_steps": 10, "sampler": "dpmpp_2m", "frames": given}
    clean, calls = pipe("x", **options).frames[:, :1], []
    near, far = (pipe("x", strength=strength, **options).frames[:, 1:] for strength in (0.2, 1.0))
    assert np.abs(near - clean).mean() < np.abs(far - clean).mean() / 2
    pipe("x", strength=0.2, callback_on_step_end=lambda *told: calls.append(told[2]), **options)
    assert calls == sorted(calls, reverse=True) and len(calls) == 2 and calls[0] < 200
    for wrong in ({"strength": 0.0}, {"strength": 0.5, "frames": None}):
        with pytest.raises(UserError, match="strength"):
            pipe("x", **(options | wrong))


def test_the_steps_themselves_lead_to_the_conditioning_frames(pipe, monkeypatch):
    """Not only the last line, which puts them in exactly."""
    given, ends = np.full((1, 16, 16, 3), 200, np.uint8), []
    note = lambda pipe, step, t, told: ends.append(told["latents"][:, :1])  # noqa: E731
    options = SHORT | {"num_inference_steps": 10, "sampler": "ddim"}
    made = pipe("x", frames=given, callback_on_step_end=note, **options).frames
    assert error(ends[-1], made[:, :1]) <= 1e-3


@pytest.mark.slow
def test_feature_cache(pipe):
    options = SHORT | {"num_inference_steps": 20}
    exact = pipe("x", **options).frames
    barely = pipe("x", feature_cache=1e-9, **options).frames
    assert np.array_equal(barely, exact) and pipe.latents.skipped == 0
    reused = pipe("x", feature_cache=0.2, **options).frames
    share = pipe.latents.skipped
    assert 0.1 < share < 0.9 and 1e-6 < error(reused, exact) < 0.1


@SLOW
def test_a_schedule(pipe):
    """Of blocks over patches and over frames, with guidance; a prompt's video is the same beside another one."""
    options = SHORT | {"num_inference_steps": 8, "cache": "every2-order2"}
    exact = pipe("x", **options | {"cache": None}).frames
    made = pipe(["y", "x"], **options | {"seed": [4, 5]}).frames
    assert pipe.latents.skipped == 3 / 8 and np.array_equal(pipe("x", **options).frames[0], made[1])
    assert 1e-6 < error(made[1:], exact) < 0.1
    held = {"frames": np.full((1, 16, 16, 3), 200, np.uint8), "strength": 0.5}
    assert np.isfinite(pipe("x", **options, **held).frames).all() and pipe.latents.skipped == 1 / 4
    with pytest.raises(UserError, match="must ask for 2 to 8"):
        pipe("x", **options | {"cache": "calls9"})


@SLOW
def test_feature_cache_as_graphs_of_the_accelerators_form(pipe):
    options = SHORT | {"num_inference_steps": 20, "feature_cache": 0.2}
    reused = pipe("x", **options).frames
    with device.use("GPU"):
        graphs = LattePipeline.from_pretrained(FOLDER)
        assert error(graphs("x", **options).frames, reused) <= 1e-3
    assert graphs.latents.skipped == pipe.latents.skipped


@SLOW
def test_the_temporal_decoder_and_tiles(pipe):
    options = SHORT | {"output_type": "np"}
    plain = pipe("x", **options).frames
    together = LattePipeline.from_pretrained(FOLDER, enable_vae_temporal_decoder=True)
    assert together.codec.vae.config.temporal_decoder
    made = together("x", **options).frames
    assert made.shape == plain.shape and error(made, plain) > 1e-3
    assert error(together("x", decode_chunk_size=2, **options).frames, made) > 1e-6  # frames are decoded together
    assert error(pipe("x", decode_chunk_size=3, **options).frames, plain) <= 1e-5
    tiled = LattePipeline.from_pretrained(FOLDER, vae_tile=12)("x", **options).frames
    assert tiled.shape == plain.shape and 0 < np.abs(tiled - plain).max() < 0.2


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, "give either a prompt"),
        ({"prompt": []}, "a list of one or more"),
        ({"prompt": [1]}, "a text or a list"),
        ({"prompt": "half an emoji \ud83e"}, "no valid Unicode"),
        ({"prompt": "x", "prompt_embeds": np.zeros((1, 3, 32))}, "give either"),
        ({"prompt_embeds": np.zeros((1, 3, 31))}, r"\(1, 3, 31\); this network takes \(1, tokens, 32\)"),
        ({"prompt": "x", "height": 17}, "multiples of 4"),
        ({"prompt": "x", "video_length": -1}, "video_length must be a whole number from 1"),
        ({"prompt": "x", "video_length": 0}, "video_length must be a whole number from 1"),
        ({"prompt": "x", "height": 0}, "height must be a whole number from 1"),
        ({"prompt": "x", "decode_chunk_size": 0}, "decode_chunk_size must be a whole number from 1"),
        ({"prompt": "x", "feature_cache": float("nan")}, "feature_cache must be a number from 0 to 1, but is nan"),
        ({"prompt": "x", "feature_cache": -1}, "feature_cache must be a number from 0 to 1, but is -1"),
        ({"prompt": "x", "guidance_scale": "7.5"}, "guidance_scale is '7.5', but must be a finite number"),
        ({"prompt": "x", "sampler": 3}, "sampler is 3, but must be the name of a solver"),
        (
            {"prompt": "x", "latents_layout": "BFCHW", "latents": np.full((1, 4, 4, 8, 8), np.nan)},
            "latents hold values that are not finite",
        ),
        ({"prompt": "x", "class_labels": [1]}, "give a prompt"),
        ({"prompt": "x", "sampler": "eulr"}, "the nearest is 'euler'"),
        ({"prompt": "x", "eta": 0.5, "sampler": "heun"}, "eta = 0.5 has no meaning"),
        ({"prompt": ["x", "y"], "negative_prompt": ["a", "b", "c"]}, "2 prompts, but 3 of negative_prompt"),
        ({"prompt": "x", "seed": [1, 2]}, "1 videos, but 2 seeds"),
        ({"prompt": "x", "latents": np.zeros((1, 4, 4, 8, 7))}, r"latents are float64 \(1, 4, 4, 8, 7\)"),
        ({"prompt": "x", "latents": np.zeros((1, 4, 4, 8, 8))}, "as many frames as channels; say which come first"),
        ({"prompt": "x", "latents": np.zeros((1, 4, 4, 8, 8)), "latents_layout": "BFHWC"}, "choose BFCHW or BCFHW"),
        ({"prompt": "x", "frames": np.zeros((1, 15, 16, 3), np.uint8)}, "these videos take uint8"),
        ({"prompt": "x", "frames": np.zeros((1, 16, 16, 3), np.uint8), "frame_indices": [9]}, "0 to 3"),
        ({"prompt": "x", "output_type": "avi"}, "choose one of pil"),
        ({"prompt": 3}, "prompt must be a text or a list"),
        (
            {"prompt": "x", "num_inference_steps": 0},
            "num_inference_steps is 0, but must be a whole number from 1 to 1000",
        ),
        ({"prompt": "x", "num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"prompt": "x", "timesteps": [1]}, "either num_inference_steps or timesteps"),
        ({"prompt": "x", "num_inference_steps": None, "timesteps": [1, 2]}, "timesteps must be .* that fall"),
        ({"prompt": "x", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": "x", "num_images_per_prompt": 2, "num_videos_per_prompt": 3}, "two names for one number"),
        ({"prompt": "x", "guidance": 3}, "no argument 'guidance'; the nearest is 'guidance_scale'"),
        ({"prompt": "x", "guidance_rescale": 2}, "guidance_rescale"),
        ({"prompt": "x", "callback_on_step_end": 3}, "is a int, but must be a function"),
        (
            {"prompt": "x", "callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["timestep"]},
            "has 'timestep'; what there is here to tell",
        ),
        ({"prompt": "x", "callback_on_step_end": lambda *told: True}, "it returned something else"),
        (
            {"prompt": "x", "callback_on_step_end": lambda *told: {"latents": np.zeros(3)}},
            r"returned latents .* \(3,\)",
        ),
    ],
)
def test_arguments_that_cannot_be(pipe, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        pipe(**(SHORT | arguments))
    assert "\n" not in str(caught.value)


def test_arguments_of_diffusers(pipe):
    options = {"progress": False, "output_type": "latent", "video_length": 4, "seed": 5}
    made = pipe("x", "", 2, **options)
    assert made[0] is made.frames and made.seeds == (5,)
    (same,) = pipe("x", num_inference_steps=2, return_dict=False, **options)
    assert np.array_equal(same, made[0])
    listed = pipe("x", timesteps=[999, 500, 1], guidance_scale=1, num_images_per_prompt=2, **options)
    assert listed[0].shape[0] == 2 and listed.seeds == (5, 6)


def test_a_guidance_scale_of_zero_is_the_prompt_alone_with_one_call_a_step(pipe):
    calls = len(pipe.latents.step_seconds)
    zero, one = (pipe("x", guidance_scale=scale, **SHORT).frames for scale in (0, 1))
    assert np.array_equal(zero, one) and len(pipe.latents.step_seconds) == calls + 4


def test_a_callback_may_change_the_latents(pipe):
    options = SHORT | {"num_inference_steps": 3, "sampler": "ddim", "guidance_scale": 1}
    plain, seen = pipe("x", **options).frames, []

    def unchanged(pipe, step, t, told):
        seen.append(told["latents"].shape)
        return told

    def halved(pipe, step, t, told):
        return {"latents": told["latents"] * 0.5}

    assert np.array_equal(pipe("x", callback_on_step_end=unchanged, **options).frames, plain)
    assert seen == [(1, 4, 4, 8, 8)] * 3
    last = lambda pipe, step, t, told: {"latents": told["latents"] * 0.5} if step == 2 else None  # noqa: E731
    assert np.array_equal(pipe("x", callback_on_step_end=last, **options).frames, plain * np.float32(0.5))
    assert error(pipe("x", callback_on_step_end=halved, **options).frames, plain * 0.5) > 1e-2


def test_the_text_encoder_can_be_kept(monkeypatch):
    loads, network = [], text_encoder._network
    monkeypatch.setattr(
        text_encoder, "_network", lambda *given, stream: loads.append(stream) or network(*given, stream=stream)
    )
    for keep, expected in ((True, [False]), (False, [False, True, True])):
        prompts = text_encoder.Prompts(FOLDER, keep=keep)
        prompts.encode(["a dog"])
        prompts.encode(["a cat"])
        assert loads == expected


@pytest.mark.parametrize(
    "options, words",
    [
        ({"device_map": "auto"}, "from_pretrained has no argument 'device_map': give device_target"),
        ({"num_frames": 4}, "a text-to-video folder determines this"),
        ({"torch_dtype": "int8"}, "dtype int8 is not known"),
        ({"dtype": "fp32", "torch_dtype": "float16"}, "dtype and torch_dtype are fp16 and fp32"),
        ({"device_target": "GPU"}, "device_target is GPU, but this process computes on CPU"),
    ],
)
def test_options_of_from_pretrained_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        LattePipeline.from_pretrained(FOLDER, **options)


@pytest.mark.parametrize(
    "dtype, name",
    [
        ("fp16", "fp16"),
        ("torch.bfloat16", "bf16"),
        (np.float16, "fp16"),
        (np.dtype("float32"), "fp32"),
        (ms.float16, "fp16"),
        (None, "fp32"),
    ],
)
def test_dtypes_of_other_libraries(dtype, name):
    assert dtype_name(None, dtype) == name


def broken(folder, how):
    shutil.copytree(FOLDER, folder)
    if how == "no index":
        (folder / "model_index.json").unlink()
    elif how == "other pipeline":
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    elif how in ("tokenizer", "text_encoder", "scheduler", "vae"):
        shutil.rmtree(folder / how)
    elif how == "half a file":
        file = folder / "text_encoder" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
    return str(folder)


@pytest.mark.parametrize(
    "how, words",
    [
        ("no index", "has no model_index.json"),
        ("other pipeline", "a folder of StableDiffusionPipeline"),
        ("tokenizer", "has no folder tokenizer"),
        ("text_encoder", "has no folder text_encoder"),
        ("scheduler", "has no folder scheduler"),
        ("vae", "has no folder vae"),
        ("half a file", "model.safetensors is a safetensors file that is cut off"),
    ],
)
def test_broken_folders(tmp_path, how, words):
    with pytest.raises(UserError, match=words):
        LattePipeline.from_pretrained(broken(tmp_path / "model", how))("x", **SHORT)


def run_sample(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    sample.main()


def test_sample_program(tmp_path, monkeypatch, capsys):
    prompts = ["", "Ä 🦊 ../../etc/passwd", "word " * 500, "a dog", "a dog"]
    prompts = json.dumps(prompts, ensure_ascii=False)
    arguments = ("--checkpoint", FOLDER, "--prompts", prompts, "--num_frames", 4, "--sampling_steps", 2)
    arguments += ("--output_path", tmp_path / "out", "--output_format", "png")
    run_sample(monkeypatch, *arguments, "--dry_run")
    assert "5 videos of 4 frames, 16 x 16 pixels, 2 ddim steps, guidance 7.5" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    run_sample(monkeypatch, *arguments)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert (
        names[0] == "video-0000-seed42"
        and re.fullmatch("video-0001-seed43-etc-passwd-[0-9a-f]{8}", names[1])
        and names[3:]
        == [
            "video-0003-seed45-a-dog",
            "video-0004-seed46-a-dog",
        ]
    )
    assert names[2].startswith("video-0002-seed44-word-word") and len(names[2]) <= 100


@SLOW
def test_a_class_conditional_folder_and_file():
    demo = FIXTURES.parents[1] / "models" / "demo"
    pipe = LattePipeline.from_pretrained(demo)
    made = pipe(class_labels=1, num_inference_steps=2, sampler="dpmpp_2m", seed=0, progress=False, output_type="uint8")
    assert made.frames.shape == (1, 16, 64, 64, 3)
    with pytest.raises(UserError, match="no text encoder"):
        pipe("a cloud")
    with pytest.raises(UserError, match="video_length is 16"):
        pipe(class_labels=1, video_length=8)
    with pytest.raises(UserError, match="needs an autoencoder"):
        LattePipeline.from_pretrained(demo / "latte.safetensors")


@SLOW
def test_a_video_goes_on(tmp_path, monkeypatch):
    clip = make_clip(0, 3, num_frames=5, size=96)
    save_png_frames(clip, tmp_path / "given")
    demo = FIXTURES.parents[1] / "configs" / "inference" / "demo.yaml"
    few = ("--num_samples", 1, "--sampling_steps", 2, "--output_format", "png", "--output_path", tmp_path / "out")
    run_sample(monkeypatch, "-c", demo, "--init_frames", tmp_path / "given", "--init_count", 3, *few)
    (folder,) = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    rmse = np.sqrt(np.mean((read_any(folder)[:3].astype(float) - fit(clip[2:], 64, 64)) ** 2))
    assert rmse < 15  # what the autoencoder loses


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--checkpoint", FOLDER), "give prompts"),
        (("--checkpoint", FOLDER, "--prompts", "x", "--class_labels", "[1]"), "class_labels is for other"),
        (("--checkpoint", FOLDER, "--prompts", "x", "--image_size", 16, "--width", 16), "give either"),
        (
            ("--checkpoint", FIXTURES / "latte_class.pt", "--prompts", "x", "--vae_checkpoint", FIXTURES / "vae.bin"),
            "prompts are for networks conditioned on text; .* is conditioned on classes",
        ),
        (("--checkpoint", FOLDER, "--prompts", "x", "--init_frames", "nowhere.png"), "nowhere.png"),
        (("--checkpoint", FOLDER, "--prompts", "x\udce9", "--dry_run"), "no valid Unicode: .*; type it in UTF-8"),
    ],
)
def test_options_that_cannot_be(arguments, words, monkeypatch):
    with pytest.raises(UserError, match=words):
        run_sample(monkeypatch, *arguments)


def test_requests_are_split_by_rows():
    from latte.inference.latents import Request

    request = Request(seeds=[1, 2], shape=(1, 4, 2, 2), conditions=(np.arange(2),), latents=np.zeros((2, 1, 4, 2, 2)))
    one = request.one(1)
    assert one.seeds == [2] and one.conditions[0].tolist() == [1] and one.latents.shape == (1, 1, 4, 2, 2)
    assert dataclasses.replace(one, seeds=[1]).shape == request.shape
