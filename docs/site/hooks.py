"""What the docs site has besides docs/: README.md and its like, the examples, the configs that pages name, the API."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
MOVED = {"README.md": "index.md", "examples": "examples.md"}  # by path in the repository, to that in the site
TARGET = re.compile(r"(\]\(|src=\")([^)\"#:]+)(?=[)\"#])")


def in_site(path: str) -> str:
    """Return where a file of the repository is in the site."""
    return MOVED.get(path, path.removeprefix("docs/"))


def in_repository(uri: str) -> str:
    """Return where a file of the site is in the repository."""
    moved = {there: here for here, there in MOVED.items()}.get(uri, uri)
    return moved if (ROOT / moved).exists() else f"docs/{uri}"


def targets(uri: str, text: str) -> set[str]:
    """Return the files of the repository that a page links to."""
    folder = posixpath.dirname(in_repository(uri))
    return {posixpath.normpath(posixpath.join(folder, found)) for _, found in TARGET.findall(text)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/: pages of the root, files that pages link to, examples as a page, the API."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, in_site(name), content=(ROOT / name).read_text("utf-8")))
    scripts = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))
    blocks = (f"## {path.name}\n\n```{path.suffix[1:]}\n{path.read_text('utf-8')}```\n" for path in scripts)
    files.append(File.generated(config, "examples.md", content="\n".join(["# Examples\n", *blocks])))
    files.append(File.generated(config, "api.md", content="# API\n\n::: latte\n"))
    linked = set().union(*(targets(file.src_uri, file.content_string) for file in files.documentation_pages()))
    for path in sorted(linked):
        if (ROOT / path).is_file() and in_site(path) not in files.src_uris:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between those of the site."""
    folder, uri = posixpath.dirname(in_repository(page.file.src_uri)), page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        return match[1] + (posixpath.relpath(in_site(path), posixpath.dirname(uri) or "."))

    return TARGET.sub(turned, markdown)
