"""Videos longer than a network takes, and loops: windows with shared noise and fused predictions."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, tiny

from latte import LattePipeline, load_vae
from latte.components.codec import Codec
from latte.config import SampleConfig
from latte.config.export import ExportConfig
from latte.config.schedule import ScheduleConfig
from latte.diffusion.noise import NoiseStream
from latte.errors import UserError
from latte.inference import estimate, videos
from latte.inference.latents import LatentSampler, Request
from latte.inference.windows import SharedNoise, Windows, choose_windows, frame_order, fused
from latte.io.video import read_any
from latte.runtime import device

SHAPE = (3, 2, 2)  # (C, h, w)
OVER = [Windows(10, 4, 2), Windows(11, 4, 3), Windows(4, 4, 2), Windows(12, 4, 1), Windows(9, 8, 4)]
LOOPS = [Windows(12, 4, 2, loop=True), Windows(4, 4, 2, loop=True), Windows(11, 4, 3, loop=True)]
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pipe():
    return LattePipeline(tiny("class"), Codec(load_vae(FIXTURES / "vae.bin")))  # of 4 frames


def made(pipe, seeds=(1, 2), **options):
    usual = {"num_inference_steps": 3, "sampler": "ddpm", "guidance_scale": 3.0, "output_type": "latent"}
    labels = [seed % 2 for seed in seeds]
    return pipe(class_labels=labels, seed=list(seeds), progress=False, **{**usual, **options}).frames


@pytest.mark.parametrize("windows", [*OVER, *LOOPS])
def test_every_frame_is_in_windows_whose_shares_are_one(windows):
    weights = windows.weights
    assert weights.shape == (len(windows.starts), windows.frames)
    assert np.abs(weights.sum(0) - 1).max() < 1e-6 and (weights >= 0).all() and (weights > 0).any(0).all()
    if not windows.loop:
        assert windows.starts[0] == 0 and windows.starts[-1] + windows.length == windows.frames


@pytest.mark.parametrize("windows", [*OVER, *LOOPS])
@pytest.mark.parametrize("tensors", [False, True])
def test_what_all_windows_agree_on_is_the_result(windows, tensors):
    """A model that says of each frame what depends on that frame alone says the same by windows."""
    x = rng.standard_normal((2, windows.frames, *SHAPE)).astype(np.float32)

    def model(part, t):
        assert part.shape[1] == windows.length and t == 7.0
        double = part * part
        return np.concatenate([part, double], 2) if not tensors else ms.ops.concat((part, double), 2)

    out = fused([model] * len(windows.starts), windows)(ms.Tensor(x) if tensors else x, 7.0)
    out = out.asnumpy() if tensors else out
    assert out.dtype == np.float32
    assert np.abs(out - np.concatenate([x, x * x], 2)).max() < 1e-6


def test_a_window_counts_most_in_its_middle():
    """Two windows of 4 over 6 frames, of which one says 0 and the other 1: the border between them is a slope."""
    said = [lambda x, t: np.zeros_like(x), lambda x, t: np.ones_like(x)]
    out = fused(said, Windows(6, 4, 2))(np.zeros((1, 6, 1, 1, 1), np.float32), 0.0)
    assert np.allclose(out.ravel(), [0, 0, 1 / 3, 2 / 3, 1, 1])


def test_a_loop_joins_the_end_to_the_start():
    windows = Windows(6, 4, 2, loop=True)
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1, 1)
    seen = []
    fused([lambda part, t: seen.append(part.ravel().tolist()) or part] * 3, windows)(x, 0.0)
    assert seen == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]]


@pytest.mark.parametrize("windows", [Windows(16, 4, 2), Windows(12, 6, 3), Windows(12, 4, 2, loop=True)])
def test_each_window_has_the_noise_of_the_first_in_another_order(windows):
    noise = SharedNoise([5, 6], (windows.frames, *SHAPE), windows).normal()
    assert noise.shape == (2, windows.frames, *SHAPE) and noise.dtype == np.float32
    first = NoiseStream([5, 6], (windows.length, *SHAPE)).normal()
    assert (noise[:, : windows.length] == first).all()
    for start in windows.starts:
        places = (start + np.arange(windows.length)) % windows.frames
        for video, own in zip(noise[:, places], first, strict=True):
            rows = [next(k for k in range(windows.length) if (own[k] == frame).all()) for frame in video]
            assert sorted(rows) == list(range(windows.length))
    assert frame_order(5, windows).tolist() != frame_order(6, windows).tolist()


def test_the_noise_of_a_video_is_its_seeds():
    windows = Windows(20, 4, 2)
    both, alone = (SharedNoise(seeds, (20, *SHAPE), windows) for seeds in ([3, 9], [9]))
    for _ in range(3):
        assert (next(both)[1:] == next(alone)).all()


def test_one_window_is_no_window(pipe):
    plain = made(pipe)
    assert choose_windows(4, 4) is None
    assert (made(pipe, window=4, window_stride=1) == plain).all()
    windows = Windows(4, 4, 2)
    x = rng.standard_normal((1, 4, *SHAPE)).astype(np.float32)
    assert (fused([lambda part, t: part / 3], windows)(x, 0.0) == x / 3).all()


@pytest.mark.parametrize(
    "options",
    [{"window_stride": 1}, {"loop": True}, {"shared_noise": False}, {"cache": "every2"}, {"autoregressive": True}],
)
def test_long_videos_depend_on_their_seeds_alone(pipe, options):
    batch = made(pipe, (1, 2), video_length=7, **options)
    assert batch.shape == (2, 7, 4, 8, 8) and np.isfinite(batch).all()
    assert (made(pipe, (2,), video_length=7, **options) == batch[1:]).all()


def test_on_an_accelerator_videos_go_through_together(pipe):
    alone = made(pipe, video_length=7, window_stride=2)
    with device.use("GPU"):
        other = LattePipeline(tiny("class"), pipe.codec)
        assert np.abs(made(other, video_length=7, window_stride=2) - alone).max() < 1e-4 * np.abs(alone).max()


def test_conditioning_frames_stay_in_a_long_video(pipe):
    frames = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    held = made(pipe, (1,), video_length=7, frames=frames, sampler="dpmpp_2m")
    own = made(pipe, (1,), frames=frames, sampler="dpmpp_2m")
    assert (held[:, :2] == own[:, :2]).all()


@pytest.mark.parametrize("condition_frames, given", [(0, 1), (2, 2)])
def test_each_window_in_turn_is_given_the_last_frames_of_the_one_before(pipe, condition_frames, given, monkeypatch):
    net = pipe.net
    monkeypatch.setattr(net, "config", dataclasses.replace(net.config, condition_frames=condition_frames))
    frames = rng.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    usual = {"frames": frames, "frame_indices": [5], "sampler": "ddpm"}
    asked = []
    sample = pipe.latents._walk
    monkeypatch.setattr(pipe.latents, "_walk", lambda *args: asked.append(args[1]) or sample(*args))
    video = made(pipe, (1,), video_length=9, autoregressive=True, **usual)
    step = 4 - given
    starts = list(range(0, 9 - given, step))
    assert video.shape == (1, 9, 4, 8, 8) and len(asked) == len(starts)
    for start, request in zip(starts, asked, strict=True):
        first = list(range(given)) if start else []
        own = [5 - start] if start + len(first) <= 5 < start + 4 else []
        assert request.held_frames == first + own
        if first:
            assert (request.held[:, :given] == video[:, start : start + given]).all()
    alone = made(pipe, (1,), sampler="ddpm")
    assert (video[:, :4] == alone).all()  # the first window is the video of one window
    assert np.abs(video[:, 4:8] - alone).mean() > 0.1  # and the next has other noise


def test_ranks_that_share_frames_are_not_given_frames_with_a_timestep_of_their_own():
    net = tiny("class")
    net.config = dataclasses.replace(net.config, condition_frames=2)
    held = {"held": np.zeros((1, 2, 4, 8, 8), np.float32), "held_frames": [0, 1]}
    request = Request([1], (4, 4, 8, 8), (np.array([0]),), num_inference_steps=2, **held)
    with device.use(sequence=2), pytest.raises(UserError, match="leave out sequence_parallel, or the frames"):
        LatentSampler(net).sample(request)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"video_length": 8, "autoregressive": True, "loop": True}, "a loop is not autoregressive"),
        ({"video_length": 8, "autoregressive": True, "latents": np.zeros((2, 8, 4, 8, 8))}, "latents is for videos"),
        ({"video_length": 8, "autoregressive": True, "callback_on_step_end": print}, "callback_on_step_end is for"),
        ({"video_length": 8, "window": 3}, "window is 3, but this network takes 4 frames"),
        ({"video_length": 8, "window_stride": 4}, "window_stride is 4, but must be from 1 to 3"),
        ({"video_length": 3, "window": 4}, "window is 4, but a video has 3 frames"),
        ({"video_length": 3}, "video_length is 4 in this network, but 3"),
        ({"video_length": 8, "window_stride": 0}, "window_stride"),
        ({"video_length": 0}, "video_length"),
        ({"video_length": 8, "window": 1}, "window"),
    ],
)
def test_windows_that_do_not_fit(pipe, options, words):
    with pytest.raises(UserError, match=words):
        made(pipe, **options)


def options(folder, **changes):
    files = {"checkpoint": str(FIXTURES / "latte_class.pt"), "vae_checkpoint": str(FIXTURES / "vae.bin")}
    usual = {"output_path": str(folder), "output_format": ["png"], "sampling_steps": 2, "class_labels": [1], "seed": 1}
    return SampleConfig(**{**files, **usual, **changes})


def test_sample_makes_long_videos_and_loops(tmp_path):
    cfg = options(tmp_path, num_frames=7, window=4, window_stride=2)
    (folder,), _ = videos.run(cfg, videos.build_pipeline(cfg))
    assert read_any(folder).shape == (7, 16, 16, 3)
    other = options(tmp_path, num_frames=7, loop=True, window_stride=3)
    in_turn = options(tmp_path / "in_turn", num_frames=7, autoregressive=True)
    (folder,), _ = videos.run(in_turn, videos.build_pipeline(in_turn))
    assert read_any(folder).shape == (7, 16, 16, 3)
    assert videos.check(other).network.config.num_frames == 4  # not adapted to 7
    work = [estimate.sampling(each, videos.check(each).network.config, videos.check(each).vae.config).calls
            for each in (options(tmp_path), cfg, other, in_turn)]  # fmt: skip
    assert work == [2, 2 * 3, 2 * 3, 2 * 2]


def test_a_loop_of_the_trained_length(tmp_path):
    cfg = options(tmp_path, loop=True)
    (folder,), _ = videos.run(cfg, videos.build_pipeline(cfg))
    assert read_any(folder).shape == (4, 16, 16, 3)


def test_a_longer_video_without_windows_hints_at_them(caplog, tmp_path):
    videos.build_pipeline(options(tmp_path, num_frames=7))
    assert "window: 4" in caplog.text


@pytest.mark.parametrize("asked", [{"window": 4}, {"window_stride": 2}, {"loop": True}, {"autoregressive": True}])
def test_what_is_of_one_window_refuses_windows(asked):
    with pytest.raises(UserError, match=r"window|loop"):
        ExportConfig(checkpoint="x", report=True, **asked)
    with pytest.raises(UserError, match=r"window|loop|autoregressive"):
        ScheduleConfig(checkpoint="x", calls=2, schedule_file="x.json", **asked)
