"""A home in which the README's commands run: the files that it names, a hub, and programs.

Run as a program it is ``mlxchat`` with a quickstart of seconds.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.shards import DATASETS
from support.api_runs import chats
from support.foreign_models import write_nanochat
from support.hub_server import HubServer, address
from support.places import REPOSITORY, TESTS

DATASET = DATASETS["fineweb-edu"]
SHARDS = 8  # that the README downloads
IMPORTED = ".cache/nanochat/base_checkpoints/d20"
PROGRAMS = {
    "mlxchat": f'exec "{sys.executable}" -m support.readme_shell "$@"',
    "pip": 'test "$1" = install',  # nothing is installed: the tests run the code as it is
    "uv": 'test "$1" = run && while [ "$1" != mlxchat ]; do shift; done && exec "$@"',
    "pytest": "exit 0",  # by those that run this
}


def prepare(folder: Path) -> dict[str, str]:
    """Write what the commands read into a folder, the user's home; return their environment."""
    write_nanochat(folder / ".cache/nanochat", "classic").rename(folder / IMPORTED)
    chats(folder)
    novels = folder / "novels"
    novels.mkdir()
    for number, text in enumerate(texts()):
        (novels / f"{number}.txt").write_text(text, "utf-8")
    programs = folder / "bin"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return os.environ | {
        "HOME": str(folder),
        "MLXCHAT_HOME": str(folder / ".cache/mlxchat"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{TESTS}",
        "NO_PROXY": "127.0.0.1",
    }


def texts() -> list[str]:
    """Return the project's own pages."""
    pages = sorted([*(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("*.md")])
    return [page.read_text("utf-8") for page in pages]


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve small shards under the names of those that the README downloads; yield the address."""
    files, paragraphs = {}, [each for text in texts() for each in text.split("\n\n")]
    endless = cycle(paragraphs)
    for index in (*range(SHARDS), DATASET.last_shard):
        name = DATASET.validation.replace(f"{DATASET.last_shard:05d}", f"{index:05d}")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": list(islice(endless, 300))}), path, row_group_size=64)
        files[address(DATASET, name)] = path
    with HubServer(files) as server:
        yield server.endpoint


def main() -> None:
    """Run mlxchat with a quickstart that trains for a few steps."""
    from mlxchat.cli import app, quickstart

    steps = {"num_iterations": 6, "save_every": 3}
    quickstart.BASE_CONFIG = quickstart.BASE_CONFIG.model_copy(
        update={**steps, "eval_every": 0, "sample_every": 0}
    )
    quickstart.TUNED_CONFIG = quickstart.TUNED_CONFIG.model_copy(update=steps)
    if sys.argv[1:2] == ["quickstart"]:
        sys.argv += ["--questions", "4"]
    app.main()


if __name__ == "__main__":
    main()
