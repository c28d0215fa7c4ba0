"""The programs on MindSpore's Ascend back end over the stand-in, as a user types them, beside the same on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ascend import standin
from support.golden_values import FIXTURES, ROOT, error
from support.runs import SAMPLES, frames, losses, metrics, run, state, words, write_clips
from support.t2v import FOLDER, write_captioned

from latte.io.video import save_mp4

pytestmark = pytest.mark.slow
LONG = pytest.mark.long  # by hand, and before a release: `pytest tests/ascend -m slow`
STEPS = ("--sampling_steps", 4, "--sampler", "ddim", "--guidance_scale", 2, "--output_format", "png")
ATTENTION = "aclnnFlashAttentionScore"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    return write_captioned(tmp_path_factory.mktemp("captioned"))


UNCONDITIONAL = (
    "--checkpoint",
    FIXTURES / "latte_uncond.pt",
    "--vae_checkpoint",
    FIXTURES / "vae.bin",
    "--guidance_scale",
    1,
)


@pytest.mark.parametrize(
    "options, bound, attends",
    [
        (SAMPLES["class"], 0.01, False),
        pytest.param(UNCONDITIONAL, 0.01, False, marks=LONG),
        pytest.param(SAMPLES["text"], 0.01, False, marks=LONG),
        pytest.param((*SAMPLES["text"], "--quantize", "int8"), 0.01, False, marks=LONG),
        pytest.param((*SAMPLES["class"], "--dtype", "fp16"), 1, False, marks=LONG),
        pytest.param((*SAMPLES["text"], "--dtype", "bf16", "--quantize", "int8"), 4, False, marks=LONG),
        ((*SAMPLES["class"], "--dtype", "fp16", "--enable_flash_attention"), 1, True),
        ((*SAMPLES["text"], "--dtype", "bf16", "--enable_flash_attention"), 4, True),
    ],
    ids=["class", "unconditional", "text", "int8", "fp16", "bf16 int8", "fp16 flash", "text bf16 flash"],
)
def test_sample(options, bound, attends, on_standin, tmp_path):
    exact = [word for word in options if word not in ("--dtype", "fp16", "bf16", "--enable_flash_attention")]
    run("sample.py", *STEPS, *exact, "--device_target", "CPU", "--output_path", tmp_path / "cpu")
    given = ("--device_target", "Ascend", "--output_path", tmp_path / "ascend")
    done = on_standin("sample.py", *STEPS, *options, *given)
    expected = frames(tmp_path / "cpu")
    assert expected.std() > 1
    assert np.abs(frames(tmp_path / "ascend") - expected).mean() < bound  # of 255 shades
    assert (done.launches[ATTENTION] > 0) == attends


CACHES = ("ddim", "ddpm every2-order2", "unipc calls4-order1+fastercache:3", "dpmpp_2m pab", "ddim teacache")


def test_the_host_waits_for_no_call_but_the_one_before(on_standin, tmp_path):
    """With guidance in fp16, whatever is skipped; only TeaCache has to look at a number in each call."""
    done = on_standin("tests/ascend/waits.py", tmp_path / "videos.npz", *CACHES)
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [name == "ddim teacache", 1] for name in CACHES}
    videos = np.load(tmp_path / "videos.npz")
    for name in CACHES:
        two, three = (videos[f"{name}, {count} videos"] for count in (2, 3))
        assert np.array_equal(two, three[1:]) and two.std() > 1


def test_forms_that_only_ascend_takes_have_gradients(on_standin):
    """In graphs MindSpore's own gradient of a slice is zero there."""
    found, expected = (
        json.loads(start("tests/ascend/gradients.py", target).stdout.splitlines()[-1])
        for start, target in ((on_standin, "Ascend"), (run, "CPU"))
    )
    assert len(expected) == 7
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-5, err_msg=name)


