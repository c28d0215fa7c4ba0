"""Tables as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import TYPE_CHECKING

from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> None:
    """Write a line of columns and one per row, whole or not at all; raises UserError if the file cannot be written.

    rows: the values in the order of the columns, or by their names, of which others are left out; None is empty.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name) for name in columns] if isinstance(row, Mapping) else row for row in rows)
