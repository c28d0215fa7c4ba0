"""Damaged and hostile files of weights: whatever is in them, they are read or refused in one sentence, soon."""

import contextlib
import io
import json
import os
import random
import struct
import time
import zipfile

import numpy as np
import pytest
from support.weights import WEIGHTS

from latte.errors import UserError
from latte.weights.dtypes import numpy_dtype
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.fingerprint import fingerprint

SECONDS = 30  # that new files are made and read
SLOW = 5  # seconds that one file may take
LONGEST = 600  # letters of a message
NUMBERS = (0, 1, 2, 127, 255, 65_535, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**70, 10**400, 0.5, float("nan"), float("inf")),
    *(
        "",
        "x",
        "\ud800",
        "\x1b[2J\n",
        "F32",
        "BF16",
        "F8_E4M3",
        [],
        [[]],
        [0, 2**70],
        [-1],
        ["a"],
        {},
        [4, 0],
        [1] * 5000,
    ),
)
OPCODES = (
    b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu]}\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8f\x90\x91\x92\x93"
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Whole files of every form, by suffix."""
    found = [(path.suffix, path.read_bytes()) for path in sorted(WEIGHTS.glob("*.*")) if path.suffix != ".npz"]
    folder = tmp_path_factory.mktemp("whole")
    tensors = {
        "x_embedder.proj.weight": np.ones((8, 4, 2, 2), np.float32),
        "pos_embed": np.zeros((1, 16, 8), np.float16),
        "blocks.0.attn.qkv.weight": np.ones((24, 8), np.int8),
        "empty.weight": np.zeros((0, 3), np.int64),
        "scalar.weight": np.array(3, np.float32),
    }
    for suffix in (".ckpt", ".safetensors", ".pt", ".bin"):
        write_state_dict(folder / f"x{suffix}", tensors, {"config": json.dumps({"num_heads": 2})})
        found += [(suffix, (folder / f"x{suffix}").read_bytes())] * 3
    return [(suffix, content) for suffix, content in found if len(content) < 300_000]


def changed_anywhere(content, chance, others):
    """Change, cut, repeat or exchange bytes, more often at the ends, where what is not elements stands."""
    new = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        ends = (chance.randrange(600), len(new) - 1 - chance.randrange(600), chance.randrange(len(new) or 1))
        at = min(max(0, chance.choice(ends)), max(0, len(new) - 1))
        width = chance.choice((1, 2, 4, 8, 64))
        number = chance.choice(NUMBERS) & (1 << 8 * min(width, 8)) - 1
        other = chance.choice(others)
        start = chance.randrange(len(other))
        change = chance.randrange(7)
        if change == 0:
            new[at : at + 1] = bytes([chance.randrange(256)])
        elif change == 1:
            new[at : at + 1] = bytes([chance.choice(OPCODES)])
        elif change == 2:
            new[at : at + min(width, 8)] = number.to_bytes(min(width, 8), chance.choice(("little", "big")))
        elif change == 3:
            del new[at : at + width * chance.choice((1, 10_000))]
        elif change == 4:
            new[at:at] = chance.randbytes(width)
        elif change == 5:
            new[at:at] = new[at : at + chance.randrange(200)] * chance.choice((1, 2, 50))
        else:
            new[at : at + width] = other[start : start + chance.randrange(300)]
    return bytes(new)


def changed_record(content, chance, others):
    """Change a record of an archive, mostly data.pkl, and write the archive again with right sizes and checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = next((i for i, (name, _) in enumerate(records) if name.endswith("data.pkl")), 0)
    kind, some = chance.randrange(10), chance.randrange(len(records))
    if kind < 7:
        records[place] = records[place][0], changed_anywhere(records[place][1], chance, others)
    elif kind == 7:
        records.append((records[some][0], changed_anywhere(records[some][1], chance, others)))
    elif kind == 8:
        names = ("../../x", "a/../data/0", "/", "a/data.pkl", "data.pkl", records[place][0])
        records[some] = chance.choice(names), records[some][1][: chance.randrange(1 + len(records[some][1]))]
    else:
        records.pop(some)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", chance.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, record in records:
            archive.writestr(zipfile.ZipInfo(name), record)
    return packed.getvalue()


def changed_header(content, chance):
    """Put odd values, or keys in wrong places, into the header of a safetensors file, and give it its right length."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for _ in range(chance.choice((1, 1, 2))):
        holder = chance.choice([header, *(value for value in header.values() if isinstance(value, dict))])
        key = chance.choice(list(holder) or ["dtype"])
        kind, value = chance.randrange(4), holder.pop(key, None)
        if kind == 0:
            holder[chance.choice(("", "\ud800", "dtype", "shape", "__metadata__"))] = value
        elif kind == 1 and isinstance(value, list):
            holder[key] = [item + chance.choice((-4, 0, 1, 4, 2**63)) if type(item) is int else item for item in value]
        elif kind == 2:
            holder[key] = chance.choice(ODD)
        elif isinstance(value, list) and value:
            holder[key] = [chance.choice(ODD), *value[1:]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def changed(seed, originals):
    """Return the suffix and the bytes of a damaged file, which depend on the seed alone."""
    chance = random.Random(seed)
    suffix, content = chance.choice(originals)
    others = [other for _, other in originals]
    # Not every damaged archive can be written: then its bytes are changed as they are.
    with contextlib.suppress(ValueError, struct.error):
        if content.startswith(b"PK") and chance.random() < 0.7:
            return suffix, changed_record(content, chance, others)
        if suffix == ".safetensors" and chance.random() < 0.7:
            return suffix, changed_header(content, chance)
    return suffix, changed_anywhere(content, chance, others)


def outcome(path):
    """Read a file as the programs do and use its values; return True, or the sentence that refuses it."""
    try:
        state = read_state_dict(path)
        fingerprint({name: values for name, values in state.tensors.items() if values.dtype.names is None})
        write_state_dict(path.with_name("copy.ckpt"), state.tensors, state.metadata)
    except UserError as refused:
        return str(refused)
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, originals):
    numpy_dtype("bfloat16")
    first = int(os.environ.get("FUZZ_SEED", 0)) or random.SystemRandom().randrange(1, 2**40)
    end, seed, read, refused = time.monotonic() + SECONDS, first, 0, 0
    while time.monotonic() < end:
        suffix, content = changed(seed, originals)
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        start = time.process_time()
        try:
            result = outcome(path)
        except BaseException as error:
            raise AssertionError(f"FUZZ_SEED={seed} ends in a {type(error).__name__}") from error
        path.unlink()  # a new one each time: the old one may be mapped
        assert time.process_time() - start < SLOW, f"FUZZ_SEED={seed} takes too long"
        if result is not True:
            assert result.isprintable() and len(result) < LONGEST, f"FUZZ_SEED={seed}: {result!r}"
        read, refused, seed = read + (result is True), refused + (result is not True), seed + 1
    assert read > 20 and refused > 200, f"FUZZ_SEED={first}: {read} were read, {refused} refused"