@LONG
def test_training_and_sampling_by_clip_text(tmp_path, on_standin):
    rows = ["video,caption"]
    for k in range(3):
        save_mp4(np.random.default_rng(k).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8), tmp_path / f"{k}.mp4")
        rows.append(f"{k}.mp4,video {k}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    text = np.random.default_rng(0).normal(size=(3, 77, 768)).astype(np.float32)
    captions = np.array([f"video {k}" for k in range(3)])
    np.savez(tmp_path / "text.npz", captions=captions, text=text, null=np.zeros((77, 768), np.float32))
    given = {"data_folder": tmp_path, "data_layout": "csv", "csv_path": tmp_path / "table.csv", "condition": "text"}
    given |= {"caption_column": "caption", "text_embeddings": tmp_path / "text.npz", "train_batch_size": 2}
    given |= {"sample_videos": 0}
    for target in ("CPU", "Ascend"):
        start = run if target == "CPU" else on_standin
        start("train.py", *words(**given, device_target=target, output_path=tmp_path / "runs" / target))
    assert losses(tmp_path / "runs/Ascend") == pytest.approx(losses(tmp_path / "runs/CPU"), rel=1e-5)
    (trained,) = (tmp_path / "runs/CPU").glob("*/ckpt/ema-00000004.ckpt")
    sample = (
        "sample.py",
        *STEPS,
        "--checkpoint",
        trained,
        "--vae_checkpoint",
        FIXTURES / "vae.bin",
        "--num_samples",
        1,
    )
    for target in ("CPU", "Ascend"):
        start = run if target == "CPU" else on_standin
        folder = ("--output_path", tmp_path / target, "--device_target", target)
        start(*sample, "--text_embeddings", tmp_path / "text.npz", *folder)
    assert np.abs(frames(tmp_path / "Ascend") - frames(tmp_path / "CPU")).mean() < 0.01


RUNS = {
    "fp32": {},
    "accumulated, clipped": {"gradient_accumulation_steps": 2, "clip_grad": True, "max_grad_norm": 0.5},
    "recomputed": {"use_recompute": True},
    "joint images": {"images_per_video": 2},
    "sinking": {"dataset_sink_mode": True, "sink_size": 2},
}


@pytest.mark.parametrize("name", [name if name == "fp32" else pytest.param(name, marks=LONG) for name in RUNS])
def test_training_in_float32_is_the_cpus(name, data, on_standin, tmp_path):
    """Losses, weights, moments and EMA weights after four steps, from videos with the autoencoder in the step."""
    given = {"data_folder": data, "sample_videos": 0, **RUNS[name]}
    run("train.py", *words(**given, device_target="CPU", output_path=tmp_path / "cpu"))
    on_standin("train.py", *words(**given, device_target="Ascend", output_path=tmp_path / "ascend"))
    assert losses(tmp_path / "ascend") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    expected, found = (state(tmp_path / target, 4) for target in ("cpu", "ascend"))
    assert set(found) == set(expected)
    for key, value in expected.items():
        # Of a weight that began at zero: AdamW divides gradients near zero by their root.
        assert not np.abs(value).max() or error(found[key], value) < 1e-3, key


@pytest.mark.parametrize(
    "dtype, flash",
    [("fp16", True), pytest.param("fp16", False, marks=LONG), pytest.param("bf16", True, marks=LONG)],
)
def test_training_in_half_precision_follows_float32(dtype, flash, data, on_standin, tmp_path):
    given = {"data_folder": data, "max_steps": 8}
    run("train.py", *words(**given, device_target="CPU", output_path=tmp_path / "cpu"))
    given |= {"device_target": "Ascend", "dtype": dtype, "enable_flash_attention": flash, "init_loss_scale": 1024}
    done = on_standin("train.py", *words(**given, output_path=tmp_path / "ascend"))
    assert losses(tmp_path / "ascend") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)
    assert (done.launches["aclnnFlashAttentionScoreGrad"] > 0) == flash
    assert len(list((tmp_path / "ascend").glob("*/samples/*.gif"))) == 2  # previews during training


def test_an_overflow_skips_the_step_and_halves_the_loss_scale(data, on_standin, tmp_path):
    given = {"data_folder": data, "dtype": "fp16", "device_target": "Ascend", "sample_videos": 0, "log_interval": 1}
    given |= {"pretrained_model_path": FIXTURES / "latte_uncond.pt", "hidden_size": 64, "depth": 4, "num_heads": 4}
    on_standin("train.py", *words(**given, init_loss_scale=2**24, output_path=tmp_path))
    rows = metrics(tmp_path)
    skipped = [int(row["skipped_steps"]) for row in rows]
    assert skipped[0] == 1 and [float(row["loss_scale"]) for row in rows] == [2.0 ** (24 - n) for n in skipped]
    assert all(np.isfinite(value).all() for value in state(tmp_path, 4).values())


