"""Weights in other forms of file: one network, or the components of a text-to-video folder."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from latte.components.folders import INDEX, REMEDY, check_own
from latte.components.loading import KINDS, Weights, read
from latte.components.quantize import check_kind, matrices, quantized_state
from latte.components.text_encoder import VOCABULARIES
from latte.errors import UserError
from latte.io.atomic import atomic_folder, check_new_folder, check_room, sync
from latte.io.json_files import read_json
from latte.weights.files import CONFIG, check_suffix, read_state_dict, write_state_dict
from latte.weights.match import read_config

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

FORMS = ("ckpt", "safetensors", "bin")
COMPONENTS = {  # that have weights
    KINDS[name].folder: KINDS[name] for name in ("latte_t2v", "autoencoder", "temporal_decoder", "t5")
}
FILES = {  # of the others, one that must be there
    "tokenizer": tuple(names[0] for names in VOCABULARIES["t5"]),
    "scheduler": ("scheduler_config.json",),
}
OPTIONAL = ("vae_temporal_decoder",)
QUANTIZABLE = ("transformer", "text_encoder")
SPARE = 1 << 20  # bytes that the headers of files take


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of the folder: its weights, if it has any, and the files beside them that are copied."""

    name: str
    tensors: dict[str, np.ndarray]
    files: list[Path]
    quantized: Collection[str] = ()  # layers whose matrices become int8

    def written(self, empty: bool = False) -> dict[str, np.ndarray]:
        """Return the tensors that are written; with `empty`, the new ones among them have shapes only."""
        return quantized_state(self.tensors, self.quantized, empty) if self.quantized else self.tensors

    def size(self) -> int:
        """Return the bytes that are written."""
        return sum(array.nbytes for array in self.written(empty=True).values()) + self.size_of_files()

    def size_of_files(self) -> int:
        """Return the bytes that are copied."""
        return sum(file.stat().st_size for file in self.files)

    def describe(self) -> str:
        """Return a line about the component: its tensors or files, and their size."""
        if self.tensors:
            return f"{self.name}: {summary(self.written(empty=True))}"
        return f"{self.name}: {len(self.files)} files, {self.size_of_files() / 1e6:,.1f} MB"


def convert_folder(
    source: str | Path,
    target: str | Path,
    form: str = "ckpt",
    quantize: str | None = None,
    components: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Write the components of a text-to-video folder into a new folder, one weight file each, and describe them.

    `form` is the suffix of the weight files; `components` are names with commas between them, None takes all. Every
    component is checked against the network of its config.json before anything is written.
    Raises UserError if one is missing, damaged or another network's, if the target is there, or the disk is too full.
    """
    source, target = Path(source), check_new_folder(target)
    if form not in FORMS:
        raise UserError(f"format {form!r} is not known; choose one of {', '.join(FORMS)}")
    as_int8 = check_kind(quantize) is not None
    index = _read_index(source)
    found = [_component(source, name, as_int8 and name in QUANTIZABLE) for name in _names(source, components)]
    total = sum(component.size() for component in found) + index.stat().st_size
    check_room(target.parent, total + SPARE, "make room there")
    if not dry_run:
        with atomic_folder(target) as folder, tqdm(total=total, unit="B", unit_scale=True, desc=target.name) as bar:
            _copy(index, folder)
            for component in found:
                _write(component, folder / component.name, form, bar)
            bar.update(total - bar.n)
    lines = [component.describe() for component in found]
    how = ", not written" if dry_run else ""
    return [*lines, f"{source} -> {target}: {len(found)} components as {form}, {total / 1e6:,.1f} MB{how}"]


def _read_index(source: Path) -> Path:
    """Return the index of a diffusers folder; raises UserError if it is missing or damaged."""
    index = source / INDEX
    if not index.is_file():
        raise UserError(f"{source} is no folder with a {INDEX}; name the one that holds transformer, vae, text_encoder")
    read_json(index, remedy=REMEDY)
    return check_own(index, source)


def _names(source: Path, asked: str | None) -> list[str]:
    """Return the components to convert; raises UserError if one is missing or not known."""
    known = [*COMPONENTS, *FILES]
    if asked is None:
        names = [name for name in known if name not in OPTIONAL or (source / name).is_dir()]
    else:
        names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"component {wrong[0]!r} is not known; choose from {','.join(known)}")
    if missing := [name for name in names if not (source / name).is_dir()]:
        there = [name for name in names if name not in missing]
        remedy = f", or leave it out with --components {','.join(there)}" if there else ""
        raise UserError(f"{source} has no folder {' and no '.join(missing)}; put it there{remedy}")
    return names


def _component(source: Path, name: str, as_int8: bool) -> Component:
    """Return a checked component of a folder."""
    folder = source / name
    if name in FILES:
        files = sorted(
            check_own(file, source) for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")
        )
        if not {file.name for file in files} & set(FILES[name]):
            raise UserError(f"{folder} holds no {' or '.join(FILES[name])}; download the whole folder")
        return Component(name, {}, files)
    state = read_state_dict(folder)
    read_config(state.metadata, folder)  # diffusers cannot do without
    found = read(state, COMPONENTS[name].name)
    if found.kind is not COMPONENTS[name]:
        raise UserError(f"{folder} holds {found.kind.description}, not {COMPONENTS[name].description}")
    layers = list(matrices(found.kind.build(found.config))) if as_int8 else ()
    return Component(name, found.tensors, [check_own(folder / "config.json", source)], layers)


def _write(component: Component, folder: Path, form: str, bar: tqdm) -> None:
    folder.mkdir()
    for file in component.files:
        _copy(file, folder)
    if component.tensors:
        stem = COMPONENTS[component.name].stems[form == "bin"]
        write_state_dict(folder / f"{stem}.{form}", component.written(), {}, bar.update)


def _copy(file: Path, folder: Path) -> None:
    shutil.copyfile(file, folder / file.name)
    sync(folder / file.name)


def check_target(source: str, target: str) -> None:
    """Raise UserError, before anything is read, if the target cannot be written or is the source."""
    check_suffix(target)
    if Path(target).is_dir():
        raise UserError(f"{target} is a folder; name a file in it")
    if Path(source).exists() and Path(target).exists() and Path(source).samefile(target):
        raise UserError(f"{target} is the source itself; name another target")


def convert(found: Weights, target: str, dry_run: bool = False) -> str:
    """Write weights with the configuration of their network, and return a line about them.

    Raises UserError if the file cannot be written.
    """
    tensors, config = found.tensors, dataclasses.asdict(found.config)
    size = sum(array.nbytes for array in tensors.values())
    if not dry_run:
        with tqdm(total=size, unit="B", unit_scale=True, desc=target, delay=5) as bar:  # only if it takes longer
            write_state_dict(target, tensors, {CONFIG: json.dumps(config)}, bar.update)
    return f"{found.path} -> {target}{' (not written)' if dry_run else ''}: {summary(tensors)}; {_describe(config)}"


def summary(tensors: Mapping[str, np.ndarray]) -> str:
    """Describe tensors in a few words: how many, their elements, dtypes and size."""
    size = sum(array.nbytes for array in tensors.values())
    elements = sum(math.prod(array.shape) for array in tensors.values())
    dtypes = ", ".join(sorted({array.dtype.name for array in tensors.values()}))
    return f"{len(tensors)} tensors, {elements:,} elements, {dtypes}, {size / 1e6:,.1f} MB"


def _describe(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items() if value is not None)
