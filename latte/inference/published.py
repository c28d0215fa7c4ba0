"""The model of `latte.runtime.roofline` beside speeds that others have published, row by row.

`tables/published.json` has the rows: what was published and where, the work of a step by class of operator, what is
assumed about the program, and whether a number of the model was fitted on the row. It is made by
`tests/golden/make_published_rows.py` and does not change with this code: the rows are of other programs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from latte.runtime import roofline

ROWS = roofline.TABLES / "published.json"
CLOSE = 0.25  # how far a prediction may be from a row that was not fitted


@dataclasses.dataclass(frozen=True)
class Row:
    """A published speed: `amount` images a step per card for img/s, or steps for seconds."""

    name: str
    source: str
    published: float
    unit: str  # "img/s" or "s"
    amount: float
    card: str
    work: list[list[Any]]  # class, dtype, launches, operations, bytes; of a step
    assumed: str
    fitted: str = ""  # what of the model was fitted on this row
    ranks: int = 1
    exchanged: float = 0  # bytes of gradients
    sunk: bool = True  # one graph on the device: the host launches nothing
    tensor: bool = False  # float32 in HF32 or TF32
    graph_calls: int = 0  # graphs that the host calls one by one in a step
    efficiency: dict[str, float] | None = None  # of products, of another library
    traffic: float | None = None  # share of the bandwidth, where a compiler fuses passes over memory

    @property
    def seconds(self) -> float:
        """The predicted seconds of a step."""
        on = roofline.card(self.card)
        better = on.efficiency | (self.efficiency or {})
        on = dataclasses.replace(on, efficiency=better, traffic=self.traffic or on.traffic)
        found = [
            roofline.Launch(kind, kind, dtype, n, flops / n, moved / n) for kind, dtype, n, flops, moved in self.work
        ]
        exchange = roofline.all_reduce(self.exchanged, on, self.ranks) if self.ranks > 1 else 0.0
        times = roofline.seconds(found, on, exchange, self.sunk, self.tensor)
        return times.total + self.graph_calls * roofline.cards()["graph_call"]["seconds"]

    @property
    def predicted(self) -> float:
        """The prediction of what was published."""
        return self.amount * self.ranks / self.seconds if self.unit == "img/s" else self.amount * self.seconds

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted / self.published


def rows() -> list[Row]:
    """Return all rows."""
    return [Row(**row) for row in json.loads(ROWS.read_text(encoding="utf-8"))]


def report() -> str:
    """Return the rows as a table of docs/estimate.md."""
    lines = ["| published | figure | predicted | ratio | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows():
        fitted = f"fitted: {row.fitted}" if row.fitted else "not fitted"
        figures = f"{row.published:,g} {row.unit} | {row.predicted:,.4g} {row.unit} | {row.ratio:.2f}"
        lines.append(f"| {row.name} | {figures} | {fitted}; {row.assumed} |")
    return "\n".join(lines)
