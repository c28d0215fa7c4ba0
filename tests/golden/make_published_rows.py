"""Make latte/runtime/tables/published.json: published speeds, and the work of a step of the programs they are of.

    PYTHONPATH=.:tests python tests/golden/make_published_rows.py TABLES

TABLES are the launches (of make_estimate_tables.py) of this code before its launches and casts were cut: then it read
and wrote 13 % less than the plain formulation (docs/ascend.md), which MindSpore's graph engine fuses in part, so they
stand for the original implementation, whose launches are not known. Run again only to add a row, with the
tables of the first commit that has them: `git log --reverse latte/runtime/tables/launches.json`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from latte.inference import published
from latte.runtime import roofline
from latte.runtime.roofline import Launch, Sizes

XL = {"width": 1152, "heads": 16, "pairs": 14, "weights": 674e6}
T2V = {"width": 1152, "heads": 16, "pairs": 28, "text": 120, "weights": 1057e6}
GRADIENTS = 4 * 674e6  # bytes
TUTORIAL = "tutorial of the original MindSpore implementation, "
ENGINE = 0.8  # of the bandwidth, counted in launches that the graph engine fuses in part
PLAIN = 1.15  # bytes of the plain formulation, which other programs have, in terms of ours (docs/ascend.md)
STDIT = 18 / 26  # of the products of a pair of LatteT2V's blocks: one MLP less
CAUSAL = 1.0  # an encoder over time, in terms of Stable Diffusion's on every frame


def main(tables: str) -> None:
    """Write the rows."""
    roofline.LAUNCHES = Path(tables)
    videos = roofline.launches("train", Sizes(5, 16, 16, **XL)) + encoded(80)
    cached = roofline.launches("train recomputed", Sizes(1, 128, 16, **XL))
    step = roofline.launches("sample", Sizes(1, 16, 16, **XL))
    rows = []

    def add(
        name: str, figure: float, unit: str, amount: float, work: list[Launch], assumed: str, **more: object
    ) -> None:
        card = more.pop("card", "910B3")
        rows.append(
            {"name": name, "published": figure, "unit": unit, "amount": amount, "card": card}
            | {"work": classes(work), "assumed": assumed}
            | more
        )

    engine = "graph engine, one graph on the device"
    fused = {"traffic": ENGINE}
    hf32 = f"{engine}; autoencoder in HF32, MindSpore's default for float32 convolutions"
    for year, figures in (("2024-10", (77.67, 105.78, 387.87)), ("2024-03", (62.3, 93.6, 368.3))):
        where, new = TUTORIAL + year, year == "2024-10"
        older = "" if new else "; an older MindSpore"
        fit = {"fitted": "convolutions"} if new else {}
        add(
            f"{year}, 5 x 16 from videos",
            figures[0],
            "img/s",
            80,
            videos,
            hf32 + older,
            source=where,
            tensor=True,
            **fit,
            **fused,
        )
        fit = {"fitted": "products, memory"} if new else {}
        add(
            f"{year}, 1 x 128 from a cache, recomputed",
            figures[1],
            "img/s",
            128,
            cached,
            engine + older,
            source=where,
            **fit,
            **fused,
        )
        more = {"source": where, "exchanged": GRADIENTS} | fused
        ring = f"{engine}; ring of float32 gradients after the backward pass"
        add(f"{year}, the same, 4 cards", figures[2], "img/s", 128, cached, ring + older, ranks=4, **more)
        if new:
            add(f"{year}, the same, 8 cards", 781.67, "img/s", 128, cached, ring, ranks=8, **more)
    add(
        "2024-10, 250 sampling steps",
        537 - 101,
        "s",
        250,
        step,
        "`construct` called directly, so that each of 31 cells is a graph of its own",
        source=TUTORIAL + "2024-10: 537 s, 101 s of it compiling",
        graph_calls=31,
        **fused,
        fitted="seconds of a call of a graph",
    )
    mindone = "mindone, examples of Open-Sora and Open-Sora-Plan"
    eight = {"source": mindone, "ranks": 8, "sunk": False, "tensor": True}
    exact = "O0; float32 products; attention without the fused kernel, which takes halves only"
    work = plain(
        stdit(roofline.launches("t2v sample guided", Sizes(1, 16, 32, **T2V, pads=False), dtype="fp32", fused=False))
    )
    add("STDiT-XL/2, 16 x 512 px, 100 sampling steps, fp32", 185, "s", 100, work, exact, source=mindone, sunk=False)
    for pixels, batch, figure in ((256, 3, 1.53), (512, 1, 2.47)):
        sizes = Sizes(batch, 16, pixels / 16, **T2V, pads=False)
        work = plain(
            stdit(roofline.launches("t2v train recomputed", sizes, fused=False)) + encoded(16 * batch, pixels / 16)
        )
        add(
            f"STDiT-XL/2, training {batch} x 16 x {pixels} px, 8 cards",
            figure,
            "s",
            1,
            work,
            "O1; all blocks recomputed, mindone's default; exact attention; autoencoder in HF32",
            exchanged=4 * 760e6,
            **eight,
            **({"fitted": "memory kernel by kernel"} if pixels == 256 else {}),
        )
    for frames, images, figure in ((17, 4, 2.45), (65, 16, 9.36)):
        latents = (frames - 1) // 4 + 1  # the autoencoder joins four frames
        # Images skip the blocks over frames, which have 12 of a pair's 26 products a token.
        share = latents + images * 14 / 26
        work = plain(roofline.launches("t2v train recomputed", Sizes(2, share, 32, **T2V)))
        work += encoded(2 * (frames + images), 32, CAUSAL)
        add(
            f"LatteT2V-XL/122, training 2 x ({frames} + {images}) x 512 px, 8 cards",
            figure,
            "s",
            1,
            work,
            "all blocks recomputed; the autoencoder over time taken to cost as much as Stable Diffusion's, in HF32",
            exchanged=4 * 1057e6,
            **eight,
        )
    guided = roofline.launches("t2v sample guided", Sizes(1, 16, 32, **T2V, pads=False))
    eager = [each._replace(number=each.number * 50) for each in guided]
    compiled = [each if each.kind in roofline.COMPUTING else each._replace(bytes=each.bytes / 3) for each in eager]
    better = {"product": 0.9, "attention": 0.9}  # nine tenths of the peak: what else is published is far from that
    for name, figure, work, more in (
        ("compiled", 14.57, compiled, {"fitted": "products of PyTorch", "sunk": True}),
        ("eager", 16.25, eager, {"sunk": False}),
    ):
        add(
            f"diffusers, Latte-1, 16 x 512 px, 50 steps with guidance, A100, {name}",
            figure,
            "s",
            1,
            work,
            "another program and card; the compiler makes one of three passes",
            source="documentation of diffusers",
            card="A100",
            efficiency=better,
            traffic=ENGINE,
            **more,
        )
    published.ROWS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(published.report())


def encoded(frames: float, grid: float = 16, factor: float = 1.0) -> list[Launch]:
    """Return the work of Stable Diffusion's encoder on frames of grid x grid patches of 16 pixels."""
    return roofline.scaled(roofline.launches("encode", Sizes(1, frames, grid)), factor)


