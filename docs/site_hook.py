"""Adds to the site the pages that lie beside docs/, and turns links to them into links of the site.

MkDocs calls `on_files` once and `on_page_markdown` for each page.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = ("MEMORY.md", "CONTRIBUTING.md", "CHANGELOG.md")  # on the site in lower case
FRONT = "README.md"  # whose place on the site is taken by index.md

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
    return _TO_ROOT.sub(_on_site, _TO_DOCS.sub("](", markdown))


def _on_site(link: re.Match[str]) -> str:
    name = link[1]
    if name == FRONT:
        return "](index.md"
    return f"]({name.lower()}" if name in OUTSIDE else link[0]
