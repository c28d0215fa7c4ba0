"""Damage files that training reads, read them as the programs do, and count what happens to each.

PYTHONPATH=tests:. python tests/support/fuzz.py FOLDER FIRST_SEED COUNT [KIND ...]

A mutant depends on its seed and kind alone. A child reads them, with 2 GiB more memory than it begins with and 30 s
for each. An outcome is "accepted", "sentence" (a UserError of one printable line), or one of the failures: the name of
another exception, "ugly message", "hang", "crash".
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

KINDS = ("manifest", "npy", "mindrecord", "npz_clip", "npz_t5", "csv", "yaml", "ranks", "metrics", "video")
FINE = ("accepted", "sentence")
PATIENCE = 30  # seconds for one reading; a plot takes 3 where every core has several processes
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
ODD = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**70, -(2**63), 0.5, -0.0, float("nan"), float("inf"), 1e308),
    *("", "x", "..", "../x", "/dev/zero", "a\0b", "\ud800", "\x1b[2J\n", "9" * 400, "<f2", "nan"),
    *([], [1], [[]], [0, 2**70], [-1, -1, -1], ["a"], [8, 2, 2], [2] * 3000, {}, {"index": 0}),
]
CELLS = ("", "-1", "1e9", "nan", "9" * 30, "a.mp4", "../a.mp4", "\x1b[2J", '"', "day", "1.0", "٣", "\ufeff", "a" * 5000)


class TooSlow(BaseException):
    """PATIENCE is at an end."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat, swap or insert some bytes, most often near the beginning or the end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 9))):
        near = rng.choice((rng.randrange(200), rng.randrange(2000), len(out) - 1 - rng.randrange(200)))
        at = max(0, min(len(out) - 1, near if rng.random() < 0.6 else rng.randrange(len(out) + 1)))
        size = rng.choice((1, 2, 4, 8, 40, 300))
        there, start = bytes(out[at : at + size]), rng.randrange(len(data) or 1)
        number = rng.choice((0, 1, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
        edits = (
            bytes([(there or b"\0")[0] ^ 1 << rng.randrange(8)]) + there[1:],
            rng.randbytes(size),
            struct.pack("<Q", number),
            bytes(size),
            data[start : start + size],
            there * rng.choice((0, 2, 30)),
            rng.choice((b"{", b"}", b"'", b'"', b"(", b",", b"\n", b"\0", b"\xff", b"PK\1\2", b"-", b":")),
        )
        out[at : at + size] = rng.choice(edits)
        if rng.random() < 0.1:
            del out[at:]
    return bytes(out)


def mutate_values(value: object, rng: random.Random) -> object:
    """Change, add or remove something anywhere in objects and lists."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = [holder for holder in _holders(value) if holder]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.1 and isinstance(holder, dict):
            holder[rng.choice(("more", "", "index", "file"))] = holder[key]
        elif type(holder[key]) is int and rng.random() < 0.5:
            holder[key] += rng.choice((-1, 1, 5, -100, 10**6, 2**62))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def _holders(value: object):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(mutate_values(json.loads(data), rng)).encode()


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    import yaml

    return yaml.safe_dump(mutate_values(yaml.safe_load(data), rng)).encode("utf-8", "replace")


def mutate_table(data: bytes, rng: random.Random) -> bytes:
    rows = [line.split(",") for line in data.decode().split("\n")]
    for _ in range(rng.choice((1, 2, 4))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
        if rng.random() < 0.2:
            rows.insert(rng.randrange(len(rows)), list(row) * rng.choice((1, 2)))
    return "\n".join(map(",".join, rows)).encode()


def mutate_archive(data: bytes, rng: random.Random) -> bytes:
    """Damage a member, its name or its header, in an archive whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(members))
    name, content = members[place]
    kind, sides = (b"|O8", b"<f8", b">f2", b"<c8", b"|V2", b"<M8"), (b"(0,", b"(9999999,", b"(-1,", b"[", b"(" * 90)
    changed = rng.choice(
        (
            (name, mutate_bytes(content[:300], rng) + content[300:]),
            (name, mutate_bytes(content, rng)),
            (name, content[: rng.randrange(len(content))]),
            (rng.choice(("text", "text.npy", "../text.npy", "", "null.npy", "a.npy")), content),
            (name, members[rng.randrange(len(members))][1]),
            (name, content.replace(b"<f2", rng.choice(kind))),
            (name, content.replace(b"(", rng.choice(sides), 1)),
        )
    )
    members[place : place + 1] = [changed] * rng.choice((1, 1, 1, 0, 2))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


STRUCTURED = {
    ".json": mutate_json,
    ".jsonl": mutate_json,
    ".yaml": mutate_yaml,
    ".csv": mutate_table,
    ".npz": mutate_archive,
}


def mutate(whole: Path, to: Path, seed: int) -> str:
    """Copy a folder, damage one of its files, and return its name."""
    rng = random.Random(f"{whole.name} {seed}")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(whole, to)
    files = [path for path in sorted(to.rglob("*")) if path.is_file()]
    if whole.name == "manifest":
        files = [path for path in files if path.suffix in STRUCTURED]
    elif whole.name in ("npy", "mindrecord"):
        files = [path for path in files if path.suffix not in STRUCTURED]
    file = rng.choice(files)
    change = STRUCTURED.get(file.suffix) if rng.random() < 0.7 else None
    file.write_bytes((change or mutate_bytes)(file.read_bytes(), rng))
    return str(file.relative_to(to))


def prepare(kind: str, folder: Path) -> None:
    """Write whole files of a kind into a new folder."""
    import numpy as np
    from support.cache import write_cache

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    if kind in ("manifest", "npy", "mindrecord"):
        write_cache(folder, "mindrecord" if kind == "mindrecord" else "numpy")
    elif kind == "npz_clip":
        text = rng.normal(size=(2, 77, 768)).astype(np.float16)
        np.savez(folder / "a.npz", captions=np.array(["sun", "moon"]), text=text, null=text[0])
    elif kind == "npz_t5":
        mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.int32)
        text = rng.normal(size=(6, 8)).astype(np.float16)
        arrays = {"text": text[:5], "null": text[5:], "mask": mask, "null_mask": np.array([1, 0, 0, 0], np.int32)}
        np.savez(folder / "a.npz", captions=np.array(["sun", "moon"]), encoder=np.array("f" * 64), **arrays)
    elif kind == "csv":
        (folder / "a.csv").write_text('video,class,caption\na.mp4,day,sun\nb/c.mp4,night,"moon, stars"\n')
    elif kind == "yaml":
        (folder / "a.yaml").write_text("data_folder: x\nbetas: [0.9, 0.999]\nmax_steps: 5\ndtype: fp32\nresume: auto\n")
    elif kind == "ranks":
        devices = [{"device_id": str(k), "device_ip": f"10.0.1.{k}", "rank_id": str(k)} for k in range(2)]
        server = {"server_id": "10.0.0.1", "device": devices, "host_nic_ip": "reserve"}
        table = {"version": "1.0", "server_count": "1", "server_list": [server], "status": "completed"}
        (folder / "a.json").write_text(json.dumps(table))
    elif kind == "metrics":
        from latte.training.metrics import COLUMNS

        rows = [COLUMNS, *([step, 0.5 * step, *[0.25] * (len(COLUMNS) - 3), 0] for step in (2, 4))]
        (folder / "metrics.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    elif kind == "video":
        from PIL import Image

        from latte.io.video import save_gif, save_mp4

        frames = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        save_mp4(frames, folder / "a.mp4")
        save_gif(frames, folder / "a.gif")
        (folder / "b").mkdir()
        for number, suffix in enumerate(("png", "jpg", "jpeg")):
            Image.fromarray(frames[number]).save(folder / "b" / f"x_{number}.{suffix}")


def read(kind: str, folder: Path) -> None:
    """Read the files of a kind as the programs do; raises UserError, or whatever else they raise."""
    _READERS.get(kind, _read_cache)(folder)


def _read_cache(folder: Path) -> None:
    import numpy as np

    from latte.data.cache import read_cache
    from latte.data.dataset import VideoDataset
    from latte.data.loader import TrainingSource, make_loader, unwrapped

    cache = read_cache(folder)
    cache.check({"image_size": 16, "transform": "crop_resize", "flip": True, "vae_checkpoint": None})
    from latte.config import TrainConfig

    dataset = VideoDataset(cache.index(), 4, cache, TrainConfig(random_flip=True), 0)
    source = TrainingSource(dataset, (4, 4, 2, 2), 0)
    if cache.has_records:
        loader = make_loader(source, 1, 0, 3, 0, 1, 1)
        try:
            rows = [x for x, *_ in loader.create_tuple_iterator(num_epochs=1, output_numpy=True)]
        except RuntimeError as error:
            raise unwrapped(error) from error
    else:
        rows = [source[position][0] for position in range(3)]
    for x in rows:
        if x.shape[-3:] != cache.frame_shape or not np.isfinite(x).all():
            raise ValueError(f"a window of the shape {x.shape}, or not finite")
    for number in range(len(dataset)):
        dataset.reason(number)


def _read_clip_text(folder: Path) -> None:
    import numpy as np

    from latte.data.loader import read_text
    from latte.errors import UserError
    from latte.inference.inputs import read_text_embeddings

    with contextlib.suppress(UserError):
        text, places, null = read_text(str(folder / "a.npz"), ["sun"])
        if text[places].shape != (1, *null.shape) or not np.isfinite(text).all() or not np.isfinite(null).all():
            raise ValueError("embeddings that are none")
    text, null = read_text_embeddings(folder / "a.npz")
    if not np.isfinite(text).all() or text.shape[1:] != (77, 768):
        raise ValueError("embeddings that are none")


def _read_t5_text(folder: Path) -> None:
    import numpy as np

    from latte.data.text_embeddings import read_captions

    captions, _ = read_captions(folder / "a.npz")
    for number in (0, None):
        text, mask = captions.of(["sun"], "a").padded(number)
        if len(text) != len(mask) or not np.isfinite(text).all():
            raise ValueError("embeddings that are none")


def _read_table(folder: Path) -> None:
    import numpy as np

    from latte.config import DataConfig
    from latte.data.clips import open_clip
    from latte.data.index import list_records
    from latte.errors import UserError

    table = {"data_layout": "csv", "csv_path": str(folder / "a.csv"), "class_column": "class"}
    index = list_records(DataConfig(data_folder=str(folder), caption_column="caption", **table))
    np.array([record.label for record in index.records], np.int32)
    for record in index.records:
        with contextlib.suppress(UserError):
            open_clip(record.path)


def _read_options(folder: Path) -> None:
    from latte.config import TrainConfig, parse_config

    parse_config(TrainConfig, ["-c", str(folder / "a.yaml")])


def _read_ranks(folder: Path) -> None:
    from latte.commands.rank_table import local_ranks, numbered, read_table

    table = read_table(str(folder / "a.json"))
    for line in local_ranks(table, "10.0.0.1", "a.json"):
        int(line[0]), int(line[1])
    numbered(table["server_list"])


def _read_metrics(folder: Path) -> None:
    from latte.training.metrics import Metrics

    metrics = Metrics(folder, 4)
    metrics.plot()
    metrics.close()


def _read_videos(folder: Path) -> None:
    import numpy as np

    from latte.data.clips import open_clip
    from latte.errors import UserError
    from latte.io.video import read_any

    for path in sorted(folder.iterdir()):
        for function in (lambda name: open_clip(name).read(np.arange(3)), read_any):
            with contextlib.suppress(UserError):
                function(path)


_READERS = {
    "npz_clip": _read_clip_text,
    "npz_t5": _read_t5_text,
    "csv": _read_table,
    "yaml": _read_options,
    "ranks": _read_ranks,
    "metrics": _read_metrics,
    "video": _read_videos,
}


def outcome(kind: str, folder: Path) -> tuple[str, str]:
    """Return what happens when the files of a folder are read, and where or with which words."""
    from latte.errors import UserError

    try:
        signal.alarm(PATIENCE)
        read(kind, folder)
        return "accepted", ""
    except UserError as error:
        text = str(error)
        return ("sentence" if text.isprintable() and len(text) <= 700 else "ugly message"), text
    except TooSlow:
        return "hang", ""
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/latte/" in frame.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return type(error).__name__, f"{where}: {str(error).strip()[:150]}"
    finally:
        signal.alarm(0)


def read_all(folder: Path, first: int, count: int, kind: str) -> None:
    """The child: read mutants in order, and print a line for each."""
    import resource

    import latte.data.loader  # MindSpore and all that is loaded once
    import latte.training.metrics  # noqa: F401

    def stop(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    whole, to = folder / "whole" / kind, folder / "mutant" / kind
    mutate(whole, to, -1)
    outcome(kind, to)  # threads and libraries of a first reading are no memory of a mutant
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in range(first, first + count):
        print(f"reads {seed} {mutate(whole, to, seed)}")
        print("result", json.dumps([seed, *outcome(kind, to)]), flush=True)


def campaign(folder: Path, first: int, count: int, kinds: tuple[str, ...] = KINDS) -> dict[str, list[list]]:
    """Return for each kind a list of (seed, outcome, words), one per mutant; a child that dies is started again."""
    results: dict[str, list[list]] = {}
    for kind in kinds:
        shutil.rmtree(folder / "whole" / kind, ignore_errors=True)
        prepare(kind, folder / "whole" / kind)
        results[kind], seed = [], first
        while seed < first + count:
            command = [sys.executable, __file__, "--child", folder, str(seed), str(first + count - seed), kind]
            limit = 120 + 10 * (first + count - seed)  # for what the child's own alarm cannot end
            silent = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(command, env=ENVIRONMENT, text=True, **silent) as child:
                try:
                    out, died = child.communicate(timeout=limit)[0], "crash"
                except subprocess.TimeoutExpired:
                    child.kill()
                    out, died = child.communicate()[0], "hang"
            found = [json.loads(line[7:]) for line in out.splitlines() if line.startswith("result ")]
            results[kind] += found
            seed += len(found)
            if seed < first + count:
                results[kind].append([seed, died, f"exit code {child.returncode}"])
                seed += 1
    return results


def table(results: dict[str, list[list]]) -> str:
    """Return a line of counts for each kind, and one for each different failure."""
    lines = []
    for kind, found in results.items():
        counts = {name: sum(result == name for _, result, _ in found) for name in dict.fromkeys(r for _, r, _ in found)}
        lines.append(f"{kind}: {len(found)} tried, " + ", ".join(f"{name} {n}" for name, n in counts.items()))
        failures: dict[tuple[str, str], list[int]] = {}
        for seed, result, words in found:
            if result not in FINE:
                failures.setdefault((result, words.split(": ")[0][:60]), []).append(seed)
        for (result, where), seeds in failures.items():
            words = next(words for seed, _, words in found if seed == seeds[0])
            lines.append(f"  {len(seeds)} x {result} {where!a}, seed {seeds[0]}: {words[:200]!a}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        read_all(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        begun = time.time()
        print(table(campaign(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]) or KINDS)))
        print(f"{time.time() - begun:.0f} s")
