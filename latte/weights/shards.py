"""Which files hold the weights of a folder as diffusers and transformers write it: in variants, whole or in shards.

NAME.safetensors is one file in full precision and NAME.fp16.safetensors one of the variant fp16. Large ones are cut:
NAME-00001-of-00002.safetensors with NAME.safetensors.index.json, and of a variant NAME.fp16-00001-of-00002.safetensors,
in older releases NAME-00001-of-00002.fp16.safetensors, with NAME.safetensors.index.fp16.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from latte.errors import UserError, quoted
from latte.io.json_files import exists, read_json

FORMS = ("safetensors", "bin", "ckpt", "pt", "pth")  # in the order of preference
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of weights; other files are a training's, maybe
FULL = ("", "fp32", "ema")  # variants of full precision, in the order of preference
FILE = re.compile(
    r"(?P<stem>[^.]+?)(-(?P<part>\d{1,5})-of-(?P<parts>\d{1,5}))?(\.(?P<variant>.+?))?"
    rf"(-(?P<later_part>\d{{1,5}})-of-(?P<later_parts>\d{{1,5}}))?\.(?P<form>{'|'.join(FORMS)})"
)
INDEX = re.compile(rf"(?P<stem>[^.]+)\.(?P<form>{'|'.join(FORMS)})\.index(\.(?P<variant>.+))?\.json")
INDEX_LIMIT = 16 << 20  # bytes; those of ten thousand tensors take one MiB
REMEDY = "download the whole folder again"
NAMED = 50  # missing files in an error


@dataclass
class _Set:
    """One whole set of weights of a folder: a file, or an index, or shards of which each has a number."""

    stem: str
    form: str
    variant: str
    file: Path | None = None
    index: Path | None = None
    shards: dict[tuple[int, int], Path] = field(default_factory=dict)  # by their number and how many there are

    @property
    def name(self) -> Path:
        """Return the file that one names for this set."""
        return self.index or self.file or next(iter(self.shards.values()))

    def files(self) -> list[Path]:
        """Return the files to read, in order; raises UserError if one is missing."""
        if self.index:
            return indexed(self.index)
        if self.file:
            return [self.file]
        totals = {total for _, total in self.shards}
        total = max(totals)
        missing = [part for part in range(1, total + 1) if (part, total) not in self.shards]
        if missing or len(totals) > 1:
            raise UserError(
                f"{self.name.parent} holds {len(self.shards)} parts of {self.name.name}, not all {total}; {REMEDY}"
            )
        return [self.shards[key] for key in sorted(self.shards)]


def files_of(path: str | Path) -> list[Path]:
    """Return the files of weights that a path names: itself, those of its index, or those of a folder.

    Of a folder, weights in full precision go before variants of less, which are taken where there is one, and
    safetensors before other forms. Raises UserError if there are none or several, or a file of the set is missing.
    """
    path = Path(path)
    if path.is_dir():
        return _chosen(path).files()
    if INDEX.fullmatch(path.name):
        return indexed(path)
    return [path]


def indexed(index: Path) -> list[Path]:
    """Return the files that an index names; raises UserError if it is damaged, or names others or what is not there."""
    content = read_json(index, INDEX_LIMIT, remedy=REMEDY).get("weight_map")
    names = list(content.values()) if isinstance(content, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index} is not the index of a set of weight files, a weight_map of names; {REMEDY}")
    for name in set(names):
        if "\0" in name or "\\" in name or Path(name).name != name or not FILE.fullmatch(name):
            raise UserError(f"{index} names {quoted(name)}, which is no file of weights in its folder; {REMEDY}")
    files = [index.with_name(name) for name in sorted(set(names))]
    if missing := [file.name for file in files if not exists(file)]:
        first = ", ".join(quoted(name) for name in missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise UserError(f"{index} names {len(missing)} of {len(files)} files that are missing: {first}; {REMEDY}")
    return files


def has_config_beside(file: Path) -> bool:
    """Return whether a file of weights is one of a folder whose configuration is its config.json."""
    match = FILE.fullmatch(file.name) or INDEX.fullmatch(file.name)
    return match is not None and match["stem"] in STEMS


def _numbers(match: re.Match[str]) -> tuple[int, int] | None:
    """Return the number of a shard and how many there are, or None for a whole file."""
    part, parts = match["part"] or match["later_part"], match["parts"] or match["later_parts"]
    return (int(part), int(parts)) if part else None


def _sets(folder: Path) -> list[_Set]:
    """Return the sets of weights in a folder; hidden files are none."""
    found: dict[tuple[str, str, str], _Set] = {}
    for path in sorted(folder.iterdir()):
        match = INDEX.fullmatch(path.name) or FILE.fullmatch(path.name)
        if match is None or path.name.startswith(".") or path.is_dir():
            continue
        key = match["stem"], match["form"], match["variant"] or ""
        each = found.setdefault(key, _Set(*key))
        if match.re is INDEX:
            each.index = path
        elif numbers := _numbers(match):
            each.shards[numbers] = path
        else:
            each.file = path
    return list(found.values())


def _chosen(folder: Path) -> _Set:
    """Return the one set of weights that a folder is read from; raises UserError if there is none, or several."""
    try:
        sets = _sets(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not sets:
        raise UserError(
            f"{folder} is a folder without {_listed([f'.{form}' for form in FORMS])} files; name one that holds weights"
        )
    sets = [each for each in sets if each.stem in STEMS or each.index] or sets  # an index is always of weights
    variants = {each.variant for each in sets}
    variant = next((full for full in FULL if full in variants), None)
    if variant is None and len(variants) > 1:
        raise UserError(
            f"{folder} holds its weights as {_listed(sorted(map(quoted, variants)), 'and')} and not in full precision; "
            f"leave one of them there, or name its file: {_names(sets)}"
        )
    sets = [each for each in sets if variant is None or each.variant == variant]
    form = next(form for form in FORMS if any(each.form == form for each in sets))
    sets = [each for each in sets if each.form == form]
    if len(sets) > 1:
        raise UserError(f"{folder} holds several files of weights; name one: {_names(sets)}")
    return sets[0]


def _names(sets: list[_Set]) -> str:
    return ", ".join(quoted(each.name.name) for each in sets[:5]) + (", ..." if len(sets) > 5 else "")


def _listed(words: list[str], last: str = "or") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
