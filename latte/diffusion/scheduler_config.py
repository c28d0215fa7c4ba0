"""From the scheduler_config.json of a diffusers folder to a solver and its options."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_ENDING = {"final_sigmas_type": "zero"}
_K_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}

# Solver of each class, with the keys that the class knows and what it takes for them when they are missing.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", {**_LEADING, "set_alpha_to_one": True, "clip_sample": True}),
    "DDPMScheduler": ("ddpm", {**_LEADING, "variance_type": "fixed_small", "clip_sample": True}),
    "EulerDiscreteScheduler": ("euler", _SPACED | _ENDING),
    "EulerAncestralDiscreteScheduler": ("euler_a", _SPACED),
    "HeunDiscreteScheduler": ("heun", _SPACED | _K_BETAS),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", _SPACED | _ENDING),
    "DPMSolverSinglestepScheduler": ("dpmpp_s", _ENDING),
    "PNDMScheduler": ("pndm", {**_LEADING, "set_alpha_to_one": False, "skip_prk_steps": False}),
    "DEISMultistepScheduler": ("deis", _SPACED),
    "KDPM2AncestralDiscreteScheduler": ("kdpm2_a", _SPACED | _K_BETAS),
    "UniPCMultistepScheduler": ("unipc", _SPACED | _ENDING),
}
_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# What other keys have to say, of the process that the network was trained on and of its timesteps ...
PROCESS: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon",),
    "num_train_timesteps": (1000,),
    "beta_schedule": ("linear", "scaled_linear"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "linspace", "trailing", "respaced"),  # the last one is ours
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-math.inf,),
    "final_sigmas_type": ("zero", "sigma_min"),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"), (False,)),
    **dict.fromkeys(("use_lu_lambdas", "use_dynamic_shifting"), (False,)),
}
# ... and of the method, which another solver does not care about.
METHOD: dict[str, tuple[Any, ...]] = {
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh2", "logrho"),
    "algorithm_type": ("dpmsolver++", "deis"),
    "euler_at_final": (False,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
}
NUMBERS: dict[str, tuple[float, float]] = {  # beyond the betas, the signal of the last steps would be no float32
    "beta_start": (1e-8, 0.2),
    "beta_end": (1e-8, 0.2),
    "steps_offset": (0, 999),
    "num_train_timesteps": (1, 1000),
}
BOOLEANS = ("set_alpha_to_one", "skip_prk_steps", "clip_sample")
TEXTS = ("_class_name", "beta_schedule", "prediction_type", "timestep_spacing", "variance_type", "final_sigmas_type")
_VARIANCES = {"fixed_small_log": "fixed_small"}


def check_values(config: Mapping[str, Any], where: str) -> None:
    """Raise UserError, naming `where` and the key, for a value of another type than its key has, or out of bounds."""
    check_numbers(config, NUMBERS, where)
    for keys, kind, what in ((BOOLEANS, bool, "true or false"), (TEXTS, str, "a text")):
        for key in keys:
            value = config.get(key)
            if value is not None and not isinstance(value, kind):
                raise UserError(f"{where}: {key} must be {what}, but is {quoted(repr(value), 60)}")


def solver_of(config: Mapping[str, Any], name: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the solver of a scheduler's configuration and its options, for `Solver(name, **options)`.

    With `name`, it is that solver, with what the configuration says about the process; what its class has no key for
    stays as usual for it. Raises UserError in one sentence for what is not supported.
    """
    check_values(config, "the scheduler's configuration")
    own = quoted(config.get("_class_name"))
    if own not in CLASSES and name is None:
        nearest = difflib.get_close_matches(own, CLASSES, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no solver for the scheduler {own}: the nearest is {nearest}")
    name = name or CLASSES[own][0]
    known = {solver: (cls, keys) for cls, (solver, keys) in CLASSES.items()}
    if name not in known:
        return name, {}  # Solver says what is wrong
    cls, defaults = known[name]
    defaults = _BETAS | defaults
    if own == cls:
        _check(defaults | dict(config), PROCESS | METHOD, cls)
        if name != "dpmpp_s":  # whose scheduler sets this key itself
            _check(config, {"lower_order_final": (True,)}, cls)
    else:
        defaults.pop("clip_sample", None)
        _check(config, PROCESS, own)
    told = {key: value for key, value in config.items() if value is not None}
    return name, _options({key: told.get(key, default) for key, default in defaults.items()}, name)


def config_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration from which `solver_of` makes this solver and these options.

    It is one of diffusers, unless the spacing is "respaced", which diffusers does not have.
    """
    cls = next(cls for cls, (solver, _) in CLASSES.items() if solver == name)
    config: dict[str, Any] = {
        "_class_name": cls,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "clip_sample": False,
    }
    config |= {key: options[key] for key in (*_BETAS, "steps_offset")}
    config["timestep_spacing"] = options["spacing"]
    if name == "ddpm":
        config["variance_type"] = options.get("variance") or "learned_range"
    if name == "pndm":
        config["skip_prk_steps"] = options["skip_prk_steps"]
    if name in ("ddim", "pndm"):
        config["set_alpha_to_one"] = not options.get("ends_at_first")
    elif options.get("ends_at_first") and name in ("dpmpp_2m", "unipc"):
        config["final_sigmas_type"] = "sigma_min"
    return config


def _options(said: dict[str, Any], name: str) -> dict[str, Any]:
    """Rename keys of a scheduler to options of a Solver."""
    options = {key: said[key] for key in (*_BETAS, "steps_offset", "skip_prk_steps") if key in said}
    if "timestep_spacing" in said:
        options["spacing"] = said["timestep_spacing"]
    if "variance_type" in said:
        options["variance"] = _VARIANCES.get(said["variance_type"], said["variance_type"])
    if "set_alpha_to_one" in said:
        options["ends_at_first"] = not said["set_alpha_to_one"]
    if said.get("final_sigmas_type") == "sigma_min":
        if name not in ("dpmpp_2m", "unipc"):
            raise UserError(f"final_sigmas_type sigma_min is not supported for {name}, only zero")
        options["ends_at_first"] = True
    return options


def _check(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]], cls: str) -> None:
    """Raise UserError if a key that is there has a value that is not allowed."""
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            choice = " or ".join(str(value) for value in values)
            raise UserError(f"{cls}: {key} {quoted(config[key])} is not supported, only {choice}")
