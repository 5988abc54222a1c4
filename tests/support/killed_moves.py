"""Kills renames, copies and removals of a run before each of their operations on the disk.

    python -m support.killed_moves FOLDER

It runs in a process of its own, whose forks hold no threads. FOLDER has ``home``, with the run
``fox``. Each operation is repeated after the kill; any that loses something fails an assertion.
Prints how often each was killed.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mlxchat.home import Home
from mlxchat.report.moves import copy_run, remove_run, rename_run
from mlxchat.report.places import all_runs

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
KILLED = 9


def contents(home: Home) -> set[tuple[str, bytes]]:
    """Every file of a run's steps, log and evaluations, whatever its run is called now."""
    found = set()
    for path in home.root.rglob("*"):
        whole = "unfinished" not in str(path.relative_to(home.root))
        if path.is_file() and whole and path.suffix not in (".lock", ".partial"):
            found.add((path.name[-14:], path.read_bytes()))
    return found


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a fork that is killed before its operation ``number``; whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if event in CHANGES or writes:
                if left[0] == 0:
                    os._exit(KILLED)
                left[0] -= 1

        sys.addaudithook(hook)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f"operation {number} ended with {code}"
    return code == KILLED


def kill_everywhere(
    folder: Path,
    work: Callable[[Home], None],
    is_done: Callable[[Home], bool],
    check_killed: Callable[[Home, set[tuple[str, bytes]]], None],
    check_repeated: Callable[[Home, set[tuple[str, bytes]]], None],
) -> int:
    """Kill ``work`` before each of its operations and repeat it; returns how many there are."""
    number = 0
    while True:
        home = Home(folder / f"home{number}")
        shutil.copytree(folder / "home", home.root, symlinks=True)
        before = contents(home)
        killed = killed_at(number, lambda home=home: work(home))  # type: ignore[misc]
        if not killed:
            check_repeated(home, before)
            shutil.rmtree(home.root)
            return number
        check_killed(home, before)
        if not is_done(home):
            work(home)
        check_repeated(home, before)
        shutil.rmtree(home.root)
        number += 1


def names(home: Home) -> set[str]:
    """The names of all runs."""
    return {run.name for run in all_runs(home)}


def main(folder: Path) -> None:
    """Kill everything everywhere."""

    def kept(home: Home, before: set[tuple[str, bytes]]) -> None:
        assert contents(home) >= before, before - contents(home)

    def renamed(home: Home, before: set[tuple[str, bytes]]) -> None:
        assert names(home) == {"hen"}, names(home)
        [run] = all_runs(home)
        assert run.folder and run.log and len(run.evaluations) == 2
        assert contents(home) == before

    def copied(home: Home, before: set[tuple[str, bytes]]) -> None:
        assert names(home) == {"fox", "hen"}
        assert all(run.folder and run.log and len(run.evaluations) == 2 for run in all_runs(home))
        assert contents(home) == before

    def removed(home: Home, _: set[tuple[str, bytes]]) -> None:
        assert names(home) == set() and contents(home) == set(), contents(home)

    def whatever(home: Home, _: set[tuple[str, bytes]]) -> None:
        """Part of it is gone; what is left is still seen as a run."""
        assert names(home) == {"fox"} or not contents(home)

    def gone(home: Home) -> bool:
        return "fox" not in names(home)

    def has_copy(home: Home) -> bool:
        return any(run.name == "hen" and run.folder for run in all_runs(home))

    def rename(home: Home) -> None:
        rename_run(home, "fox", "hen")

    def copy(home: Home) -> None:
        copy_run(home, "fox", "hen")

    def remove(home: Home) -> None:
        remove_run(home, "fox")

    counts = {
        "rename": kill_everywhere(folder, rename, gone, kept, renamed),
        "copy": kill_everywhere(folder, copy, has_copy, kept, copied),
        "remove": kill_everywhere(folder, remove, gone, whatever, removed),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
