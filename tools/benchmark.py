"""Measure beside official PyTorch: same machine, same run, same weights and inputs, each in its own process.

Parts: step, a denoising step; vae, encoding and decoding a frame; train, a training step from latents, with AdamW and
the average of weights, and how long the data loader alone takes for a video; cache, encoding frames into a cache of
latents, and reading windows of 128 frames from both kinds of cache.

The official code is not part of this project. Put a checkout of it and a Python with torch and diffusers anywhere:

    python tools/benchmark.py --official ../Latte --torch_python ../torch-venv/bin/python

Each measurement is a process of its own, so that peak memory is its own; `--repeats` takes them in turn.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

LATENT_SCALE = 8  # pixels a latent
WEIGHTS = {"step": "latte.pt", "vae": "vae.bin", "train": "train.pt", "cache": "vae.bin"}
PARTS = ("step", "vae", "train", "cache")
NAMES = {"step": "denoising step {dtype}", "train": "training step {dtype}", "cache": "caching a frame {dtype}"}
WINDOW, STORED = 128, 300  # frames of a window, and of each video of the cache it is read from
LOADED = 24  # videos
CLIPS, CLIP_FRAMES = 8, 40  # of the loader's data
LEARNING_RATE, EMA_DECAY = 1e-4, 0.9999


def main(
    official: str,
    torch_python: str,
    parts: list[Literal["step", "vae", "train", "cache"]] | None = None,
    model_name: str | None = None,
    image_size: int = 256,
    num_frames: int = 16,
    dtypes: list[Literal["fp32", "bf16"]] | None = None,
    steps: int = 3,
    torch_bf16_steps: int = 1,
    threads: int = 2,
    repeats: int = 1,
) -> None:
    """Measure and print a table.

    Args:
        official: checkout of the official PyTorch repository.
        torch_python: Python interpreter that has torch and diffusers.
        parts: what to measure; all by default.
        model_name: network to measure; Latte-XL/2 by default, and Latte-S/2 in training.
        image_size: pixels a side.
        num_frames: frames a video.
        dtypes: arithmetic to measure; both by default.
        steps: denoising steps after the first one, or frames; the median counts.
        torch_bf16_steps: the same for PyTorch's bf16 autocast; 0 times the first step, where a step takes minutes.
        threads: CPU threads for both sides.
        repeats: how often each pair is measured, in turn.
    """
    job = {"official": official, "size": image_size // LATENT_SCALE, "frames": num_frames}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        job["folder"] = folder
        for part in parts or PARTS:
            job["model_name"] = model_name or ("Latte-S/2" if part == "train" else "Latte-XL/2")
            for dtype in ["fp32"] if part in ("vae", "train") else dtypes or ["fp32", "bf16"]:
                for _ in range(repeats):
                    here = {**job, "part": part, "dtype": dtype, "steps": steps}
                    few = torch_bf16_steps if dtype == "bf16" else steps
                    peer = _measure(torch_python, {**here, "side": "torch", "steps": few}, threads)
                    rows.append((peer, _measure(sys.executable, {**here, "side": "ours"}, threads)))
                    if part == "train":
                        notes.append(_loader_note(rows[-1][1], threads))
                    notes += rows[-1][1].get("notes", [])
    print("\n".join((_machine(threads), _table(rows), *notes)))


def _loader_note(trained: dict[str, Any], threads: int) -> str:
    """Measure the loader and say how it compares with our training step."""
    loader = _measure(sys.executable, {**trained, "part": "loader"}, threads)
    return (
        f"The loader alone takes {1000 * loader['seconds']:.0f} ms for a video of frames on the disk: "
        f"{trained['seconds'] / loader['seconds']:.0f} x what the training step consumes."
    )


def _measure(python: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it measured."""
    print(f"measuring {job['part']} {job['dtype']} {job['side']} ...", file=sys.stderr, flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if job["side"] == "torch":
        env["PYTHONPATH"] = job["official"]
    script = Path(__file__).with_name("benchmark_torch.py" if job["side"] == "torch" else "benchmark.py")
    command = [python, script, "--worker", json.dumps(job | {"threads": threads})]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"error: the measurement {job['part']} {job['dtype']} {job['side']} failed, see above")
    return job | json.loads(done.stdout.splitlines()[-1])


def timed(call: Callable[[int], Any], count: int) -> dict[str, Any]:
    """Time a first call and `count` more."""
    seconds = []
    for i in range(count + 1):
        start = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:] or seconds)}


