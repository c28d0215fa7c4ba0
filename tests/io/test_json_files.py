"""JSON of others: one object of plain values comes back, everything else is one sentence."""

import os

import pytest

from latte.errors import UserError
from latte.io.json_files import check_numbers, check_regular, parse_json, read_json

REFUSED = {
    "nested objects": ('{"a":' * 100_000, "nested too deeply"),
    "nested lists": ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested too deeply"),
    "a list": ("[1, 2]", "holds no JSON object but a list"),
    "a text": ('"config"', "but a text"),
    "null": ("null", "but null"),
    "nothing": ("", r"line 1: Expecting value"),
    "cut off": ('{"a": 1,\n "b"', r"line 2: "),
    "NaN": ('{"a": {"eps": NaN}}', r'"eps" is nan'),
    "infinity": ('{"betas": [1, [-Infinity]]}', r'"betas" is -inf'),
    "an overflow": ('{"scaling_factor": 1e999}', r'"scaling_factor" is inf'),
    "many digits": ('{"n": ' + "9" * 400 + "}", r'"n" is a number of more than 40 digits'),
    "very many digits": ('{"n": ' + "9" * 5000 + "}", "not valid JSON"),
    "a key twice": ('{"a": {"depth": 1, "depth": 2}}', r'"depth" is there twice'),
    "half a character": ('{"name": "\\ud800"}', "is no text"),
    "half a character in a key": ('{"\\ud800": 1}', "is no text"),
    "bytes": (b"\x93NUMPY\xff\xfe", "binary data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_object_is_refused_in_one_sentence(case):
    text, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as error:
        parse_json(text, "config.json", remedy="download it again")
    assert str(error.value).startswith("config.json ") and str(error.value).endswith("; download it again")
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_messages_show_names_of_keys_short_and_without_control_characters():
    with pytest.raises(UserError) as error:
        parse_json('{"' + r"\u001b[2J" * 1000 + '": NaN}', "config.json")
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_what_transformers_and_diffusers_write_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"model_max_length": 1' + b"0" * 30 + b', "lambda": -Infinity}')
    assert read_json(tmp_path / "x.json", infinite=("lambda",)) == {"model_max_length": 10**30, "lambda": -float("inf")}
    with pytest.raises(UserError, match='"lambda" is nan'):
        parse_json('{"lambda": NaN}', "x", infinite=("lambda",))


def test_only_regular_files_are_read_and_only_up_to_the_limit(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_text('{"a": "' + " " * 100 + '"}')
    for name, said in {
        "pipe": "is a pipe, a socket or a device, not a file",
        "zero": "is a pipe, a socket or a device, not a file",
        ".": "is a folder, not a file",
        "absent": "does not exist",
        "nul\0": "is no name",
        "large": "is larger than",
    }.items():
        with pytest.raises(UserError, match=said):
            read_json(tmp_path / name, limit=100)
    assert check_regular(tmp_path / "large") == tmp_path / "large"
    assert set(read_json(tmp_path / "large")) == {"a"}


def test_numbers_are_held_to_their_bounds_and_named():
    bounds = {"depth": (1, 1024), "eps": (1e-9, 1.0)}
    check_numbers({"depth": 1024, "eps": 1, "other": "x"}, bounds)
    check_numbers({"depth": None}, bounds)
    for wrong in (0, -1, 1025, 4.0, True, "4", [4], {}, float("nan"), 10**5000):
        with pytest.raises(UserError, match=r"^x.json: depth must be a whole number from 1 to 1,024, but is ") as error:
            check_numbers({"depth": wrong}, bounds, "x.json")
        assert len(str(error.value)) < 150
    for wrong in (0, -1.0, float("nan"), float("inf"), True, "1e-6", [1e-6]):
        with pytest.raises(UserError, match=r"^eps must be a number from 1e-09 to 1, but is "):
            check_numbers({"eps": wrong}, bounds)
