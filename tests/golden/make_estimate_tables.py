"""Make latte/runtime/tables/launches.json, what `latte estimate` knows of the graphs that MindSpore runs on an Ascend.

    PYTHONPATH=.:tests python tests/golden/make_estimate_tables.py            # plans small networks; minutes
    PYTHONPATH=.:tests python tests/golden/make_estimate_tables.py FOLDER     # keeps the traces there

Every size of the planned networks has a prime of its own, so that each dimension in a trace tells which sizes it is a
product of. Bytes and operations of a launch are then products of sizes, exact for networks of every size; what two
networks differ in is what a pair of blocks, one over patches and one over frames, adds.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ascend import standin

from latte.runtime import roofline

# Batch, frames, side of the grid of patches, width, heads, tokens of a text. Heads of 72 are padded to 80, as in XL.
BATCH, FRAMES, GRID, HEADS, WIDTH, TEXT = 5, 17, 13, 7, 7 * 72, 19 * 8
PADDED = HEADS * 80
SIZES = f"--batch {BATCH} --frames {FRAMES} --side {2 * GRID} --width {WIDTH} --heads {HEADS} --text {TEXT}"
STEPS = 1000  # of the diffusion, and no product of sizes
NAMED = {"D": WIDTH, "A": PADDED, "S": TEXT, "B": BATCH, "F": FRAMES, "P": GRID, "H": HEADS}  # looked for in this order
BYTES = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "int16": 2, "int64": 8, "uint64": 8}
T2V = "--model LatteT2V"
KINDS = {  # of a step -> what tests/ascend/plan.py is asked for
    "train": "train",
    "train recomputed": "train --recompute",
    "sample": "sample --loaded --unguided",
    "sample guided": "sample --loaded",
    "t2v train": f"train {T2V}",
    "t2v train recomputed": f"train {T2V} --recompute",
    "t2v sample guided": f"sample --loaded {T2V}",
    # A video by itself is computed otherwise: `latte.ops.ascend` tells.
    "train single": "train --batch 1",
    "train recomputed single": "train --recompute --batch 1",
    "sample single": "sample --loaded --unguided --batch 1",
    "t2v train single": f"train {T2V} --batch 1",
    "t2v train recomputed single": f"train {T2V} --recompute --batch 1",
    "encode": "encode",
    "decode": "decode",
}
DEPTHS = (2, 4)  # blocks of the two networks of a kind
# A network of other sizes, trained from pixels: tests compare what is predicted for it with its plan.
CHECKED = "train --pixels --batch 3 --frames 8 --side 16 --width 160 --heads 4 --depth 6"
# Networks with few tokens: what is at their peak besides what stays are gradients, and what the update makes of them.
LIGHT = [f"train --batch 1 --frames 2 --side 8 --width {WIDTH} --heads {HEADS} --depth {depth}" for depth in (2, 6)]
PLANNED = Path(__file__).resolve().parent.parent / "fixtures" / "estimate_plan.json"
PER_VIDEO = ("aclnnLayerNormBackward",)  # what is launched for each video, in place of once for a batch
FIXED = ("encode", "decode")  # an autoencoder has no blocks
IMAGES = "BFP"  # what an autoencoder's sizes are products of
POSITIONS = BATCH * FRAMES * GRID**2
SMALL = 4096  # elements: what such a shape is a product of does not matter
Polynomial = Counter  # products of sizes, such as "B F P P D" -> their factor


def main(folder: str | None = None) -> None:
    """Plan every kind of step, in two processes at a time, and write the tables."""
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        place = Path(folder or temporary)
        jobs = [(kind, depth) for kind in KINDS for depth in (DEPTHS if kind not in FIXED else DEPTHS[:1])]
        words = [*(f"{_before(KINDS[kind])} --depth {depth}" for kind, depth in jobs), CHECKED, *LIGHT]
        *plans, checked, small, large = pool.map(lambda each: plan(place, each), words)
    tables = {kind: table([plans[k] for k, job in enumerate(jobs) if job[0] == kind]) for kind in KINDS}
    for kind in KINDS:
        if "train" in kind:
            tables[kind]["memory"]["gradient"] = round(_gradient(small, large), 3)
    kept = {key: checked[key] for key in ("launches", "bytes", "peak", "resident", "weights")}
    PLANNED.write_text(json.dumps({"plan": CHECKED} | kept, indent=1) + "\n")
    lines = ",\n".join(f"{json.dumps(kind)}: {_lines(each)}" for kind, each in tables.items())
    roofline.LAUNCHES.write_text(f"{{\n{lines}\n}}\n")


def _before(asked: str) -> str:
    """Return the words of a plan with the sizes before its own options, which win."""
    what, *options = asked.split()
    return " ".join((what, SIZES, *options))


def _lines(table: dict) -> str:
    """Return a table as JSON with a launch a line, so that a change shows what changed."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in table["launches"])
    rest = {key: value for key, value in table.items() if key != "launches"}
    return f'{json.dumps(rest)[:-1]}, "launches": [\n{rows}\n]}}'


