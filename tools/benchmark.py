"""Measure sampling beside official PyTorch: same machine, same run, same weights and inputs, each in its own process.

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
WEIGHTS = {"step": "latte.pt", "vae": "vae.bin"}


def main(
    official: str,
    torch_python: str,
    model_name: str = "Latte-XL/2",
    image_size: int = 256,
    num_frames: int = 16,
    dtypes: list[Literal["fp32", "bf16"]] | None = None,
    steps: int = 3,
    torch_bf16_steps: int = 1,
    threads: int = 2,
    repeats: int = 1,
    parts: list[Literal["step", "vae"]] | None = None,
) -> None:
    """Measure a denoising step, and encoding and decoding of a frame, and print a table.

    Args:
        official: checkout of the official PyTorch repository.
        torch_python: Python interpreter that has torch and diffusers.
        model_name: network to measure.
        image_size: pixels a side.
        num_frames: frames a video.
        dtypes: arithmetic to measure; both by default.
        steps: denoising steps after the first one, or frames; the median counts.
        torch_bf16_steps: the same for PyTorch's bf16 autocast; 0 times the first step, where a step takes minutes.
        threads: CPU threads for both sides.
        repeats: how often each pair is measured, in turn.
        parts: what to measure; all by default.
    """
    job = {"official": official, "model_name": model_name, "size": image_size // LATENT_SCALE, "frames": num_frames}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job["folder"] = folder
        for part in parts or ["step", "vae"]:
            for dtype in (dtypes or ["fp32", "bf16"]) if part == "step" else ["fp32"]:
                for _ in range(repeats):
                    here = {**job, "part": part, "dtype": dtype, "steps": steps}
                    few = torch_bf16_steps if dtype == "bf16" else steps
                    peer = _measure(torch_python, {**here, "side": "torch", "steps": few}, threads)
                    rows.append((peer, _measure(sys.executable, {**here, "side": "ours"}, threads)))
    print(_machine(threads))
    print(_table(rows))


def _measure(python: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it measured."""
    print(f"measuring {job['part']} {job['dtype']} {job['side']} ...", file=sys.stderr, flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if job["side"] == "torch":
        env["PYTHONPATH"] = job["official"]
    command = [python, __file__, "--worker", json.dumps(job | {"threads": threads})]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"error: the measurement {job['part']} {job['dtype']} {job['side']} failed, see above")
    return job | json.loads(done.stdout.splitlines()[-1])


def _timed(call: Callable[[int], Any], count: int) -> dict[str, Any]:
    """Time a first call and `count` more."""
    seconds = []
    for i in range(count + 1):
        start = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:] or seconds)}


