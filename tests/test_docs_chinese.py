"""The Chinese pages keep step with the English ones: headings, commands, tables, code spans, links and figures.

What a change of an English page leaves behind in its Chinese one fails here, section by section.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from support.golden_values import ROOT

FOR_DEVELOPERS = {"ARCHITECTURE.md", "ascend_operators.md"}  # in English only
UNITS = {"": 1, "thousand": 10**3, "million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}
PAGES = ["README.md"] + sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in FOR_DEVELOPERS)

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?<!\S)#( .*)?$", re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)]*)\)|src=\"([^\"]*)\"")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.^])(\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?: ?(thousand|million|billion|万|亿)(?![a-z]))?")


def english(name: str) -> Path:
    return ROOT / name if name == "README.md" else ROOT / "docs" / name


def chinese(name: str) -> Path:
    return ROOT / "docs" / "zh" / name


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in HEADING.findall(FENCE.sub("", text))]


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The language of each block and its text; what a comment says may differ, but not that one is there."""
    return [(kind, body if kind == "text" else COMMENT.sub("#", body)) for kind, body in FENCE.findall(text)]


def tables(text: str) -> list[list[int]]:
    """The number of columns of every row of each table."""
    found: list[list[int]] = [[]]
    for line in FENCE.sub("", text).splitlines():
        if line.lstrip().startswith("|"):
            found[-1].append(SPAN.sub("", line).replace(r"\|", "").count("|"))
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def anchors(path: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return [
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for _, title in headings(path.read_text("utf-8"))
    ]


def link(target: str, page: Path) -> str:
    """Where a link goes, the same for both languages; what follows # becomes the number of its heading."""
    if "://" in target:
        return target
    address, _, anchor = target.partition("#")
    path = (page.parent / address).resolve() if address else page
    assert path.exists(), f"{page}: the link {target} goes nowhere"
    number = ""
    if anchor:
        assert anchor in anchors(path), f"{page}: {target} names no heading"
        number = f"#{anchors(path).index(anchor)}"
    if {path, page} == {english("README.md"), chinese("README.md")}:
        return "the other language"
    if page.parent == chinese("") and path.parent != page.parent and path in map(english, PAGES):
        return f"{address}, which there is in Chinese"
    if path.parent == chinese(""):
        path = english(path.name)
    return path.relative_to(ROOT).as_posix() + number


def sections(text: str, page: Path) -> list[dict[str, Counter]]:
    """The code spans, links and figures of what stands below each heading, the heading included."""
    found = []
    for section in re.split(r"^(?=#+ )", FENCE.sub("", text), flags=re.MULTILINE):
        prose = re.sub(r"</?\w+[^>]*>", "", LINK.sub("]", SPAN.sub("", section)))
        figures = (Decimal(digits.replace(",", "")) * UNITS[unit] for digits, unit in NUMBER.findall(prose))
        found.append(
            {
                "code spans": Counter(set(SPAN.findall(section))),
                "links": Counter(link(one or other, page) for one, other in LINK.findall(section)),
                "figures": Counter(figures),
            }
        )
    return found


def differences(text: str, page: Path, other_text: str, other_page: Path) -> list[str]:
    """What an English page and its Chinese one have not in common, a line each."""
    found = []
    for what, read in (("headings", headings), ("code block", code_blocks), ("columns of table", tables)):
        ours, theirs = read(text), read(other_text)
        if read is headings:
            ours, theirs = [level for level, _ in ours], [level for level, _ in theirs]
        if len(ours) != len(theirs):
            found.append(f"{what}: {len(ours)} in English, {len(theirs)} in Chinese")
        found += [f"{what} {k}: {a} is not {b}" for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    both = zip(sections(text, page), sections(other_text, other_page), [("", "(top)"), *headings(text)], strict=False)
    for ours, theirs, (_, title) in both:
        for what in ours:
            missing, new = ours[what] - theirs[what], theirs[what] - ours[what]
            if missing or new:
                less, more = ([str(one) for one in some.elements()] for some in (missing, new))
                found.append(f"{what} of section {title!r}: Chinese lacks {less}, has {more} besides")
    return found


def test_every_page_is_there_in_chinese():
    assert {path.name for path in chinese("").glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_chinese_page_keeps_step(name):
    page, other = english(name), chinese(name)
    found = differences(page.read_text("utf-8"), page, other.read_text("utf-8"), other)
    assert not found, f"bring docs/zh/{name} in step:\n" + "\n".join(found)
