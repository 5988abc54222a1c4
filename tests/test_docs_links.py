"""Pages are the same on GitHub and on the site: links, headings, and where a block begins."""

import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from support.command_lines import FENCED

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\[(?:[^\]]|\][^\[(])*\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`]*`")


def prose(page: Path) -> str:
    """A page without its code."""
    return CODE.sub("code", FENCED.sub("", page.read_text("utf-8")))


def headings(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text("utf-8"))
    return [heading.replace("`", "") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]


def on_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def on_the_site(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{link}: there is no such file"
        if anchor:
            found = headings(target)
            assert anchor in map(on_github, found), f"{link}: no such heading on GitHub"
            assert anchor in map(on_the_site, found), f"{link}: no such heading on the site"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_heading_comes_twice(page: Path) -> None:
    """The second one of a name has another anchor on GitHub than on the site."""
    if page.name == "CHANGELOG.md":  # by its form
        return
    found = [on_the_site(heading) for heading in headings(page)]
    assert sorted(set(found)) == sorted(found)


def kind(line: str) -> str:
    """What block of a page a line belongs to."""
    if re.match(r"(- |\d+\. |  )", line):
        return "list"
    return {"|": "table", "#": "heading", ">": "quotation", "": "nothing"}.get(line[:1], "text")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_empty_line_is_between_two_blocks(page: Path) -> None:
    """Without it the site takes a list, a table or a heading for more of what is above."""
    lines = FENCED.sub("", page.read_text("utf-8")).splitlines()
    for above, below in pairwise(lines):
        before, after = kind(above), kind(below)
        apart = "nothing" in (before, after)
        assert apart or before == after or (before, after) == ("list", "text"), below


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Checking the machine", "checking-the-machine"),
        ("On 8, 16 and 24 GB", "on-8-16-and-24-gb"),
        ("What would more time buy?", "what-would-more-time-buy"),
        ("The path of `--depth`", "the-path-of---depth"),
    ],
)
def test_anchors(heading: str, anchor: str) -> None:
    assert on_github(heading.replace("`", "")) == anchor
    assert on_the_site(heading.replace("`", "")) == re.sub("-+", "-", anchor)
