"""Record what the schedulers of diffusers make of the toy model of toy_model.py: writes fixtures/solvers.npz.

Run by hand, where PyTorch and diffusers are installed:

    python tests/golden/make_solver_fixtures.py

A case is called solver-steps-variant; its scheduler and configuration are in `cases` as JSON, for the test to read.
"""

import importlib
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from support.toy_model import SHAPE, toy

TARGET = Path(__file__).resolve().parents[1] / "fixtures" / "solvers.npz"
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_s": "DPMSolverSinglestepScheduler",
    "pndm": "PNDMScheduler",
    "deis": "DEISMultistepScheduler",
    "kdpm2_a": "KDPM2AncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
# Of the Latte-1 folder, scheduler/scheduler_config.json.
FOLDER = {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
    **LINEAR,
}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# Solver, steps, name of the variant, and what it changes.
VARIANTS = [
    ("ddim", 10, "eta", {"eta": 0.5}),
    ("ddim", 10, "first", {"set_alpha_to_one": False, "eta": 1.0}),
    ("ddpm", 10, "learned", {"variance_type": "learned_range"}),
    ("ddpm", 10, "large", {"variance_type": "fixed_large"}),
    ("ddpm", 10, "stable", STABLE),
    ("pndm", 10, "plms", {"skip_prk_steps": True}),
    ("pndm", 25, "plms", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("pndm", 25, "stable", STABLE | {"skip_prk_steps": True}),
    ("dpmpp_s", 11, "odd", {}),
    ("euler", 12, "trailing", {"timestep_spacing": "trailing"}),
    ("kdpm2_a", 12, "trailing", {"timestep_spacing": "trailing"}),
    ("unipc", 12, "trailing", {"timestep_spacing": "trailing"}),
    ("unipc", 20, "min", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", 12, "min", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", 20, "min", {"final_sigmas_type": "sigma_min"}),
    ("deis", 20, "stable", STABLE),
]


def cases() -> dict[str, tuple[str, int, dict]]:
    """Solver, steps and the configuration that is given to its class, by the name of the case."""
    found = {}
    for solver, name in CLASSES.items():
        own = {"_class_name": name, **LINEAR} | ({"clip_sample": False} if solver in ("ddim", "ddpm") else {})
        for steps in (10, 25):
            found[f"{solver}-{steps}-own"] = (solver, steps, own)
            found[f"{solver}-{steps}-folder"] = (solver, steps, FOLDER)
        for _, steps, variant, changes in (each for each in VARIANTS if each[0] == solver):
            found[f"{solver}-{steps}-{variant}"] = (solver, steps, own | changes)
    return found


def sample(solver: str, steps: int, config: dict, start: np.ndarray, noises: np.ndarray) -> tuple[np.ndarray, list]:
    """The final latents, and the timesteps that the network is called with."""
    eta = {"eta": config["eta"]} if "eta" in config else {}
    learned = config.get("variance_type") == "learned_range"
    cls = getattr(diffusers, CLASSES[solver])
    scheduler = cls.from_config({key: value for key, value in config.items() if key != "eta"})
    # Its tables are float32; the comparison is of solvers, not of that rounding.
    square = config["beta_schedule"] == "scaled_linear"
    power = 0.5 if square else 1.0
    betas = np.linspace(config["beta_start"] ** power, config["beta_end"] ** power, 1000) ** (1 / power)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1.0 - betas))
    if hasattr(scheduler, "final_alpha_cumprod") and float(scheduler.final_alpha_cumprod) < 1.0:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    source = iter(noises)
    module = importlib.import_module(cls.__module__)
    module.randn_tensor = lambda *_, **__: swapped(next(source))
    scheduler.set_timesteps(steps)
    x = swapped(start) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        out = toy(swapped(x_in.numpy()).numpy(), float(t), learned)
        x = scheduler.step(swapped(out), t, x, **eta).prev_sample.float()
    return swapped(x.numpy()).numpy(), scheduler.timesteps.tolist()


def swapped(x: np.ndarray) -> torch.Tensor:
    """Swap frames and channels: diffusers has channels second."""
    return torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 1, 2)))


def main() -> None:
    """Record everything and write the file."""
    rng = np.random.default_rng(0)
    start, noises = (rng.standard_normal(shape).astype(np.float32) for shape in (SHAPE, (26, *SHAPE)))
    out, found = {"start": start, "noises": noises}, cases()
    for name, (solver, steps, config) in found.items():
        out[name], timesteps = sample(solver, steps, config, start, noises)
        out[f"{name}-timesteps"] = np.array(timesteps)
        assert np.isfinite(out[name]).all(), name
    out["cases"] = np.array(json.dumps(found))
    np.savez_compressed(TARGET, **out)
    print(f"{TARGET}: {len(found)} cases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
