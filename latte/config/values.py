"""The values that the type hint of an option allows: read a value, and describe what is allowed.

Types are int, float, bool, str, Literal, lists of these, and unions with None. YAML and the command line share `fit`.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal, Union

import yaml

NAMES = {  # the names of a type in a sentence and in --help
    int: ("a whole number", "INT"),
    float: ("a number", "FLOAT"),
    bool: ("true or false", "BOOL"),
    str: ("text", "TEXT"),
    type(None): ("null", "null"),
}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def item_of(hint: Any) -> Any:
    """Return the type of the items of a list option, None for other options."""
    lists = (kind for kind in alternatives(hint) if typing.get_origin(kind) is list)
    return next((typing.get_args(kind)[0] for kind in lists), None)


def fit(value: Any, hint: Any) -> Any:
    """Return a value read from YAML as the type of its hint; raises ValueError if it fits no alternative.

    A single item stands for a list of one. A number such as 1e-4, which YAML 1.1 reads as text, is taken as a number.
    """
    for kind in alternatives(hint):
        origin = typing.get_origin(kind)
        if origin is Literal:
            if any(type(value) is type(allowed) and value == allowed for allowed in typing.get_args(kind)):
                return value
        elif origin is list:
            if value is not None:
                return [fit(item, item_of(kind)) for item in (value if isinstance(value, list) else [value])]
        elif type(value) is kind:
            return value
        elif kind is float and type(value) in (int, str):
            return float(value)
    raise ValueError(f"{value!r} is not {allowed_by(hint)}")


def read_words(words: list[str], hint: Any) -> Any:
    """Return the value that the words after an option on the command line stand for, before `fit`.

    For a text option a word is taken as it is; otherwise it is read as YAML. `null` is None if the hint allows None.
    """
    if len(words) > 1:
        return [read_words([word], item_of(hint)) for word in words]
    (word,), kinds = words, alternatives(hint)
    if word == "null" and type(None) in kinds:
        return None
    if str in kinds:
        return word
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return word if item_of(hint) is str and not is_texts else value  # a prompt may contain a colon or begin with "["


def allowed_by(hint: Any) -> str:
    """Return a description of the values that a type hint allows, to end an error message."""
    parts = []
    for kind in alternatives(hint):
        if typing.get_origin(kind) is Literal:
            parts.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        elif typing.get_origin(kind) is list:
            parts.append(f"a list such as [{', '.join(map(str, typing.get_args(item_of(kind)) or (0, 1)))}]")
        else:
            parts.append(NAMES[kind][0])
    return " or ".join(parts)


def metavar(hint: Any) -> str:
    """Return a short form of `allowed_by` for --help."""
    if (item := item_of(hint)) is not None:
        return metavar(item)
    parts = [typing.get_args(kind) or (NAMES[kind][1],) for kind in alternatives(hint)]
    return "|".join(str(name) for part in parts for name in part)


def show(value: object) -> str:
    """Return a value as YAML writes it: null, true, "text", [1, 2]."""
    return json.dumps(value, default=str)
