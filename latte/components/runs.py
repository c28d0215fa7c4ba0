"""The folder of a training run as something to sample from: its newest weights and its autoencoder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from latte.components.folders import Parts, find_parts
from latte.config.train import TEXT_TO_VIDEO
from latte.config.values import fit
from latte.config.yaml_file import Plain, read_yaml
from latte.errors import UserError
from latte.io.json_files import exists

CONFIG_FILE, CHECKPOINTS = "config.yaml", "ckpt"
_WEIGHTS = re.compile(r"(ema|model)-(\d{8,})\.ckpt")
_STATE = re.compile(r"state-\d{8,}\.safetensors")


def run_of(path: str | Path) -> Path | None:
    """Return the folder of the run that a path names: the folder itself, its `ckpt`, or a file in that; else None."""
    path = Path(path)
    if not exists(path):
        return None
    ckpt = path.parent if path.is_file() else path
    run = ckpt.parent if ckpt.name == CHECKPOINTS else path
    return run if (run / CHECKPOINTS).is_dir() and (run / CONFIG_FILE).is_file() else None


def find(
    path: str | Path, vae: str | Path | None = None, temporal_decoder: bool = False, clip: str | Path | None = None
) -> Parts:
    """Return the parts of a pipeline, those of a run's folder too; raises UserError if a part is missing."""
    parts = None if temporal_decoder else parts_of_run(path, vae)
    parts = parts or find_parts(path, vae, temporal_decoder)
    if clip and parts.prompts:
        raise UserError(f"text_encoder_path is for networks with condition text; {path} has its own text encoder")
    return replace(parts, clip=Path(clip)) if clip else parts


def parts_of_run(path: str | Path, vae: str | Path | None = None) -> Parts | None:
    """Return the parts of a pipeline that the run of a path has, or None if the path is not of a run.

    The network is the newest one, unless the path names a file; its EMA weights are taken where there are some. The
    autoencoder is that of the run's options, unless `vae` names another one; so is CLIP's folder, where it is there.
    Raises UserError if the run has no weights yet, no autoencoder, or is of text to video.
    """
    run, path = run_of(path), Path(path)
    if run is None:
        return None
    if path.is_file() and _STATE.fullmatch(path.name):
        raise UserError(f"{path} is the state that a run resumes from, not weights; name the run's folder, {run}")
    network = path if path.is_file() else newest_weights(run)
    options = options_of(run)
    values, _ = read_yaml(options)
    if fit(values.get("model_name", Plain("null")), str | None) == TEXT_TO_VIDEO:
        base = fit(values.get("pretrained_model_path", Plain("null")), str | None)
        raise UserError(
            f"{run} is a run of {TEXT_TO_VIDEO}; make a folder to sample from: python tools/t2v_export.py "
            f"--source {network} --base {base} --target FOLDER"
        )
    stored = fit(values.get("vae_checkpoint", Plain("null")), str | None)
    found = Path(vae or stored or "")
    if not vae and not (stored and found.exists()):
        said = f"names the autoencoder {stored}, which does not exist" if stored else "names no autoencoder"
        raise UserError(f"{options} {said} here; name it (--vae_checkpoint, or vae of from_pretrained)")
    factor = fit(values.get("sd_scale_factor", Plain("null")), float | None)
    clip = fit(values.get("text_encoder_path", Plain("null")), str | None)
    return Parts(
        network, found, clip=Path(clip) if clip and exists(clip) else None, scale_factor=None if vae else factor
    )


def options_of(run: Path) -> Path:
    """Return the file with the options of a run's newest steps: of its start, or of a resume with other ones."""
    return max(run.glob("config-from-step-*.yaml"), default=run / CONFIG_FILE)


def weights_by_step(run: Path) -> dict[int, Path]:
    """Return the files of a run's weights by their steps, the oldest first; EMA weights where there are some.

    Raises UserError if there are none.
    """
    found = [(match, path) for path in (run / CHECKPOINTS).iterdir() if (match := _match(path))]
    if not found:
        raise UserError(f"{run} has no weights in {CHECKPOINTS} yet; train until the first checkpoint is saved")
    # EMA weights come after the others of a step, and so take their place.
    return {
        int(match[2]): path for match, path in sorted(found, key=lambda each: (int(each[0][2]), each[0][1] == "ema"))
    }


def newest_weights(run: Path) -> Path:
    """Return the file of a run's newest weights, EMA weights if there are some; raises UserError if there are none."""
    return list(weights_by_step(run).values())[-1]


def _match(path: Path) -> re.Match[str] | None:
    return _WEIGHTS.fullmatch(path.name) if path.is_file() else None
