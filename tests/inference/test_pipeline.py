"""The pipeline and sample.py: the same video for a seed everywhere, one compilation, files, and clear refusals."""

import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from support.golden_values import FIXTURES, ROOT, error, recorded, tiny

from latte import LattePipeline, load_model, load_vae
from latte.commands import sample
from latte.components.codec import Codec
from latte.config import SampleConfig
from latte.diffusion.noise import NoiseStream
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference import inputs, videos
from latte.io.video import read_any, read_frames, read_video
from latte.models import latte
from latte.runtime import device

traces = []


@ops.constexpr(reuse_result=False)
def traced():
    """Runs in Python while a graph is built, never when a built graph runs."""
    traces.append(1)
    return 0


def counted_block(x, c, *rest):
    traced()
    return latte.transformer_block(x, c, *rest)


@pytest.fixture(scope="module")
def codec():
    return Codec(load_vae(FIXTURES / "vae.bin"))


@pytest.fixture(scope="module")
def accelerated(codec):
    """Pipelines to call as on a GPU, whose graphs the tests share."""
    return {kind: LattePipeline(tiny(kind), codec) for kind in ("uncond", "class")}


def options(folder, **changes):
    base = {
        "checkpoint": str(FIXTURES / "latte_class.pt"),
        "vae_checkpoint": str(FIXTURES / "vae.bin"),
        "output_path": str(folder),
        "output_format": ["png"],
        "sampling_steps": 3,
        "num_samples": 3,
        "guidance_scale": 4.0,
    }
    return SampleConfig(**(base | changes))


def latents(pipe, seeds, steps, solver="ddpm", labels=None, **options):
    given = {"num_videos_per_prompt": len(seeds)} if labels is None else {"class_labels": labels}
    options = given | options | {"num_inference_steps": steps, "sampler": solver}
    return pipe(seed=seeds, output_type="latent", progress=False, **options).frames


