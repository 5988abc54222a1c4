"""Prints the licences of all that mlxchat depends on, as the tables of docs/licences.md.

    python docs/make_licences.py          asks pip (25.1 or later) for the metadata: needs a network
    python docs/make_licences.py --write  puts the tables into the page

pip resolves mlxchat with all its extras for the machine that this runs on, and installs nothing.
The licence is what the metadata of a package say: the licence expression, else the classifiers,
else the first line of the field ``License``.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).parent / "licences.md"
BEGIN, END = "<!-- tables of docs/make_licences.py -->\n", "<!-- end of the tables -->\n"
USED = ("", "cpu", "cuda", "serve", "gguf", "report", "tensorboard", "trackio", "wandb")
DEVELOPING = ("dev", "bench", "interop", "docs")
LONGEST = 60  # characters of a licence; longer ones are its text

Metadata = dict[str, Any]


def main() -> int:
    """Print the tables, or put them into the page."""
    tables = "\n".join(page_of(resolved())).rstrip("\n") + "\n"
    if "--write" not in sys.argv:
        print(tables)
        return 0
    text = PAGE.read_text("utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n{tables}\n{after}", "utf-8")
    return 0


def resolved() -> dict[str, Metadata]:
    """Return the metadata of every package by its name, mlxchat's among them."""
    extras = ",".join(filter(None, (*USED, *DEVELOPING)))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", "-", f"{ROOT}[{extras}]"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return {
        canonicalize_name(each["metadata"]["name"]): each["metadata"]
        for each in json.loads(done.stdout)["install"]
    }


def page_of(packages: dict[str, Metadata]) -> Iterator[str]:
    """Yield the lines of a table for each extra, of what the ones before it do not have."""
    shown: set[str] = {"mlxchat"}
    for extra in (*USED, *DEVELOPING):
        names = brought_by(extra, packages) - shown
        shown |= names
        yield f"### Extra `{extra}`\n" if extra else "### Always\n"
        if not names:
            yield "Nothing more.\n"
            continue
        yield "| package | version | licence |"
        yield "|---|---|---|"
        for name in sorted(names):
            metadata = packages[name]
            yield f"| {metadata['name']} | {metadata['version']} | {licence(metadata)} |"
        yield ""


def brought_by(extra: str, packages: dict[str, Metadata]) -> set[str]:
    """Return the names of all packages that mlxchat with an extra brings, as far as resolved."""
    found: set[tuple[str, str]] = set()
    pending = [("mlxchat", ""), ("mlxchat", extra)]
    while pending:
        name, wanted = pending.pop()
        if (name, wanted) in found or name not in packages:
            continue
        found.add((name, wanted))
        for text in packages[name].get("requires_dist", ()):
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": wanted}):
                other = canonicalize_name(required.name)
                pending += [(other, each) for each in ("", *required.extras)]
    return {name for name, _ in found}


def licence(metadata: Metadata) -> str:
    """Return the licence of a package in one line, or "unknown"."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    kinds = [each.split(" :: ")[-1] for each in metadata.get("classifier", ()) if "License" in each]
    first = (metadata.get("license") or "").strip().splitlines()[:1]
    named = [kind for kind in kinds if kind not in ("OSI Approved", "Other/Proprietary License")]
    if named:
        return ", ".join(named)
    if first and len(first[0]) <= LONGEST:
        return re.sub(r"[|]", "/", first[0])
    return ", ".join(kinds) or "unknown"


if __name__ == "__main__":
    sys.exit(main())
