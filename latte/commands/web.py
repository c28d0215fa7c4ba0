"""Open a page in the browser to sample videos with: it begins with the shipped model, and needs nothing else.

    latte web
    latte web --checkpoint models/Latte-1 --dtype bf16
    latte web --checkpoint outputs/sky/Latte-XL-2-20250101-120000

Needs the extra `web` (Gradio). The page listens at 127.0.0.1 only, unless --host says otherwise, and nothing is sent
elsewhere. Ctrl-C ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import parse_config
from latte.config.web import WebConfig
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and serve the page until Ctrl-C."""
    cfg = parse_config(WebConfig, argv, __doc__)
    try:
        from latte.inference.web_page import serve  # after the options: Gradio takes seconds to import
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise UserError('latte web needs Gradio; install it: pip install "latte-mindspore[web]"') from None
    serve(cfg)
