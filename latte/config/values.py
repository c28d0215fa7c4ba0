"""The values that the type hint of an option allows: read a value, and describe what is allowed.

Types are int, float, bool, str, Literal, lists of these, and unions with None. YAML and the command line share `fit`.
"""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Any, Literal, Union

from latte.config.yaml_file import Plain, flow_list

NAMES = {  # the names of a type in a sentence and in --help
    int: ("a whole number", "INT"),
    float: ("a number", "FLOAT"),
    bool: ("true or false", "BOOL"),
    str: ("text", "TEXT"),
    type(None): ("null", "null"),
}
LONGEST = 100  # characters of a value in a message
# Spellings without quotation marks. There is no octal and no 1:30, which YAML 1.1 takes for 90.
NULL = re.compile(r"|~|null|Null|NULL")
BOOL = {word: word in ("true", "yes", "on") for word in ("true", "yes", "on", "false", "no", "off")}
INT = re.compile(r"[-+]?\d[\d_]{0,17}")  # what fits 64 bits
FLOAT = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|Inf|INF)|\.?(nan|NaN|NAN)")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def item_of(hint: Any) -> Any:
    """Return the type of the items of a list option, None for other options."""
    lists = (kind for kind in alternatives(hint) if typing.get_origin(kind) is list)
    return next((typing.get_args(kind)[0] for kind in lists), None)


def fit(value: Any, hint: Any) -> Any:
    """Return a value read by `read_yaml` as the type of its hint; raises ValueError if it fits no alternative.

    A single item stands for a list of one, and items that are no text may be written as 1,2,3. A text option takes what
    is spelled without quotation marks as it is: a date, a number, off.
    """
    kinds = alternatives(hint)
    if type(None) in kinds and isinstance(value, Plain) and NULL.fullmatch(value.text):
        return None
    for kind in kinds:
        try:
            return _as(value, kind)
        except ValueError:
            continue
    raise ValueError(f"{show(value)} is not {allowed_by(hint)}")


def _as(value: Any, kind: Any) -> Any:
    """Return a value as one type; raises ValueError if it is not of it."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        for allowed in typing.get_args(kind):
            if _spells(value, allowed):
                return allowed
    elif origin is list and not (isinstance(value, Plain) and NULL.fullmatch(value.text)):
        return [fit(item, item_of(kind)) for item in _items(value, item_of(kind))]
    elif isinstance(value, str):
        if kind is str or (kind is float and FLOAT.fullmatch(value)):
            return kind(value)
    elif isinstance(value, Plain):
        return _spelled(value.text, kind)
    raise ValueError


def _spells(value: Any, allowed: Any) -> bool:
    """Return whether a value is the one that a Literal allows."""
    try:
        return bool(_as(value, type(allowed)) == allowed)
    except ValueError:
        return False


def _items(value: Any, kind: Any) -> list[Any]:
    """Return the items that a value of a list option stands for."""
    if isinstance(value, Plain) and kind is not str:
        return [Plain(part.strip()) for part in value.text.split(",")]
    return value if isinstance(value, list) else [value]


def _spelled(text: str, kind: Any) -> Any:
    """Return what is spelled without quotation marks as int, float, bool or str; raises ValueError if it is not."""
    if kind is str and not NULL.fullmatch(text):
        return text
    if kind is bool and text in (text.lower(), text.capitalize(), text.upper()) and text.lower() in BOOL:
        return BOOL[text.lower()]
    if kind is int and INT.fullmatch(text):
        return int(text)
    if kind is float and FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError


def read_words(words: list[str], hint: Any) -> Any:
    """Return the value that the words after an option on the command line stand for, before `fit`.

    A text is taken as it was typed. Several words are a list; so is one in brackets, if it is a list of texts where
    texts are asked for. `null` is None if the hint allows None, but a list of texts may hold the text null.
    """
    item = item_of(hint)
    if item is str:
        listed = flow_list(words[0]) if len(words) == 1 else None
        are_texts = listed is not None and all(_is_text(each) for each in listed)
        return listed if are_texts else list(words)  # a prompt may contain a colon or begin with "["
    if item is not None:
        text = ",".join(word.strip().rstrip(",") for word in words)
        inner = text[1:-1].strip() if text.startswith("[") and text.endswith("]") else None
        return [] if inner == "" else Plain(text if inner is None else inner)
    (word,) = words
    if str in alternatives(hint) and not (word == "null" and type(None) in alternatives(hint)):
        return word
    return Plain(word)


def _is_text(value: Any) -> bool:
    """Return whether a value is a text even where nobody asks for one, so no number, no true or false, no null."""
    if not isinstance(value, Plain):
        return isinstance(value, str)
    return not NULL.fullmatch(value.text) and not any(_spells_a(value, kind) for kind in (int, float, bool))


def _spells_a(value: Any, kind: Any) -> bool:
    try:
        _as(value, kind)
    except ValueError:
        return False
    return True


def allowed_by(hint: Any) -> str:
    """Return a description of the values that a type hint allows, to end an error message."""
    parts = []
    for kind in alternatives(hint):
        if typing.get_origin(kind) is Literal:
            parts.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        elif typing.get_origin(kind) is list:
            examples = typing.get_args(item_of(kind)) or (('"a"', '"b"') if item_of(kind) is str else (0, 1))
            parts.append(f"a list such as [{', '.join(map(str, examples))}]")
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
    """Return a value as YAML writes it, cut where it is long: null, true, "text", [1, 2]."""
    text = _written(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _written(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, Plain) and not _is_text(value):
        return value.text or "null"
    text = json.dumps(value.text if isinstance(value, Plain) else value, default=str)
    return {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}.get(text, text)
