"""Record what the official PyTorch code computes from made-up network outputs: writes fixtures/gaussian.npz.

Run by hand, where PyTorch is installed, with a checkout of https://github.com/Vchitect/Latte:

    python tests/golden/make_diffusion_fixtures.py --official PATH_TO_CHECKOUT
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

TARGET = Path(__file__).resolve().parents[1] / "fixtures" / "gaussian.npz"
TIMESTEPS = [0, 0, 0, 1, 20, 250, 500, 998, 999]
ERRORS = [0.3, 1.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # of the predicted noise: at t = 0 from inside to far tails
SHORT_STEPS = [0, 1, 5, 9]  # of a process respaced to 10 steps
SHAPE = (2, 4, 4, 4)  # frames, channels, height, width


def load_official(checkout: str) -> ModuleType:
    """Import the checkout's ``diffusion`` package, and nothing else of it."""
    folder = Path(checkout) / "diffusion"
    spec = importlib.util.spec_from_file_location(
        "official_diffusion", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["official_diffusion"] = module
    spec.loader.exec_module(module)
    return module


def toy_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A stand-in for a network that depends on x and t; test_samplers.py has the same one."""
    level = (t.float() / 1000).reshape(-1, 1, 1, 1, 1)
    return torch.cat([x * (0.3 + 0.6 * level) + 0.1, torch.tanh(x) * level], dim=2)


def draws(seed: int, like: torch.Tensor, count: int) -> torch.Tensor:
    """The noise that official code draws from ``seed`` on in ``count`` steps; leaves the generator at ``seed``."""
    torch.manual_seed(seed)
    noise = torch.stack([torch.randn_like(like) for _ in range(count)])
    torch.manual_seed(seed)
    return noise


def record_losses(diffusion, out: dict) -> None:
    """Loss terms by sample, and the gradient of the mean loss by the network's output."""
    rng = torch.Generator().manual_seed(0)
    count = len(TIMESTEPS)
    x_start = torch.randn(count, *SHAPE, generator=rng) * 0.8  # wide enough for the open ends of the decoder's range
    noise = torch.randn(count, *SHAPE, generator=rng)
    error = torch.randn(count, *SHAPE, generator=rng) * torch.tensor(ERRORS).reshape(-1, 1, 1, 1, 1)
    values = torch.rand(count, *SHAPE, generator=rng) * 2.6 - 1.3
    model_out = torch.cat([noise + error, values], dim=2).requires_grad_()
    t = torch.tensor(TIMESTEPS)
    terms = diffusion.training_losses(lambda x, t: model_out, x_start, t, noise=noise)
    terms["loss"].mean().backward()
    x_t = diffusion.q_sample(x_start, t, noise)
    result = diffusion.p_mean_variance(lambda x, t: model_out, x_t, t, clip_denoised=False)
    arrays = {"x_start": x_start, "t": t, "noise": noise, "model_out": model_out, "x_t": x_t, **terms}
    arrays.update(grad=model_out.grad, x_start_hat=result["pred_xstart"], mean=result["mean"])
    arrays.update(log_variance=result["log_variance"])
    out.update({key: value.detach().numpy() for key, value in arrays.items()})


def record_steps(diffusion, prefix: str, steps: list, out: dict) -> None:
    """One solver step from x_t of each recorded sample, the schedule's step numbers being ``steps``."""
    x = torch.from_numpy(out["x_t"])[-len(steps) :]
    model_out = torch.from_numpy(out["model_out"])[-len(steps) :]
    noise = draws(1, x, 1)[0]
    network, t = (lambda x, t: model_out), torch.tensor(steps)
    out[f"{prefix}_t"], out[f"{prefix}_noise"] = t.numpy(), noise.numpy()
    out[f"{prefix}_ddpm"] = diffusion.p_sample(network, x, t, clip_denoised=False)["sample"].numpy()
    for name, eta in (("ddim", 0.0), ("ddim_half", 0.5), ("ddim_one", 1.0)):
        torch.manual_seed(1)
        out[f"{prefix}_{name}"] = diffusion.ddim_sample(network, x, t, clip_denoised=False, eta=eta)["sample"].numpy()


def record_loops(diffusion, out: dict) -> None:
    """Whole loops of ten steps with the toy network."""
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    out["loop_start"], out["loop_noise"] = x.numpy(), draws(3, x, 10).numpy()
    sample = diffusion.p_sample_loop(toy_network, x.shape, x, clip_denoised=False, device="cpu")
    out["loop_ddpm"] = sample.numpy()
    for name, eta in (("ddim", 0.0), ("ddim_half", 0.5)):
        torch.manual_seed(3)
        sample = diffusion.ddim_sample_loop(toy_network, x.shape, x, clip_denoised=False, device="cpu", eta=eta)
        out[f"loop_{name}"] = sample.numpy()


def main() -> None:
    """Record everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="checkout of the official repository")
    official = load_official(parser.parse_args().official)
    full, short = official.create_diffusion(""), official.create_diffusion("10")
    out = {}
    record_losses(full, out)
    with torch.no_grad():
        record_steps(full, "full", TIMESTEPS, out)
        record_steps(short, "short", SHORT_STEPS, out)
        record_loops(short, out)
    for request in ("10,15,20", "ddim100", "7", "333"):
        out[f"map_{request}"] = np.array(official.create_diffusion(request).timestep_map)
    np.savez_compressed(TARGET, **out)
    print(f"{TARGET}: {len(out)} arrays, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
