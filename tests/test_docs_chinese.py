"""The Chinese pages keep step with the English ones: headings, commands, tables, code spans, links and figures.

What a change of an English page leaves behind in its Chinese one fails here, with the section it is in.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest
from support.golden_values import ROOT

CHINESE = ROOT / "docs" / "zh"
FOR_DEVELOPERS = {"ARCHITECTURE.md", "ascend_operators.md"}  # in English only
PAGES = ["README.md", *sorted({path.name for path in (ROOT / "docs").glob("*.md")} - FOR_DEVELOPERS)]

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?<!\S)#( .*)?$", re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)]*)\)|src=\"([^\"]*)\"")
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])(\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?: ?(thousand|million|billion|万|亿))?"  # 1,057 million
)
UNITS = {"": 1, "thousand": 10**3, "million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}


def english(name: str) -> Path:
    return ROOT / name if name == "README.md" else ROOT / "docs" / name


def headings(text: str) -> list[tuple[str, str]]:
    """The marks and the title of each."""
    return HEADING.findall(FENCE.sub("", text))


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The language of each block and its text; what a comment says may differ, but not that one is there."""
    commands = {"bash", "python", "yaml"}
    return [(kind, COMMENT.sub("#", body) if kind in commands else body) for kind, body in FENCE.findall(text)]


def tables(text: str) -> list[list[int]]:
    """The bars of every row of each table."""
    found: list[list[int]] = [[]]
    for line in FENCE.sub("", text).splitlines():
        if line.lstrip().startswith("|"):
            found[-1].append(SPAN.sub("", line).replace(r"\|", "").count("|"))
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


@cache
def anchors(path: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = (title for _, title in headings(path.read_text("utf-8")))
    return [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]


def link(target: str, page: Path) -> str:
    """Where a link goes, in the words of the English page; a heading by its number."""
    if "://" in target:
        return target
    address, _, anchor = target.partition("#")
    path = (page.parent / address).resolve() if address else page
    if not path.exists() or (anchor and anchor not in anchors(path)):
        return f"{target}, which is not there"
    heading = f"#{anchors(path).index(anchor)}" if anchor else ""
    if {path, page} == {english("README.md"), CHINESE / "README.md"}:
        return "the other language"
    if page.parent == CHINESE and path.parent == CHINESE:
        path = english(path.name)
    elif page.parent == CHINESE and path in map(english, PAGES):
        return f"{target}, which is there in Chinese"
    return path.relative_to(ROOT).as_posix() + heading


def sections(text: str, page: Path) -> list[dict[str, Counter]]:
    """The code spans, links and figures below each heading, itself included; the first is what comes before all."""
    found = []
    for section in re.split(r"^(?=#+ )", FENCE.sub("", text), flags=re.MULTILINE):
        prose = re.sub(r"</?\w+[^>]*>", "", LINK.sub("]", SPAN.sub("", section)))
        found.append(
            {
                "code spans": Counter({" ".join(span.split()) for span in SPAN.findall(section)}),
                "links": Counter(link(one or other, page) for one, other in LINK.findall(section)),
                "figures": Counter(Decimal(n.replace(",", "")) * UNITS[unit] for n, unit in NUMBER.findall(prose)),
            }
        )
    return found


def differences(text: str, page: Path, chinese_text: str, chinese_page: Path) -> list[str]:
    """What an English page and its Chinese one do not have in common, a line each."""
    found = []
    readers = {
        "heading": lambda text: [marks for marks, _ in headings(text)],
        "code block": code_blocks,
        "table": tables,
    }
    for what, read in readers.items():
        ours, theirs = read(text), read(chinese_text)
        if len(ours) != len(theirs):
            found.append(f"{what}s: {len(ours)} in English, {len(theirs)} in Chinese")
        pairs = enumerate(zip(ours, theirs, strict=False), 1)
        found += [f"{what} {k}: {one} in English, {other} in Chinese" for k, (one, other) in pairs if one != other]
    titles = ["(top)", *(title for _, title in headings(text))]
    for title, ours, theirs in zip(titles, sections(text, page), sections(chinese_text, chinese_page), strict=False):
        for what in ours:
            lacking, besides = (
                list(map(str, a.elements())) for a in (ours[what] - theirs[what], theirs[what] - ours[what])
            )
            if lacking or besides:
                found.append(f"{what} of section {title!r}: lacking in Chinese {lacking}, only there {besides}")
    return found


def test_every_page_for_users_is_there_in_chinese():
    assert {path.name for path in CHINESE.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_chinese_page_keeps_step(name):
    page, chinese_page = english(name), CHINESE / name
    found = differences(page.read_text("utf-8"), page, chinese_page.read_text("utf-8"), chinese_page)
    assert not found, f"bring docs/zh/{name} in step:\n" + "\n".join(found)


ENGLISH_TEXT = """# Sample

Takes 1,057 million elements and `--steps 3`; see [training](train.md#data).

```bash
python sample.py --seed 1  # one video
```

| size | time |
|---|---|
| 2 GB | 0.5 s |
"""
CHINESE_TEXT = """# 采样

需要 10.57 亿个元素和 `--steps 3`；见[训练](train.md#数据)。

```bash
python sample.py --seed 1  # 一个视频
```

| 大小 | 时间 |
|---|---|
| 2 GB | 0.5 s |
"""


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("# Sample\n", "# Sample\n\n## Seeds\n", "headings: 2 in English, 1 in Chinese"),
        ("--seed 1", "--seed 2", "code block 1"),
        ("  # one video", "", "code block 1"),
        ("1,057 million", "1,058 million", "lacking in Chinese ['1058000000']"),
        ("0.5 s", "0.6 s", "lacking in Chinese ['0.6'], only there ['0.5']"),
        ("`--steps 3`", "`--steps 4`", "lacking in Chinese ['--steps 4']"),
        ("train.md#data", "train.md#loss", "links of section 'Sample'"),
        ("train.md#data", "train.md#dat", "train.md#dat, which is not there"),
        ("| 2 GB | 0.5 s |\n", "| 2 GB | 0.5 s |\n| 2 GB | 0.5 s |\n", "table 1"),
        ("|---|---|", "|---|---|---|", "table 1"),
    ],
)
def test_a_change_of_the_english_page_is_found(before, after, said):
    pages = english("sample.md"), CHINESE / "sample.md"
    assert differences(ENGLISH_TEXT, pages[0], CHINESE_TEXT, pages[1]) == []
    changed = ENGLISH_TEXT.replace(before, after)
    assert said in "\n".join(differences(changed, pages[0], CHINESE_TEXT, pages[1]))


def test_a_link_to_the_english_page_is_found_where_there_is_a_chinese_one():
    text = CHINESE_TEXT.replace("train.md#数据", "../train.md#data")
    found = differences(ENGLISH_TEXT, english("sample.md"), text, CHINESE / "sample.md")
    assert "../train.md#data, which is there in Chinese" in found[0]
