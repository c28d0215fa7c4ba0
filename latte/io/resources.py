"""Find what is shipped, the configs and the demo model, in a checkout and an installed package alike; and the cache."""

from __future__ import annotations

import os
from pathlib import Path

from latte.io.json_files import exists

KINDS = ("inference", "training")  # of configs
_PACKAGE = Path(__file__).resolve().parent.parent


def root() -> Path:
    """Return the folder that holds `configs/` and `models/demo/`: the checkout, or `_shipped` of an installed latte."""
    shipped = _PACKAGE / "_shipped"  # the wheel puts it there
    return shipped if shipped.is_dir() else _PACKAGE.parent


def find(name: str | Path) -> Path:
    """Return the path `name` if it exists or nothing of that name is shipped, else the shipped file or folder.

    So what the user has wins, and the message for what nobody has names the path as the user wrote it. `name` is
    relative to the repository's root, such as `models/demo/latte.safetensors`.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or exists(path) or not exists(root() / path):
        return path
    return root() / path


def find_config(name: str | Path) -> Path:
    """Return the config file `name`: a path, or the bare name of a shipped one, such as `demo` or `sky_video`.

    Where nothing has that name, it is returned as it is, for the message of whoever opens it.
    """
    found = find(name)
    bare = [root() / "configs" / kind / f"{name}.yaml" for kind in KINDS]
    return next((path for path in (found, *bare) if exists(path) and path.is_file()), found)


def config_names() -> list[str]:
    """Return the bare names of the shipped configs, sorted."""
    return sorted(path.stem for kind in KINDS for path in (root() / "configs" / kind).glob("*.yaml"))


def user_cache() -> Path:
    """Return the folder `latte` in the user's cache folder, where what can be made or had again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latte"
