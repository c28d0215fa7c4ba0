"""Samples on the stand-in with one way to skip work after the other; prints how often the host waits for the device.

python tests/ascend/standin.py python tests/ascend/waits.py FILE [CACHE...]
"""

import ctypes
import json
import sys

import numpy as np
from support.golden_values import tiny

from latte.diffusion.solvers import Solver
from latte.inference.caches import Walk, choose
from latte.inference.latents import LatentSampler, Request
from latte.runtime import device

device.init_device("Ascend")
library = ctypes.CDLL("libascendcl.so")
sampler = LatentSampler(tiny("class", dtype="fp16"))
depth, shape = len(sampler.net.blocks), sampler.net.config.latent_shape(None, None, None, 8)
file, *names = sys.argv[1:]
waits, videos = {}, {}


def sample(rows, solver, steps, cache):
    """Return the latents of some of three videos, and how often the host has waited: for all, for a call."""
    labels = np.array([0, 3, 1], np.int32)[rows]
    request = Request(
        seeds=[7 + row for row in rows],
        shape=shape,
        conditions=(labels,),
        null=(np.full_like(labels, sampler.net.config.num_classes),),
        guidance_scale=4.0,
        num_inference_steps=steps,
        solver=Solver(solver),
        cache=choose(cache, 0, Walk(solver, steps, steps, depth, True)),
    )
    before = library.standin_waits(), library.standin_event_waits()
    made = sampler.sample(request)
    return made, library.standin_waits() - before[0], library.standin_event_waits() - before[1]


for name in names:
    solver, _, cache = name.partition(" ")
    cache = cache or None
    sample([0], solver, 8, cache)  # compiles
    found = [sample([0], solver, steps, cache)[1:] for steps in (8, 16)]
    waits[name] = [(long - short) / 8 for short, long in zip(*found, strict=True)]
    for rows in ([1, 2], [0, 1, 2]):
        videos[f"{name}, {len(rows)} videos"] = sample(rows, solver, 8, cache)[0]
np.savez(file, **videos)
print(json.dumps(waits))
