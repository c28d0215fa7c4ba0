"""Which cores each device of this machine gets, for the scripts that start several ranks.

    python scripts/cores.py ALLOWED DEVICE...     # prints the cores of each device, one line each, as for taskset
    python scripts/cores.py --run PROGRAM ...     # runs it on the cores of RANK_ID, out of LATTE_CORES

ALLOWED is what `taskset -cp` says. Cores are shared equally, in the order of NUMA nodes, both threads of a core
together; so shares do not cross nodes if these and the devices divide each other, and memory comes from the node, as
Linux gives it. Where npu-smi tells which cores are near a device, its share is taken from their node.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEM = Path("/sys/devices/system")


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 0-3,8."""
    parts = [part.split("-") for part in text.strip().split(",") if part]
    return [number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)]


def read_nodes() -> dict[int, int]:
    """Return the NUMA node of each core, empty where the system does not tell."""
    files = SYSTEM.glob("node/node[0-9]*/cpulist")
    return {core: int(file.parent.name[4:]) for file in files for core in numbers(file.read_text())}


def first_thread(core: int) -> int:
    """Return the first of the threads that share a core with this one."""
    try:
        return min(numbers((SYSTEM / f"cpu/cpu{core}/topology/thread_siblings_list").read_text()))
    except (OSError, ValueError):
        return core


def read_near() -> dict[int, list[int]]:
    """Return the cores near each Ascend device, as the column CPU Affinity of npu-smi tells; empty without it."""
    if not shutil.which("npu-smi"):
        return {}
    command = ["npu-smi", "info", "-t", "topo"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    rows = re.findall(r"^\s*NPU(\d+)\s.*?(\d[\d,-]*)\s*$", text, re.MULTILINE)
    return {int(device): numbers(cores) for device, cores in rows}


def share(allowed: Sequence[int], devices: Sequence[int]) -> list[list[int]]:
    """Return the cores of each device; none of them is empty if there are as many cores as devices."""
    node_of, near = read_nodes(), read_near()
    ordered = sorted(allowed, key=lambda core: (node_of.get(core, 0), first_thread(core), core))
    nodes = [{node_of.get(core, 0) for core in near.get(device, ())} for device in devices]
    groups = [next(iter(found)) if len(found) == 1 else None for found in nodes]
    pools = {group: [core for core in ordered if group in (None, node_of.get(core, 0))] for group in set(groups)}
    if any(len(pools[group]) < groups.count(group) for group in pools) or None in groups:
        groups, pools = [None] * len(devices), {None: ordered}  # not known of all, or a node has too few
    shares = []
    for number, group in enumerate(groups):
        pool, place, count = pools[group], groups[:number].count(group), groups.count(group)
        shares.append(pool[place * len(pool) // count : (place + 1) * len(pool) // count])
    return shares


def main(arguments: list[str]) -> None:
    """Print the shares, or become the program of this rank."""
    if arguments[0] == "--run":
        cores = os.environ["LATTE_CORES"].split()[int(os.environ["RANK_ID"])]
        program = [os.environ.get("PYTHON") or sys.executable, *arguments[1:]]
        os.execvp("taskset", ["taskset", "-c", cores, *program])
    for cores in share(numbers(arguments[0]), [int(device) for device in arguments[1:]]):
        print(",".join(map(str, cores)))


if __name__ == "__main__":
    main(sys.argv[1:])