def inputs(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    size, frames = job["size"], job["frames"]
    pixels = size * LATENT_SCALE
    draw = {"x": (1, frames, 4, size, size), "noise": (1, frames, 4, size, size)}
    draw |= {"image": (1, 3, pixels, pixels), "z": (1, 4, size, size)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in draw.items()}


def save(job: dict[str, Any], name: str, value: Any) -> None:
    import numpy as np

    np.save(Path(job["folder"]) / f"{name}.npy", value)


def _deviation(job: dict[str, Any], name: str, value: Any) -> float:
    """Return the largest deviation from PyTorch's float32 result, relative to its largest number."""
    import numpy as np

    expected = np.load(Path(job["folder"]) / f"{name}.npy")
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def work(measurements: dict[str, Callable[[dict[str, Any]], dict[str, Any]]], job: dict[str, Any]) -> None:
    """Make one measurement of those there are, and print it as a line of JSON."""
    result = measurements[job["part"]](job)
    print(json.dumps(result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def clips(job: dict[str, Any]) -> Path:
    """Return the folder of the loader's data, which is made the first time."""
    import numpy as np
    from PIL import Image

    root, side = Path(job["folder"]) / "clips", job["size"] * LATENT_SCALE
    if not root.exists():
        for clip in range(CLIPS):
            (root / str(clip)).mkdir(parents=True)
            small = np.random.default_rng(clip).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for frame in range(CLIP_FRAMES):
                image = Image.fromarray(np.roll(small, frame, 1)).resize((side * 3 // 2, side))
                image.save(root / str(clip) / f"f_{frame}.jpg", quality=95)
    return root


def _our_step(job: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    import mindspore as ms
    import numpy as np

    from latte import device, load_model
    from latte.diffusion.onestep import Network, ddpm
    from latte.diffusion.samplers import make_denoiser
    from latte.diffusion.solvers import Sampler
    from latte.diffusion.steps import Steps

    device.init_device("CPU")
    net = load_model(Path(job["folder"]) / WEIGHTS["step"], dtype=job["dtype"])
    load = time.perf_counter() - start
    arrays = inputs(job)
    walk = Sampler("ddpm").steps("250")
    t, after = (int(t) for t in walk.timesteps[124:126])
    step = Steps(walk.timesteps[124:125], walk.alphas_cumprod, walk.alphas_cumprod[after])
    denoise, times = device.compile_step(make_denoiser(net)), ms.Tensor(np.array([t], np.float32))
    model = Network(lambda x, _: denoise(ms.Tensor(x), times).asnumpy())
    call = lambda _: next(ddpm(model, arrays["x"], step, iter([arrays["noise"]])))  # noqa: E731
    result = timed(call, job["steps"])
    return result | {"load": load, "deviation": _deviation(job, "out", net(ms.Tensor(arrays["x"]), times).asnumpy())}


def _our_train(job: dict[str, Any]) -> dict[str, Any]:
    import mindspore as ms
    import numpy as np

    from latte import device, load_model
    from latte.models.precision import prepare
    from latte.training.step import StepOptions, TrainStep

    device.init_device("CPU")
    net, average = (load_model(Path(job["folder"]) / WEIGHTS["train"]) for _ in range(2))
    for each in (net, average):
        prepare(each, for_training=True)
    rates = np.full(job["steps"] + 1, LEARNING_RATE, np.float32)
    options = StepOptions(ema_decay=EMA_DECAY, scale_factor=1.0)
    call = device.compile_training(TrainStep(net, average, None, rates, options).construct)
    data = inputs(job)
    moments = np.concatenate((data["x"], np.full_like(data["x"], -30)), 2)  # of a posterior without variance
    tensors = [ms.Tensor(a) for a in (moments, np.zeros_like(data["x"]), np.array([500], np.int32), data["noise"])]
    skipped, losses = ms.Tensor(np.full((1, 8), -1, np.int32)), []
    result = timed(lambda i: losses.append(float(call(*tensors, skipped))), job["steps"])
    return result | {"deviation": _deviation(job, "losses", np.array(losses))}


def _our_loader(job: dict[str, Any]) -> dict[str, Any]:
    from latte import device
    from latte.config import TrainConfig
    from latte.data.dataset import PixelStore, VideoDataset
    from latte.data.index import list_records
    from latte.data.loader import TrainingSource, make_loader

    device.init_device("CPU")
    size, options = job["size"], TrainConfig(data_folder=str(clips(job)))
    store = PixelStore(size * LATENT_SCALE, options.transform)
    dataset = VideoDataset(list_records(options), job["frames"], store, options, seed=0)
    source = TrainingSource(dataset, (job["frames"], 4, size, size), seed=0)
    loader = make_loader(source, 1, 0, LOADED + 1, 0, 1, job["threads"])
    batches = loader.create_tuple_iterator(num_epochs=1, output_numpy=True)
    next(batches)
    return {"seconds": _drain(batches)}


def _our_cache(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from latte import device
    from latte.caching import make_cache
    from latte.config import CacheConfig

    device.init_device("CPU")
    folder = Path(job["folder"])
    cache = CacheConfig(
        data_folder=str(clips(job) / "0"),
        vae_checkpoint=str(folder / WEIGHTS["cache"]),
        image_size=job["size"] * LATENT_SCALE,
        cache_folder=str(folder / f"cache-{job['dtype']}"),
        cache_dtype="fp32",
        dtype=job["dtype"],
    )
    clock = make_cache(cache).clock
    moments = np.load(Path(cache.cache_folder) / "00000000.npy")[0]
    notes = [f"Caching in {job['dtype']}: {100 * clock.outside:.2f} % of the time is outside the autoencoder."]
    if job["dtype"] == "fp32":
        notes += [_read_note(job, kind) for kind in ("numpy", "mindrecord")]
    deviation = _deviation(job, "cached", moments)
    return {"first": clock.first, "seconds": 1 / clock.frames_per_second, "deviation": deviation, "notes": notes}


def _read_note(job: dict[str, Any], kind: str) -> str:
    """Measure how fast windows are read from a cache of random moments, with one and with two workers."""
    import numpy as np

    from latte.config import TrainConfig
    from latte.data.cache import Cache, Entry
    from latte.data.dataset import VideoDataset
    from latte.data.loader import TrainingSource, make_loader
    from latte.data.records import write_records

    folder, shape = Path(job["folder"]) / kind, (8, job["size"], job["size"])
    settings = {"cache_file_type": kind, "cache_dtype": "fp16", "flip": False, "frame_shape": shape}
    cache, rng = Cache(folder, settings, [], CLIPS), np.random.default_rng(0)
    folder.mkdir()
    for number in range(CLIPS):
        moments = rng.normal(size=(1, STORED, *shape)).astype(np.float16)
        file = folder / f"{number}.{'npy' if kind == 'numpy' else kind}"
        np.save(file, moments) if kind == "numpy" else write_records(file, [moments])
        cache.entries[number] = Entry(number, str(number), 0, "", STORED, file.name)
    source = TrainingSource(VideoDataset(cache.index(), WINDOW, cache, TrainConfig(), 0), (WINDOW, 4, *shape[1:]), 0)
    epochs = []
    for workers in (1, 2):
        batches = make_loader(source, 1, 0, 8 * CLIPS, 0, 1, workers).create_tuple_iterator(num_epochs=1)
        next(batches)
        epochs.append(CLIPS * _drain(batches))
    return (
        f"Reading windows of {WINDOW} frames from {kind}: {WINDOW * CLIPS / epochs[0]:.0f} frames a second; an epoch "
        f"of {CLIPS} videos takes {epochs[0]:.2f} s with 1 worker and {epochs[1]:.2f} s with 2."
    )


def _drain(batches: Any) -> float:
    """Return the seconds that each of the remaining batches takes."""
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return (time.perf_counter() - start) / count


def _our_vae(job: dict[str, Any]) -> dict[str, Any]:
    import mindspore as ms

    from latte import device, load_vae

    device.init_device("CPU")
    vae = load_vae(Path(job["folder"]) / WEIGHTS["vae"])
    data = {name: ms.Tensor(value) for name, value in inputs(job).items()}
    encode = timed(lambda i: vae.encode(data["image"]).asnumpy(), job["steps"])
    decode = timed(lambda i: vae.decode(data["z"]).asnumpy(), job["steps"])
    encode["deviation"] = _deviation(job, "moments", vae.encode(data["image"]).asnumpy())
    decode["deviation"] = _deviation(job, "decoded", vae.decode(data["z"]).asnumpy())
    return {"encode": encode, "decode": decode}


def _machine(threads: int) -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    flags = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in Path("/proc/cpuinfo").read_text()
    ]
    return f"{len(names)} x {names[0]} ({', '.join(flags)}), {threads} threads"


def _table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        "| what | PyTorch s | ours s | our speed | our first call s | peak memory GB, PyTorch / ours | deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, ours in rows:
        for key in ("encode", "decode") if ours["part"] == "vae" else (None,):
            a, b = (row[key] if key else row for row in (peer, ours))
            what = f"VAE {key} a frame" if key else NAMES[ours["part"]].format(**ours)
            memory = f"{peer['memory'] / 1e9:.2f} / {ours['memory'] / 1e9:.2f}"
            lines.append(
                f"| {what} | {a['seconds']:.2f} | {b['seconds']:.2f} | {a['seconds'] / b['seconds']:.2f} x "
                f"| {b['first']:.1f} | {memory} | {b['deviation']:.1e} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        ours = {"step": _our_step, "vae": _our_vae, "train": _our_train, "loader": _our_loader, "cache": _our_cache}
        work(ours, json.loads(sys.argv[2]))
    else:
        from jsonargparse import auto_cli

        auto_cli(main, as_positional=False)