@pytest.mark.parametrize("trainable", [pytest.param("all", marks=LONG), "lora"])
def test_text_to_video_training(trainable, captioned, on_standin, tmp_path):
    """LatteT2V from a latent cache that was made on the device."""
    given = {"model_name": "LatteT2V", "pretrained_model_path": FOLDER, "data_folder": captioned, "data_layout": "csv"}
    given |= {"csv_path": captioned / "table.csv", "caption_column": "caption", "train_batch_size": 2, "vae_slice": 8}
    given |= {"num_workers": 1}

    def options(**others):
        return [f"--{key}={value}" for key, value in (given | others).items()]

    made = ("tools/embedding_cache.py", *options(device_target="Ascend", cache_folder=tmp_path / "cache"))
    assert on_standin(*made).launches["aclnnConvolution"] > 0
    training = {"cache_folder": tmp_path / "cache", "trainable": trainable, "max_steps": 4, "log_interval": 2}
    training |= {"sample_videos": 0, "ckpt_save_interval": 4}
    run("train.py", *options(**training, device_target="CPU", output_path=tmp_path / "cpu"))
    for dtype, flash in (("fp32", False), ("fp16", True)):
        half = {"dtype": dtype, "enable_flash_attention": flash, "device_target": "Ascend"}
        on_standin("train.py", *options(**training, **half, output_path=tmp_path / dtype))
    assert losses(tmp_path / "fp32") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    assert losses(tmp_path / "fp16") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)


@LONG
def test_killed_and_resumed_is_the_uninterrupted_run(data, on_standin, tmp_path):
    given = {"data_folder": data, "dtype": "fp16", "device_target": "Ascend", "sample_videos": 0, "max_steps": 12}
    given |= {"ckpt_save_interval": 2, "gradient_accumulation_steps": 2, "resume": "auto", "init_loss_scale": 1024}
    on_standin("train.py", *words(**given, output_path=tmp_path / "whole"))
    command = [sys.executable, "train.py", *words(**given, output_path=tmp_path / "cut")]
    environment = standin.environment()
    environment["PYTHONPATH"] = f"{ROOT}:{environment['PYTHONPATH']}"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.time() + 300
    while time.time() < end and not list((tmp_path / "cut").glob("*/ckpt/state-00000004*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    on_standin("train.py", *words(**given, output_path=tmp_path / "cut"))
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    for name in ("metrics.csv", "ckpt/ema-00000012.ckpt", "ckpt/state-00000012.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@LONG
def test_images_of_a_latent_cache_without_text(data, on_standin, tmp_path):
    """The tutorial's order: a numpy cache made on the device, then training from it."""
    given = {"data_folder": data, "device_target": "Ascend"}
    keep = ("vae_checkpoint", "image_size", "vae_slice", "num_workers", "data_folder", "device_target")
    made = [word for word in words(**given) if word[2:].split("=")[0] in keep]
    done = on_standin("tools/embedding_cache.py", *made, "--cache_folder", tmp_path / "c", "--cache_file_type", "numpy")
    assert done.launches["aclnnConvolution"] > 0
    on_standin("train.py", *words(**given, sample_videos=0, cache_folder=tmp_path / "c", output_path=tmp_path / "out"))
    assert np.isfinite(losses(tmp_path / "out")).all()


def test_a_card_that_is_not_there_is_one_sentence(on_standin, tmp_path):
    given = ("--device_target", "Ascend", "--device_id", 99, "--output_path", tmp_path)
    done = on_standin("sample.py", *SAMPLES["class"], *given, code=2)
    assert "error: Ascend device 99 cannot be used" in done.stderr and "Traceback" not in done.stderr


def test_doctor_tries_the_card(on_standin):
    done = on_standin("tools/doctor.py", "--device_target", "Ascend")
    assert "ok       Ascend works" in done.stdout and "bf16: forward" in done.stdout
