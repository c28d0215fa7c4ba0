"""Find the configs and the demo model that are shipped, in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

from latte.errors import UserError

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
    if path.is_absolute() or ".." in path.parts or path.exists() or not (root() / path).exists():
        return path
    return root() / path


def find_config(name: str | Path, kind: str) -> Path:
    """Return the config file `name`: a path, or the bare name of a shipped one, such as `demo`.

    kind: the folder under configs/, `inference` or `training`. Raises UserError, with the shipped names, if there is
    no such file.
    """
    found = find(name)
    if found.is_file():
        return found
    folder = root() / "configs" / kind
    shipped = sorted(path.stem for path in folder.glob("*.yaml"))
    if str(name) in shipped:
        return folder / f"{name}.yaml"
    raise UserError(f"there is no config file {name}; give a path, or one of the shipped: {', '.join(shipped)}")
