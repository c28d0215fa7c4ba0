"""Print what is predicted of full-size steps on an Ascend 910B3, the tables in docs/estimate.md.

python tests/golden/make_estimate_rows.py [TABLES]     # of other launches than the shipped ones, as before a change
"""

from __future__ import annotations

import sys
from pathlib import Path

from latte.config import SampleConfig, TrainConfig
from latte.inference import estimate
from latte.runtime import roofline

HALVES = {"dtype": "fp16", "enable_flash_attention": True}
LONG = {"num_frames": 128, "train_batch_size": 1}
CACHED = {"cache_folder": "x"}
ROWS = {
    "training, 5 x 16 from videos": {},
    "the same, vae_dtype bf16": {"vae_dtype": "bf16"},
    "training, 5 x 16 from a cache": CACHED,
    "the same, recomputed": CACHED | {"use_recompute": True},
    "training, 1 x 128 from a cache, recomputed": CACHED | LONG | {"use_recompute": True},
    "the same, one pair of blocks in 4 recomputed": CACHED | LONG | {"use_recompute": True, "recompute_every": 4},
    "the same, nothing recomputed": CACHED | LONG,
    "sampling step, 1 x 16": {"sampling_steps": 250},
    "the same, guided by classes": {"sampling_steps": 250, "guidance_scale": 7.0},
    "Latte-1 at 512 px, guided": {"sampling_steps": 50, "prompts": ["a dog"]},
}


BOUNDED = {  # what was asked for, in images per second: times as fast as was published
    "the same, vae_dtype bf16": 2 * 77.67,
    "training, 5 x 16 from a cache": 2 * 77.67,
    "training, 1 x 128 from a cache, recomputed": 1.5 * 105.78,
    "the same, nothing recomputed": 1.5 * 105.78,
}
ALMOST_NONE = 1e-9  # videos: what is left of a step is what has the size of the weights


def main(tables: str | None = None) -> None:
    """Print a row for each step."""
    if tables:
        roofline.LAUNCHES = Path(tables)
    on = roofline.card("910B3")
    print("| | launches | casts | GB | s | s by operations alone | speed | peak, GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, options in ROWS.items():
        work = sampled(options) if "sampling_steps" in options else trained(options)
        found, launches = estimate.predict(work, on), estimate.steps(work, on)
        casts = sum(each.number for each in launches if each.op == "aclnnCast")
        peaks = {"float16": on.half, "float32": on.single}
        least = sum(each.number * each.flops / peaks[each.dtype] for each in launches if each.flops)
        seconds = found.times.total
        speed = f"{work.sizes.batch * work.sizes.frames / seconds:,.1f} img/s"
        if not work.trains:
            speed = f"{work.calls * seconds + found.after:.1f} s for {work.calls} steps"
        figures = f"{found.launches:,.0f} | {casts:,.0f} | {found.bytes / 1e9:,.0f} | {seconds:.3f} | {least:.3f}"
        print(f"| {name} | {figures} | {speed} | {found.memory.peak / 2**30:.1f} |")
    print("\n| | asked, s | products, s | passes over weights, s | least, s | speed at best |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, asked in BOUNDED.items():
        work = trained(ROWS[name])
        images = work.sizes.batch * work.sizes.frames
        products = estimate.predict(work, on).times.products
        passes = estimate.predict(work.of_batch(ALMOST_NONE), on).times.passes
        least = products + passes
        figures = f"{images / asked:.3f} | {products:.3f} | {passes:.3f} | {least:.3f}"
        print(f"| {name} | {figures} | {images / least:.1f} img/s |")


def trained(options: dict) -> estimate.Work:
    """Return the work of a training."""
    cfg = TrainConfig(**HALVES, **options)
    return estimate.training(cfg, *estimate.described(cfg))


def sampled(options: dict) -> estimate.Work:
    """Return the work of a sampling."""
    cfg = SampleConfig(checkpoint="none.ckpt", **HALVES, **options)
    config, vae, _ = estimate.stored(cfg)
    return estimate.sampling(cfg, config, vae)


if __name__ == "__main__":
    main(*sys.argv[1:])