def stdit(found: list[Launch]) -> list[Launch]:
    """Return the work of STDiT for that of LatteT2V: one of two MLPs is lacking, and its passes over memory."""
    return [
        each._replace(number=each.number * (1 if "oftmax" in each.op or "BatchMatMul" in each.op else STDIT))
        for each in found
    ]


def plain(found: list[Launch]) -> list[Launch]:
    """Return the work of the plain formulation: the same operations, more bytes in passes over memory."""
    return [each if each.kind in roofline.COMPUTING else each._replace(bytes=each.bytes * PLAIN) for each in found]


def classes(found: list[Launch]) -> list[list]:
    """Return launches as sums by class and dtype: class, dtype, launches, operations, bytes."""
    sums: dict[tuple[str, str], Counter] = {}
    for each in found:
        kind = each.kind if each.kind in roofline.COMPUTING else "memory"
        dtype = "float16" if each.dtype in ("float16", "bfloat16") else "float32"
        total = sums.setdefault((kind, dtype if kind != "memory" else "float32"), Counter())
        total.update(n=each.number, flops=each.number * each.flops, bytes=each.number * each.bytes)
    return [
        [kind, dtype, round(each["n"]), float(f"{each['flops']:.5g}"), float(f"{each['bytes']:.5g}")]
        for (kind, dtype), each in sums.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1])