@pytest.mark.parametrize("target", ["CPU", "GPU"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_recorded_loop_through_the_pipeline(codec, accelerated, solver, target, monkeypatch):
    """With the recorded noise in place of a seed's: block by block on CPU, network and guidance as one graph on GPU."""
    data = recorded("diffusion_sampling")
    noises = [data["noise"], *data["ddpm10_step_noise"]]  # each (2, 4, 4, 8, 8)

    def normal(stream):
        stream.drawn = getattr(stream, "drawn", -1) + 1
        return noises[stream.drawn][stream.seeds]

    monkeypatch.setattr(NoiseStream, "normal", normal)
    with device.use(target):
        pipe = LattePipeline(tiny("uncond"), codec) if target == "CPU" else accelerated["uncond"]
        made = latents(pipe, [0, 1], 10, solver)
    assert error(made, data[f"{solver}10"]) <= 1e-4


def test_a_rank_without_a_video_ends_well(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    run_sample(monkeypatch, *TINY, "--output_path", tmp_path / "out", "--use_parallel")
    assert "no video for this rank" in capsys.readouterr().out and not (tmp_path / "out").exists()
    device.init_device("CPU")


@pytest.mark.parametrize("content", [b"", b"text", "empty", "ints"])
def test_text_embeddings_that_are_none(content, tmp_path):
    path = tmp_path / "text.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        rows = 0 if content == "empty" else 1
        np.savez(path, text=np.zeros((rows, 77, 768), np.float32 if rows == 0 else np.int32))
    with pytest.raises(UserError, match=r"text\.npz"):
        inputs.read_text_embeddings(path)


def test_one_graph_for_all_steps_blocks_and_halves_of_guidance(codec, monkeypatch):
    monkeypatch.setattr(latte.TransformerBlock, "forward", staticmethod(counted_block))
    pipe = LattePipeline(tiny("class"), codec)
    assert len(pipe.net.blocks) == 4
    traces.clear()
    latents(pipe, [1, 2], 5, labels=[0, 1], guidance_scale=3.0)
    assert len(traces) == 2  # a spatial and a temporal block, whatever the number of steps, videos and halves


@pytest.mark.parametrize("solver", ["ddpm", "pndm"])  # with noise, with memory
def test_a_video_depends_on_its_seed_alone(solver, codec, accelerated):
    labels, steps = [0, 3, 1], []
    pipe = LattePipeline(tiny("class"), codec)
    together = latents(pipe, [1, 2, 3], 4, solver, labels, callback_on_step_end=lambda *told: steps.append(told[1]))
    assert len(pipe.latents.step_seconds) == 3 * Solver(solver).calls(4)
    assert steps == 3 * list(range(len(Solver(solver).steps(4).timesteps)))
    with device.use("GPU"):
        batched = latents(accelerated["class"], [1, 2, 3], 4, solver, labels)
    alone = latents(pipe, [3], 4, solver, labels[2:])
    assert np.array_equal(together[2:], alone) and error(batched, together) <= 1e-4
    assert together.dtype == np.float32 and np.isfinite(together).all() and error(together[0], together[1]) > 0.1


def test_ddpm_without_a_learned_variance(codec):
    """The posterior's variance stands in, unless the learned one is asked for."""
    net = tiny("uncond")
    pipe = LattePipeline(net, codec)
    fixed = latents(pipe, [1], 3, Solver("ddpm", variance="fixed_small"))
    narrow = LattePipeline(net, codec)
    narrow.latents.graphs.made["the network", True, False] = lambda x, t, scale: net(x, t)[:, :, :4]
    assert np.array_equal(latents(narrow, [1], 3), fixed)
    with pytest.raises(UserError, match="predicts variance"):
        latents(narrow, [1], 3, Solver("ddpm", variance="learned_range"))


@pytest.mark.slow
def test_denoising_as_one_graph_gives_the_same(codec):
    """What Ascend and GPU do, a doubled batch in one compiled graph, against the CPU's way."""
    options = {"labels": [0, 3], "guidance_scale": 3.0}
    alone = latents(LattePipeline(tiny("class"), codec), [1, 2], 5, **options)
    with device.use("GPU"):
        together = latents(LattePipeline(tiny("class"), codec), [1, 2], 5, **options)
    assert error(together, alone) <= 1e-5


CACHES = ("every2-order2", "teacache:0.1", "fastercache:2", "threshold:0.5")


@pytest.mark.parametrize(
    "cache", [None, *(pytest.param(cache, marks=pytest.mark.slow) for cache in CACHES)], ids=lambda cache: str(cache)
)
def test_videos_do_not_depend_on_batches_or_ranks(cache, tmp_path):
    given = {"cache": cache, "sampling_steps": 8 if cache else 3}
    pipe = videos.build_pipeline(options(tmp_path, **given))
    videos.run(options(tmp_path / "one", **given), pipe)
    videos.run(options(tmp_path / "two", batch_size=2, **given), pipe)
    for rank in (0, 1):
        with device.use(rank=rank, world_size=2):
            videos.run(options(tmp_path / "ranks", **given), pipe)
    assert bool(pipe.latents.skipped) == bool(cache)
    names = sorted(p.name for p in (tmp_path / "one").iterdir() if p.is_dir())
    assert len(names) == 3
    for other in ("two", "ranks"):
        assert sorted(p.name for p in (tmp_path / other).iterdir() if p.is_dir()) == names
        for name in names:
            assert np.array_equal(read_frames(tmp_path / other / name), read_frames(tmp_path / "one" / name))


def test_labels_are_taken_in_turn_or_drawn_from_the_seed():
    config = tiny("class").config
    given = inputs.choose_inputs(options("x", class_labels=[4, 1]), config, [0, 1, 2, 3])
    assert given == {"class_labels": [4, 1, 4, 1]}
    drawn = [inputs.choose_inputs(options("x"), config, [k])["class_labels"][0] for k in range(40)]
    assert drawn == inputs.choose_inputs(options("x"), config, list(range(40)))["class_labels"]
    assert set(drawn) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("labels", [1.7, [1.0], "a", [None], [], -1, 6, [[1]], True])
def test_what_is_no_class_label_is_said(labels):
    with pytest.raises(UserError, match="class labels are whole numbers from 0 to 4; got"):
        inputs.label_conditions(tiny("class").config, labels, (None, None), False)


def test_prompts_that_no_file_name_can_tell_apart_do_not_overwrite_each_other():
    prompts = ["猫", "狗", "Ä dog", "Ö dog", "a " * 40, "a " * 40 + "dog", "a dog"]
    names = [inputs.stem(0, 42, 16, {"prompt": [prompt]}, 0) for prompt in prompts]
    assert len(set(names)) == len(prompts) and all(re.fullmatch(r"[a-z0-9-]{,100}", name) for name in names)
    assert names[-1] == "video-0000-seed42-a-dog"


def run_sample(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    sample.main()


TINY = ("--checkpoint", FIXTURES / "latte_class.pt", "--vae_checkpoint", FIXTURES / "vae.bin", "--sampling_steps", 2)


def test_sample_writes_videos_a_grid_and_its_options(tmp_path, monkeypatch, capsys):
    formats = ("--output_format", "[mp4,gif,png]", "--num_samples", 2, "--output_path", tmp_path / "out")
    run_sample(monkeypatch, *TINY, *formats, "--class_labels", "[2,0]")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == ["settings", "device", "network", "plan"]
    assert "num_samples 2 (1)" in printed[0] and str(tmp_path / "out") in printed[3]
    assert "s per network call" in printed[4] and "peak memory" in printed[4] and "compile" in printed[4]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    stems = ("video-0000-seed42-class2", "video-0001-seed43-class0")
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".mp4", ".gif", "")}
    assert names == expected | {"grid-seed42-43.mp4", "grid-seed42-43.gif", "config.yaml", "samples.json"}
    assert read_video(tmp_path / "out" / f"{stems[0]}.mp4").shape == (4, 16, 16, 3)
    assert len(read_frames(tmp_path / "out" / stems[1])) == 4
    run_sample(monkeypatch, "-c", tmp_path / "out" / "config.yaml", "--output_path", tmp_path / "again")
    first, second = (read_frames(tmp_path / folder / stems[0]) for folder in ("out", "again"))
    assert np.array_equal(first, second)


def test_another_seed_overwrites_nothing(tmp_path, monkeypatch):
    """Names alone: the videos themselves are those of the test before."""
    monkeypatch.setattr(
        videos,
        "_make",
        lambda cfg, pipe, batch, *_: made(cfg, batch, np.zeros((len(batch), 4, 16, 16, 3), np.uint8)),
    )
    monkeypatch.setattr(videos, "summary", lambda pipe: "")
    made_by = ("--num_samples", 2, "--output_path", tmp_path)
    for seed in (42, 7):
        run_sample(monkeypatch, *TINY, *made_by, "--seed", seed)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"video-0000-seed42.mp4", "video-0001-seed8.mp4", "grid-seed42-43.mp4", "grid-seed7-8.mp4"} <= names
    assert {"config.yaml", "config-seed42.yaml", "samples.json"} <= names and len(names) == 9


def made(cfg, batch, pixels):
    """Return what `videos._make` does for these pixels (B, F, H, W, 3)."""
    return [inputs.stem(k, cfg.seed + k, pixels.shape[1], {}, row) for row, k in enumerate(batch)], pixels


def test_one_frame_is_an_image(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    name = inputs.stem(3, 45, 1, {"prompt": ["A dog, running"]}, 0)
    (file,) = videos._save(frames, tmp_path / name, ["mp4"], 8)
    assert file.name == "image-0003-seed45-a-dog-running.png"
    assert np.array_equal(read_any(file), frames)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -3.0])
