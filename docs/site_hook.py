"""Adds to the site the pages that lie beside docs/, and makes links of files links of the site.

A link whose text is the name of a page's file gets the title of that page as its text.

MkDocs calls `on_files` once and `on_page_markdown` for each page.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = ("MEMORY.md", "CONTRIBUTING.md", "CHANGELOG.md")  # on the site in lower case
FRONT = "README.md"  # whose place on the site is taken by index.md

_BY_FILE = re.compile(r"\[(?:docs/)?([\w-]+\.md)\]\(")
_TO_DOCS = re.compile(r"\]\(docs/")
_TO_ROOT = re.compile(r"\]\((?:\.\./)?([A-Z]+\.md)(?=[#)])")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie beside docs/."""
    for name in OUTSIDE:
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page whose links lead to where its neighbours are on the site."""
    markdown = _BY_FILE.sub(_by_title, markdown)
    return _TO_ROOT.sub(_on_site, _TO_DOCS.sub("](", markdown))


def _by_title(link: re.Match[str]) -> str:
    name = link[1]
    path = ROOT / name if name in (*OUTSIDE, FRONT) else ROOT / "docs" / name
    title = re.search(r"^# (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return f"[{title[1] if title else name}]("


def _on_site(link: re.Match[str]) -> str:
    name = link[1]
    if name == FRONT:
        return "](index.md"
    return f"]({name.lower()}" if name in OUTSIDE else link[0]
