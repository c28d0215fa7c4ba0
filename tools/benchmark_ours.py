"""Our side of tools/benchmark.py, which runs this file in one process per measurement."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark_common import (
    CLIPS,
    EMA_DECAY,
    LATENT_SCALE,
    LEARNING_RATE,
    WEIGHTS,
    clips,
    deviation,
    inputs,
    timed,
    work,
)

WINDOW, STORED = 128, 300  # frames per window, and per video of the cache
LOADED = 24  # videos


def _our_step(job: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    import mindspore as ms
    import numpy as np

    from latte import load_model
    from latte.diffusion.denoiser import make_denoiser
    from latte.diffusion.solvers import Network, Solver, ddpm
    from latte.diffusion.timesteps import Steps
    from latte.runtime import device, graphs

    device.init_device("CPU")
    net = load_model(Path(job["folder"]) / WEIGHTS["step"], dtype=job["dtype"])
    load = time.perf_counter() - start
    arrays = inputs(job)
    walk = Solver("ddpm").steps("250")
    t, after = (int(t) for t in walk.timesteps[124:126])
    step = Steps(walk.timesteps[124:125], walk.alphas_cumprod, walk.alphas_cumprod[after])
    denoise, times = graphs.compile_step(make_denoiser(net)), ms.Tensor(np.array([t], np.float32))
    scale = ms.Tensor(np.float32(1))
    model = Network(lambda x, _: denoise(ms.Tensor(x), times, scale).asnumpy())
    call = lambda _: next(ddpm(model, arrays["x"], step, iter([arrays["noise"]])))  # noqa: E731
    result = timed(call, job["steps"])
    return result | {"load": load, "deviation": deviation(job, "out", net(ms.Tensor(arrays["x"]), times).asnumpy())}


def step_inputs(job: dict[str, Any]) -> list[Any]:
    """Return the inputs of a training step: moments without variance, posterior noise, t, noise, skipped videos."""
    import mindspore as ms
    import numpy as np

    data = inputs(job)
    moments = np.concatenate((data["x"], np.full_like(data["x"], -30)), 2)
    arrays = (
        moments,
        np.zeros_like(data["x"]),
        np.array([500], np.int32),
        data["noise"],
        np.full((1, 8), -1, np.int32),
    )
    return [ms.Tensor(array) for array in arrays]


def _our_train(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from latte import load_model
    from latte.models.precision import prepare
    from latte.runtime import device
    from latte.training.step import StepOptions, TrainStep

    device.init_device("CPU")
    net, ema = (load_model(Path(job["folder"]) / WEIGHTS["train"]) for _ in range(2))
    for each in (net, ema):
        prepare(each, for_training=True)
    learning_rates = np.full(job["steps"] + job["warm_up"] + 1, LEARNING_RATE, np.float32)
    options = StepOptions(ema_decay=EMA_DECAY, scale_factor=1.0)
    call = TrainStep(net, ema, None, learning_rates, options).as_function()
    given, losses = step_inputs(job), []
    result = timed(lambda i: losses.append(float(call(*given))), job["steps"], job["warm_up"])
    return result | {"deviation": deviation(job, "losses", np.array(losses))}


def _our_loader(job: dict[str, Any]) -> dict[str, Any]:
    from latte.config import TrainConfig
    from latte.data.dataset import PixelStore, VideoDataset
    from latte.data.index import list_records
    from latte.data.loader import TrainingSource, make_loader
    from latte.runtime import device

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

    from latte.config import CacheConfig
    from latte.runtime import device
    from latte.training.cache_maker import make_cache

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
    error = deviation(job, "cached", moments)
    return {"first": clock.first, "seconds": 1 / clock.frames_per_second, "deviation": error, "notes": notes}


def _read_note(job: dict[str, Any], kind: str) -> str:
    """Measure the speed of reading windows from a cache of random moments, with one and with two workers."""
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
        f"Reading windows of {WINDOW} frames from {kind}: {WINDOW * CLIPS / epochs[0]:.0f} frames per second; an epoch "
        f"of {CLIPS} videos takes {epochs[0]:.2f} s with 1 worker and {epochs[1]:.2f} s with 2."
    )


def _drain(batches: Any) -> float:
    """Return the mean seconds per remaining batch."""
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return (time.perf_counter() - start) / count


def _our_vae(job: dict[str, Any]) -> dict[str, Any]:
    import mindspore as ms

    from latte import load_vae
    from latte.runtime import device

    device.init_device("CPU")
    vae = load_vae(Path(job["folder"]) / WEIGHTS["vae"])
    data = {name: ms.Tensor(value) for name, value in inputs(job).items()}
    encode = timed(lambda i: vae.encode(data["image"]).asnumpy(), job["steps"])
    decode = timed(lambda i: vae.decode(data["z"]).asnumpy(), job["steps"])
    encode["deviation"] = deviation(job, "moments", vae.encode(data["image"]).asnumpy())
    decode["deviation"] = deviation(job, "decoded", vae.decode(data["z"]).asnumpy())
    return {"encode": encode, "decode": decode}


def _our_t2v(job: dict[str, Any]) -> dict[str, Any]:
    import mindspore as ms
    import numpy as np

    from latte import load_t2v
    from latte.runtime import device

    device.init_device("CPU")
    start = time.perf_counter()
    net = load_t2v(Path(job["folder"]) / WEIGHTS["t2v"], dtype=job["dtype"])
    load, data = time.perf_counter() - start, inputs(job)
    text, mask = ms.Tensor(data["text"]), ms.Tensor(np.ones(data["text"].shape[:2], np.int32))
    outs: list[np.ndarray] = []
    call = lambda _: outs.append(net(ms.Tensor(data["x"]), ms.Tensor([500], ms.int32), text, mask).asnumpy())  # noqa: E731
    return timed(call, job["steps"]) | {"load": load, "deviation": deviation(job, "t2v_out", outs[-1])}


if __name__ == "__main__":
    measurements = {"step": _our_step, "vae": _our_vae, "train": _our_train, "loader": _our_loader}
    work(measurements | {"cache": _our_cache, "t2v": _our_t2v})