def test_a_guidance_scale_of_one_and_less_is_no_guidance(scale):
    assert inputs.effective_guidance(scale) == 1.0
    assert inputs.guidance(options("x", guidance_scale=scale), tiny("class").config) == 1.0
    for wrong in (float("nan"), "7.5", [7.5], True):
        with pytest.raises(UserError, match="guidance_scale is .*, but must be a finite number"):
            inputs.effective_guidance(wrong)


@pytest.mark.parametrize(
    "seed, generator, expected",
    [
        (3, None, [3, 4]),
        (np.int64(3), None, [3, 4]),
        (None, 42, [42, 43]),
        ([5, 9], None, [5, 9]),
        (range(5, 7), None, [5, 6]),
        (None, [5, np.random.default_rng(1)], [5, int(np.random.default_rng(1).integers(2**32))]),
        (None, np.random.default_rng(1), np.random.default_rng(1).integers(2**32, size=2).tolist()),
    ],
)
def test_seeds_from_numbers_lists_and_generators(seed, generator, expected):
    assert inputs.seeds_of(seed, generator, 2) == expected


class TorchGenerator:
    """Stands for torch.Generator."""


@pytest.mark.parametrize(
    "seed, generator, words",
    [
        (None, TorchGenerator(), "TorchGenerator is no seed and no generator of NumPy; give seed=0"),
        (None, [TorchGenerator()] * 2, "TorchGenerator is no seed"),
        (1.5, None, "float is no seed"),
        (True, None, "bool is no seed"),
        ("1", None, "str is no seed"),
        (np.array(5), None, "ndarray is no seed"),
        (-1, None, "a whole number from 0"),
        (2**70, None, "a whole number from 0"),
        ([1], None, "2 videos, but 1 seeds"),
        (1, 2, "either a seed or a generator"),
    ],
)
def test_what_is_no_seed(seed, generator, words):
    with pytest.raises(UserError, match=words):
        inputs.seeds_of(seed, generator, 2)


