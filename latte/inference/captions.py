"""Cleaning of captions as the text-to-video Latte-1 was trained with: what web pages leave in them is taken out.

The steps and their order are those of diffusers' pipelines (`clean_caption`), so that a prompt becomes the same tokens.
"""

from __future__ import annotations

import html
import re
from importlib.util import find_spec
from urllib.parse import unquote_plus

from latte.errors import UserError

PACKAGES = {"bs4": "beautifulsoup4", "ftfy": "ftfy"}
_TLD = "com|co|ru|net|org|edu|gov|it"
_LINK = r"\b(?:{}:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+[.](?:" + _TLD + r")[\w/-]*\b/?(?!@))"
_CJK = "\u31c0-\u31ff\u3200-\u4dbf\u4e00-\u9fff"
_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_IMAGES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
Rules = tuple[tuple[str, str], ...]  # (pattern, replacement), applied in order

LINKS: Rules = (("<person>", "person"), (_LINK.format("https?"), ""), (_LINK.format("www"), ""))
SIGNS: Rules = (
    (r"@\w+\b", ""),  # names of users
    (f"[{_CJK}]+", ""),  # Latte-1 was trained on English
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?|&amp", ""),
    (r"\d{1,3}(\.\d{1,3}){3}", " "),  # addresses of machines
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b", ""),  # numbers of things
    (rf"\S+\.(?:{_IMAGES})", ""),  # names of files
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\\]\\[}{|\\\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
NOISE: Rules = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # numbers of articles
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_IMAGES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def check_packages() -> None:
    """Raise UserError if a package that cleaning needs is not installed."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise UserError(f"clean_caption needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`")


def clean_caption(text: str) -> str:
    """Return a caption without addresses, file names and other litter, in lower case; call `check_packages` before."""
    return _once(_once(text))


def _once(text: str) -> str:
    import ftfy
    from bs4 import BeautifulSoup

    text = _apply(LINKS, unquote_plus(text).strip().lower())
    text = _apply(SIGNS, BeautifulSoup(text, features="html.parser").text)
    if len(re.findall("[-_]", text)) > 3:  # words-that-are-one
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(NOISE, text).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
