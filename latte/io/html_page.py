"""HTML pages that are one file: styles and images are inside, nothing is fetched, and no script runs."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from PIL import Image

from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np

# A browser fetches nothing from elsewhere for such a page, even if a file's name got past `escape`.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222;
       background: #fff }
h1, h2 { font-weight: 600; line-height: 1.2 } h2 { margin-top: 2.5rem }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top } img { display: block; max-width: 100% }
figcaption { font-size: 13px; color: #555; max-width: 24rem; overflow-wrap: anywhere }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top;
       border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
details { margin: 1rem 0 } summary { cursor: pointer }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } figcaption { color: #aaa }
       td, th { border-color: #444 } }
"""


def save_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of a title and parts in HTML, whole or not at all; raises UserError if it cannot be written."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<meta name="viewport" content="width=device-width">\n<title>{text(title)}</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{text(title)}</h1>\n"
        )
        file.writelines(f"{part}\n" for part in parts)
        file.write("</body>\n</html>\n")


def text(words: object) -> str:
    """Return words as HTML shows them, whatever is in them."""
    return html.escape(str(words))


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Return a table of values, with a line of headings if there are any."""
    lines = [f"<tr>{''.join(f'<th>{text(name)}</th>' for name in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{text(value)}</td>' for value in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def figure(source: str, caption: str, width: int | None = None) -> str:
    """Return an image, as a data URI, with words below it."""
    size = f' width="{width}"' if width else ""
    shown = f'<img src="{text(source)}" alt="{text(caption)}"{size} loading="lazy">'
    return f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"


def details(summary: str, content: str) -> str:
    """Return what is shown only after a click on its summary."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def data_uri(content: bytes, kind: str) -> str:
    """Return the bytes of a file of a media type, such as image/png, as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(image: np.ndarray) -> str:
    """Return an image uint8 (H, W, 3) as a data URI."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="JPEG", quality=85)
    return data_uri(content.getvalue(), "image/jpeg")
