"""Print the tables of docs/ascend.md and docs/ascend_operators.md.

LATTE_LAUNCHES=FOLDER python -m pytest tests/ascend -m "slow or not slow"       # writes every launch to FOLDER
PYTHONPATH=tests python tests/golden/make_ascend_tables.py operators FOLDER
PYTHONPATH=tests python tests/golden/make_ascend_tables.py plan FILE ...        # what tests/ascend/plan.py printed
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from ascend import standin


def operators(folder: str) -> None:
    """Print each operator with its page, the launches in the traces of a folder, and what it refuses."""
    counts: Counter[str] = Counter()
    for trace in Path(folder).glob("*.jsonl"):
        with trace.open() as lines:
            counts.update(json.loads(line)["op"] for line in lines)
    print("| operator | page | launches | refuses unless |", "| --- | --- | ---: | --- |", sep="\n")
    for operator in standin.operators():
        rules = "; ".join(operator.rules)
        print(f"| {operator.name} | {operator.page} | {counts[operator.name]:,} | {rules} |")


def plan(*files: str) -> None:
    """Print launches and memory of the plans in files, one column each."""
    plans = []
    for file in files:
        (line,) = [line for line in Path(file).read_text().splitlines() if line.startswith('{"what"')]
        plans.append(json.loads(line))
    kernels = sorted(
        {op for each in plans for op in each["launches"]}, key=lambda op: -plans[-1]["launches"].get(op, 0)
    )
    names = [_name(each) for each in plans]
    print("| |", " | ".join(names), "|")
    print("| --- |", " | ".join("---:" for _ in plans), "|")
    for op in kernels:
        print(f"| {op} |", " | ".join(f"{each['launches'].get(op, 0):,}" for each in plans), "|")
    print("| **launches** |", " | ".join(f"{sum(each['launches'].values()):,}" for each in plans), "|")
    print("| GB read and written |", " | ".join(f"{sum(each['bytes'].values()) / 1e9:.1f}" for each in plans), "|")
    print("| peak of device memory, GiB |", " | ".join(f"{each['peak'] / 2**30:.1f}" for each in plans), "|")


def _name(plan: dict) -> str:
    what = "guided sampling step" if plan["what"] == "sample" else "training step"
    return f"{what}, {plan['batch']} x {plan['frames']}{', recomputed' if plan['recompute'] else ''}"


if __name__ == "__main__":
    {"operators": operators, "plan": plan}[sys.argv[1]](*sys.argv[2:])