def test_sample_with_another_sampler(tmp_path, monkeypatch, capsys):
    words = ("--output_format", "png", "--output_path", tmp_path / "out", "--sampler", "heun")
    run_sample(monkeypatch, *TINY, *words, "--dry_run")
    assert "2 heun steps" in capsys.readouterr().out
    run_sample(monkeypatch, *TINY, *words)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(read_frames(folder)) == 4


def test_dry_run_checks_and_writes_nothing(tmp_path, monkeypatch, capsys):
    run_sample(monkeypatch, *TINY, "--output_path", tmp_path / "out", "--dry_run")
    printed = capsys.readouterr().out
    assert "1 videos of 4 frames, 16 x 16 pixels, 2 ddpm steps" in printed and "predicted memory" in printed
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="hidden_size"):
        run_sample(monkeypatch, *TINY, "--model_name", "Latte-XL/2", "--dry_run", "True")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--checkpoint", "nowhere.pt"), "nowhere.pt"),
        (("--checkpoint", FIXTURES / "vae.bin"), "vae"),
        (("--vae_checkpoint", FIXTURES / "latte_class.pt"), "latte_class.pt"),
        (("--model_name", "Latte-S/2"), "hidden_size 64"),
        (("--num_classes", 101), "num_classes 5"),
        (("--num_heads", 2), "num_heads 4"),
        (("--class_labels", "[7]"), "0 to 4"),
        (("--sampler", "pndm"), "4 or more"),
        (("--sampler", "dpmpp_2m", "--sampling_steps", 1000), "fewer steps"),
        (("--image_size", 24, "--checkpoint", FIXTURES / "latte_uncond.pt", "--guidance_scale", 2), "conditional"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_impossible_requests_are_one_sentence_and_leave_nothing(arguments, message, dry, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message) as caught:
        run_sample(monkeypatch, *TINY, *arguments, "--output_path", tmp_path / "out", "--dry_run", dry)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_program_exits_with_2_and_no_traceback(tmp_path):
    (tmp_path / "short.pt").write_bytes((FIXTURES / "latte_class.pt").read_bytes()[:100_000])
    command = [sys.executable, "sample.py", *map(str, TINY), "--checkpoint", str(tmp_path / "short.pt")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "short.pt" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_more_frames_and_larger_images_than_the_checkpoint(caplog):
    net = load_model(FIXTURES / "latte_uncond.pt", input_size=64, num_frames=32)  # 512 px for an 8 times smaller latent
    assert "adapted" in caplog.text
    assert net.pos_embed.shape == (1, 1024, 64) and net.temp_embed.shape == (1, 32, 64)
    noise = np.random.default_rng(0).normal(size=(1, 32, 4, 64, 64)).astype(np.float32)
    out = net(ms.Tensor(noise), ms.Tensor([500], ms.int32)).asnumpy()
    assert out.shape == (1, 32, 8, 64, 64) and np.isfinite(out).all() and out.std() > 1e-3
    official = tiny("uncond")
    assert np.array_equal(net.temp_embed.asnumpy()[:, :4], official.temp_embed.asnumpy())
    corners = net.pos_embed.asnumpy().reshape(32, 32, 64)[[0, 0, -1, -1], [0, -1, 0, -1]]
    before = official.pos_embed.asnumpy().reshape(4, 4, 64)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.abs(corners - before).max() < 0.3  # the embedding is stretched, not repeated