def plan(folder: Path, asked: str) -> dict:
    """Return what tests/ascend/plan.py prints for some words, and the launches of the last call as `trace`."""
    trace, printed = (folder / f"{asked}{suffix}".replace("/", "-") for suffix in (".jsonl", ".json"))
    if not printed.exists():
        trace.unlink(missing_ok=True)
        what, *words = asked.split()
        command = [sys.executable, "tests/ascend/plan.py", what, str(trace), *words]
        environment = standin.environment("plan", trace=trace)
        run = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        lines = [line for line in run.stdout.splitlines() if line.startswith('{"what"')]
        if run.returncode or not lines:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        printed.write_text(lines[0])
        print("planned:", asked, flush=True)
    found = json.loads(printed.read_text())
    launches = standin.read_trace(trace)
    return found | {"trace": launches[-sum(found["launches"].values()) :]}


def table(plans: list[dict]) -> dict:
    """Return the launches of a kind of step as products of sizes, and its memory; plans: of one or of two depths.

    A launch is [operator, class, dtype, count, count per pair of blocks, operations, bytes, bytes in halves].
    """
    batch = plans[0]["batch"]
    sizes = NAMED if len(plans) > 1 else {name: NAMED[name] for name in IMAGES}
    if batch == 1:
        sizes = {name: size for name, size in sizes.items() if name != "B"}
    counts = [Counter(_row(launch, sizes, each["weights"]) for launch in each["trace"]) for each in plans]
    pairs = [(each["depth"] or 0) // 2 for each in plans]
    rows = []
    for row in dict.fromkeys([*counts[-1], *counts[0]]):
        name, dtype, *work = json.loads(row)
        if len(plans) == 1 or '"W' in row:  # a launch over all weights at once is there once, whatever the depth
            per_pair, fixed = 0.0, float(counts[-1][row])
        else:
            per_pair = (counts[1][row] - counts[0][row]) / (pairs[1] - pairs[0])
            fixed = counts[0][row] - per_pair * pairs[0]
        if name in PER_VIDEO:
            fixed, per_pair = fixed / batch, per_pair / batch
        if fixed or per_pair:
            rows.append([name, roofline.class_of(name), dtype, fixed, per_pair, *work])
    compiling = [each["compile"] for each in plans]
    pair = (compiling[-1] - compiling[0]) / (pairs[-1] - pairs[0]) if len(plans) > 1 else 0
    return {
        "compile": [round(compiling[0] - pair * pairs[0], 2), round(pair, 2)],
        "memory": _memory(plans, pairs),
        "per_video": [name for name in PER_VIDEO if any(row[0] == name for row in rows)],
        "launches": rows,
    }


def _memory(plans: list[dict], pairs: list[int]) -> dict:
    """Return bytes of what stays, per weight, and of what is at the peak besides, per element of the tokens."""
    if len(plans) == 1:  # an autoencoder: per patch of 16 x 16 pixels
        return {"resident": plans[0]["resident"], "fixed": (plans[0]["peak"] - plans[0]["resident"]) / POSITIONS}
    tokens = POSITIONS // BATCH * plans[0]["batch"]
    above = [(each["peak"] - each["resident"]) / (tokens * WIDTH) for each in plans]
    pair = (above[1] - above[0]) / (pairs[1] - pairs[0])
    weight = (plans[1]["resident"] - plans[0]["resident"]) / (plans[1]["weights"] - plans[0]["weights"])
    return {"weight": round(weight, 3), "fixed": round(above[0] - pair * pairs[0], 3), "pair": round(pair, 3)}


def _gradient(small: dict, large: dict) -> float:
    """Return the bytes per weight at the peak besides what stays, where activations are few."""
    above = [each["peak"] - each["resident"] for each in (small, large)]
    return (above[1] - above[0]) / (large["weights"] - small["weights"])


def _row(launch: dict, sizes: dict[str, int], weights: int) -> str:
    """Return a launch as operator, dtype, operations and bytes, JSON that can be counted."""
    plain, halves = _bytes(launch, sizes, weights)
    shapes = launch.get("inputs") or launch.get("outputs") or [["uint8", []]]
    polynomials = [dict(sorted(each.items())) for each in (_flops(launch, sizes), plain, halves)]
    return json.dumps([launch["op"], shapes[0][0], *polynomials])


def _bytes(launch: dict, sizes: dict[str, int], weights: int) -> tuple[Polynomial, Polynomial]:
    """Return the bytes that a launch reads and writes, and those of them that are in halves apart."""
    plain: Polynomial = Polynomial()
    halves: Polynomial = Polynomial()
    for dtype, shape in [*launch.get("inputs", ()), *launch.get("outputs", ())]:
        half = dtype in ("float16", "bfloat16")
        (halves if half else plain).update(_elements(shape, BYTES.get(dtype, 4), sizes, weights))
    if not plain and not halves:
        large = launch["bytes"] > SMALL  # a batch that is copied to the device, which the trace has no shape of
        plain = Polynomial({"B F P P": launch["bytes"] / POSITIONS} if large else {"": launch["bytes"]})
    counted = sum(_value(each, weights) for each in (plain, halves))
    if abs(counted - launch["bytes"]) > 0.01 * launch["bytes"] + 64:
        extra = launch["bytes"] / counted  # an operand that is read and written
        plain = Polynomial({names: factor * extra for names, factor in plain.items()})
        halves = Polynomial({names: factor * extra for names, factor in halves.items()})
    return plain, halves


def _value(polynomial: Polynomial, weights: int) -> float:
    known = NAMED | {"W": weights}
    return sum(factor * math.prod(known.get(name, 0) for name in names.split()) for names, factor in polynomial.items())


def _flops(launch: dict, sizes: dict[str, int]) -> Polynomial:
    """Return the operations of a product; those of other operators are not what takes their time."""
    op, shapes = launch["op"], [shape for _, shape in launch.get("inputs", ())]
    outputs = [shape for _, shape in launch.get("outputs", ())]
    kind = roofline.class_of(op)
    if kind == "attention":
        (n, length, width), keys = shapes[0], shapes[1][1]
        return _elements(
            (n, length, keys, width), 10 if op.endswith("Grad") else 4, sizes
        )  # five products, two forward
    if kind == "convolution":
        backward = op.endswith("Backward")
        # Forward: images and kernel to the output; backward: the output's gradient, towards images and kernel.
        images, kernel = (shapes[0], shapes[2]) if backward else (outputs[0], shapes[1])
        return _elements((*images, *kernel[1:]), 4 if backward else 2, sizes)
    if kind != "product":
        return Polynomial()
    first, second = shapes[1:3] if re.search("Addmm|Baddbmm", op) else shapes[:2]  # after the bias
    rows, columns = ([1, 1] + outputs[0])[-2:]
    inner = math.isqrt(math.prod(first[-2:]) * math.prod(second[-2:]) // (rows * columns))
    if inner not in first[-2:] or inner not in second[-2:]:
        raise ValueError(f"{op}: what is summed over in {first} x {second} = {outputs[0]}?")
    return _elements((*outputs[0], inner), 2, sizes)


def _elements(shape: tuple | list, factor: float, sizes: dict[str, int], weights: int = 0) -> Polynomial:
    """Return the product of the dimensions of a shape, as a product of sizes.

    A row that is no product of sizes is weights laid end to end: its share of all of them. Another such dimension is
    taken to be the same in every network.
    """
    names: list[str] = []
    for dim in shape:
        found = factors(dim, sizes)
        if found is None and weights and len(shape) == 1 and dim > SMALL:
            return Polynomial({"W": round(factor * dim / weights, 4)})
        if found is None:
            found = factors(dim - 1, sizes)  # an image that is padded on one side
        if found is None:  # a few of something, or rows of unlike weights in one buffer
            found = [], dim
        names += found[0]
        factor *= found[1]
    return Polynomial({" ".join(sorted(names)): factor})


def factors(number: int, sizes: dict[str, int]) -> tuple[list[str], int] | None:
    """Return the sizes that a dimension is a product of, by name, and the factor that is left; None if it is not."""
    names, rest = [], number
    if number == STEPS:
        return [], number
    for name, size in sizes.items():
        while rest and rest % size == 0:
            names.append(name)
            rest //= size
    return (names, rest) if _is_smooth(rest) else None


def _is_smooth(number: int) -> bool:
    for prime in (2, 3):
        while number and number % prime == 0:
            number //= prime
    return number <= 1


if __name__ == "__main__":
    main(*sys.argv[1:])