def _inputs(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    size, frames = job["size"], job["frames"]
    pixels = size * LATENT_SCALE
    draw = {"x": (1, frames, 4, size, size), "noise": (1, frames, 4, size, size)}
    draw |= {"image": (1, 3, pixels, pixels), "z": (1, 4, size, size)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in draw.items()}


def _save(job: dict[str, Any], name: str, value: Any) -> None:
    import numpy as np

    np.save(Path(job["folder"]) / f"{name}.npy", value)


def _deviation(job: dict[str, Any], name: str, value: Any) -> float:
    """Return the largest deviation from PyTorch's float32 result, relative to its largest number."""
    import numpy as np

    expected = np.load(Path(job["folder"]) / f"{name}.npy")
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def worker(job: dict[str, Any]) -> None:
    """Make one measurement and print it as a line of JSON."""
    result = {"torch": {"step": _torch_step, "vae": _torch_vae}, "ours": {"step": _our_step, "vae": _our_vae}}[
        job["side"]
    ][job["part"]](job)
    print(json.dumps(result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def _torch_step(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    _stand_in_for_timm(torch)
    from diffusion import create_diffusion  # of the official checkout
    from models.latte import Latte_models

    net = Latte_models[job["model_name"]](input_size=job["size"], num_frames=job["frames"], extras=1).eval()
    torch.manual_seed(0)
    for name, p in net.named_parameters():  # layers that start at zero would make every output zero
        if "embed" not in name or "proj" in name:
            p.normal_(0, 0.02)
    file = Path(job["folder"]) / WEIGHTS["step"]
    if not file.exists():
        torch.save({"ema": net.state_dict()}, file)
    data = {name: torch.from_numpy(value) for name, value in _inputs(job).items()}
    diffusion = create_diffusion("250")
    t = torch.tensor([125])

    def step(i: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=job["dtype"] == "bf16"):
            out = net(data["x"], torch.tensor([diffusion.timestep_map[125]]))
        torch.manual_seed(0)
        diffusion.p_sample(lambda x, t: out, data["x"], t, clip_denoised=False)
        if i == 0 and job["dtype"] == "fp32":
            _save(job, "out", out.float().numpy())

    return _timed(step, job["steps"])


def _stand_in_for_timm(torch: Any) -> None:
    """Give the official model the two classes it takes from timm, where torchvision, which timm needs, is missing."""
    import types

    class Mlp(torch.nn.Module):
        def __init__(self, in_features: int, hidden_features: int, act_layer: Callable, drop: float = 0):
            super().__init__()
            self.fc1 = torch.nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.fc2 = torch.nn.Linear(hidden_features, in_features)

        def forward(self, x: Any) -> Any:
            return self.fc2(self.act(self.fc1(x)))

    class PatchEmbed(torch.nn.Module):
        def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool = True):
            super().__init__()
            self.proj = torch.nn.Conv2d(channels, width, patch, patch, bias=bias)
            self.num_patches, self.patch_size = (size // patch) ** 2, (patch, patch)

        def forward(self, x: Any) -> Any:
            return self.proj(x).flatten(2).transpose(1, 2)

    for name in ("timm", "timm.models", "timm.models.vision_transformer"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[name].Mlp, sys.modules[name].PatchEmbed = Mlp, PatchEmbed
    # The package's __init__ imports the text-to-video model and its dependencies, which are not measured here.
    package = types.ModuleType("models")
    package.__path__ = [str(Path(os.environ["PYTHONPATH"]) / "models")]
    sys.modules["models"] = package


def _torch_vae(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(3, 3, down, up, widths, layers_per_block=2, latent_channels=4).eval()
    file = Path(job["folder"]) / WEIGHTS["vae"]
    if not file.exists():
        torch.save(vae.state_dict(), file)
    data = {name: torch.from_numpy(value) for name, value in _inputs(job).items()}
    encode = _timed(lambda i: vae.encode(data["image"]), job["steps"])
    decode = _timed(lambda i: vae.decode(data["z"]), job["steps"])
    _save(job, "moments", vae.encode(data["image"]).latent_dist.parameters.numpy())
    _save(job, "decoded", vae.decode(data["z"]).sample.numpy())
    return {"encode": encode, "decode": decode}


def _our_step(job: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    import mindspore as ms
    import numpy as np

    from latte import device, load_model
    from latte.diffusion.samplers import coefficients, make_step
    from latte.diffusion.schedule import create_schedule

    device.init_device("CPU")
    net = load_model(Path(job["folder"]) / WEIGHTS["step"], dtype=job["dtype"])
    load = time.perf_counter() - start
    data = {name: ms.Tensor(value) for name, value in _inputs(job).items()}
    schedule = create_schedule("250")
    coef = ms.Tensor(coefficients("ddpm", schedule)[125])
    t = ms.Tensor(np.array([schedule.timesteps[125]], np.int32))
    step = device.compile_step(make_step(net, "ddpm"))
    result = _timed(lambda i: step(data["x"], t, data["noise"], coef).asnumpy(), job["steps"])
    return result | {"load": load, "deviation": _deviation(job, "out", net(data["x"], t).asnumpy())}


def _our_vae(job: dict[str, Any]) -> dict[str, Any]:
    import mindspore as ms

    from latte import device, load_vae

    device.init_device("CPU")
    vae = load_vae(Path(job["folder"]) / WEIGHTS["vae"])
    data = {name: ms.Tensor(value) for name, value in _inputs(job).items()}
    encode = _timed(lambda i: vae.encode(data["image"]).asnumpy(), job["steps"])
    decode = _timed(lambda i: vae.decode(data["z"]).asnumpy(), job["steps"])
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
            what = f"VAE {key} a frame" if key else f"denoising step {ours['dtype']}"
            memory = f"{peer['memory'] / 1e9:.2f} / {ours['memory'] / 1e9:.2f}"
            lines.append(
                f"| {what} | {a['seconds']:.2f} | {b['seconds']:.2f} | {a['seconds'] / b['seconds']:.2f} x "
                f"| {b['first']:.1f} | {memory} | {b['deviation']:.1e} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        from jsonargparse import auto_cli

        auto_cli(main, as_positional=False)
