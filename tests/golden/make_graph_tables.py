"""Print the tables of docs/ascend.md, in ten minutes: python tests/golden/make_graph_tables.py > tables.md"""

import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from support.graphs import model_of, plain_inference, training_model

from latte.io.mindir import count, read_graph, table
from latte.runtime import device


def total(nodes):
    """Return how often there is what in a whole graph."""
    return sum(count(nodes).values(), Counter())


def compare_formulations():
    """Print ours beside the plain formulation: two blocks behind the first ones, and all of XL/2."""
    rows = {}
    for depth in (4, 28):
        ours, plain = read_graph(model_of("Latte", depth, "fp16")), plain_inference(depth, "fp16")
        for block in ("blocks.2", "blocks.3") if depth == 4 else ():
            kind = "temporal" if block[-1] == "3" else "spatial"
            rows[f"{kind} block, ours"], rows[f"{kind} block, plain"] = count(ours)[block], count(plain)[block]
        if depth == 28:
            rows["XL/2, ours"], rows["XL/2, plain"] = total(ours), total(plain)
    print("## Inference, beside a plain formulation\n\n" + table(rows, sums=False), flush=True)


def show_text_to_video():
    """Print a pair of blocks of LatteT2V and all of it."""
    nodes = read_graph(model_of("LatteT2V", 6, "bf16"))
    rows = {name: row for name, row in count(nodes).items() if name.endswith("blocks.1")}
    rows["Latte-1, 56 blocks"] = total(read_graph(model_of("LatteT2V", 56, "bf16")))
    print("\n## Inference of text to video\n\n" + table(rows, sums=False), flush=True)


def show_training():
    """Print whole training steps."""
    rows = {}
    for kind, depth, dtype in (
        ("Latte", 4, "fp16"),
        ("Latte", 4, "bf16"),
        ("LatteT2V", 4, "fp16"),
        ("LatteT2V", 4, "bf16"),
    ):
        for recompute in (False, True):
            nodes = read_graph(training_model(kind, depth, dtype, recompute))
            rows[f"{kind}, 4 blocks, {dtype}{', recompute' if recompute else ''}"] = total(nodes)
    print("\n## A whole training step\n\n" + table(rows, sums=False), flush=True)


def measure(what, late, depth=28):
    """Return a row on the graph of an XL/2: nodes in the file, bytes without weights, seconds."""
    device.init_device("CPU")
    start = time.perf_counter()
    model = {"inference": model_of, "training step": training_model}[what]("Latte", depth, "fp16", late=late)
    seconds, graphs = time.perf_counter() - start, (model.graph, *model.functions)
    nodes, how = sum(len(graph.node) for graph in graphs), "equal blocks once" if late else "each block"
    return f"| XL/2, {depth} blocks, {what}, {how} | {nodes:,} | {model.ByteSize():,} | {seconds:.0f} |"


def show_late_blocks():
    """Print what `mindspore.lazy_inline` would save; each graph in a process of its own, for the memory."""
    print("\n## Time to compile the front end\n\n| graph | nodes in the file | bytes without weights | seconds |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    for what in ("inference", "training step"):
        for late in (False, True):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                print(pool.submit(measure, what, late).result(), flush=True)


if __name__ == "__main__":
    device.init_device("CPU")
    sections = ["compare_formulations", "show_text_to_video", "show_training", "show_late_blocks"]
    if len(sys.argv) > 1:
        globals()[sys.argv[1]]()
    for name in sections if len(sys.argv) == 1 else ():  # MindSpore keeps the memory of all graphs of a process
        subprocess.run([sys.executable, __file__, name], check=True)
