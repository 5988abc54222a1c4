"""Programs measured against each other: all resident, one working at a time, in turns.

Each is a process of its own that has imported, built and compiled before anything is counted. Then
they take turns, A B C A B C, so that what changes on the machine meanwhile meets them all alike;
a ratio is the median over rounds of the ratio within the round.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, TextIO

from mlxchat.errors import MlxchatError

WARM_UPS = 2  # repetitions that are not counted: the first compiles, the second tells how long
PATIENCE = 20  # seconds for a worker to end by itself
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Work:
    """What a worker does again and again.

    ``repeat`` does it so many times, waits until the device has done it all, and returns the
    seconds it took; ``facts`` are to be told of it afterwards, as JSON.
    """

    repeat: Callable[[int], float]
    facts: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """A name, and the command that runs its worker (`serve`)."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """What came out for a program."""

    name: str
    first: float  # seconds of the first repetition, which compiles
    seconds: tuple[float, ...]  # of one repetition, by round
    facts: dict[str, Any]

    def speeds(self, amount: float) -> list[float]:
        """``amount``, which one repetition does, per second; by round."""
        return [amount / seconds for seconds in self.seconds]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def serve(build: Callable[[], Work]) -> None:
    """Be a worker: build, then answer the lines of standard input until it ends.

    What anything else prints to standard output goes to standard error.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            work = build()
        except MlxchatError as error:
            _write(answers, {"problem": error.problem, "remedy": error.remedy})
            return
        _write(answers, {"built": True})
        for line in sys.stdin:
            times = json.loads(line)
            answer = {"seconds": work.repeat(times)} if times else work.facts()
            _write(answers, answer)


def alternate(
    programs: Sequence[Program],
    rounds: int,
    seconds: float,
    threads: int,
    report: Callable[[str], None],
) -> list[Measured]:
    """Measure programs in turns.

    Args:
        programs: at least one.
        rounds: that are counted.
        seconds: that a round of one program takes, about; at least one repetition.
        threads: for each program's linear algebra.
        report: told what is going on.

    Raises:
        MlxchatError: a program cannot be built or ends early.
    """
    with ExitStack() as stack:
        workers, firsts, times = [], [], []
        for program in programs:
            report(f"{program.name}: starting")
            worker = stack.enter_context(_Worker(program, threads))
            worker.read()
            workers.append(worker)
            warm = [worker.repeat(1) for _ in range(WARM_UPS)]
            report(f"{program.name}: {warm[0]:.1f} s, then {warm[-1]:.3f} s")
            firsts.append(warm[0])
            times.append(max(1, round(seconds / warm[-1])))
        found: list[list[float]] = [[] for _ in workers]
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for worker, repetitions, results in zip(workers, times, found, strict=True):
                results.append(worker.repeat(repetitions) / repetitions)
        return [
            Measured(worker.name, first, tuple(results), worker.ask(0))
            for worker, first, results in zip(workers, firsts, found, strict=True)
        ]


class _Worker:
    """A program's process, as the one who asks sees it."""

    def __init__(self, program: Program, threads: int) -> None:
        self.name = program.name
        self._process = subprocess.Popen(
            program.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def repeat(self, times: int) -> float:
        """Seconds that so many repetitions took."""
        return float(self.ask(times)["seconds"])

    def ask(self, times: int) -> dict[str, Any]:
        """The answer to a number of repetitions, 0 asking for the facts."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended: reading tells of that
            self._process.stdin.write(f"{times}\n")
            self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise MlxchatError(
                f"{self.name} ended with status {self._process.wait()}.",
                "What it said of it is above.",
            )
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise MlxchatError(f"{self.name}: {answer['problem']}", answer["remedy"])
        return answer


def _write(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def add_options(parser: argparse.ArgumentParser, programs: Sequence[str]) -> None:
    """The options that every comparison has; ``--worker`` is how it calls itself."""
    parser.add_argument("--programs", nargs="+", choices=programs, default=list(programs))
    parser.add_argument("--rounds", type=positive, default=5, help="counted, after the warm-up")
    parser.add_argument("--seconds", type=float, default=2, help="of one program in one round")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of each program")
    parser.add_argument("--json", action="store_true", help="everything measured, no table")
    parser.add_argument("--worker", choices=programs, help=argparse.SUPPRESS)


def positive(text: str) -> int:
    """An option's number that is at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def measure(given: argparse.Namespace, *arguments: str) -> list[Measured]:
    """`alternate` by the options, each program's worker the running script, called anew.

    ``arguments`` are added to those that the script was called with.
    """
    again = [sys.executable, *sys.argv, *arguments, "--worker"]
    return alternate(
        [Program(name, [*again, name]) for name in given.programs],
        given.rounds,
        given.seconds,
        given.threads,
        lambda line: print(line, file=sys.stderr, flush=True),
    )


def everything(
    given: argparse.Namespace, measured: Sequence[Measured], packages: Sequence[str]
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "settings": {name: str(value) for name, value in vars(given).items()},
        "versions": versions(*packages),
        "programs": [vars(program) for program in measured],
    }


def import_rival(name: str) -> Any:
    """A module of `rivals`, which needs torch; only the programs that are torch import it.

    Raises:
        MlxchatError: torch is not installed.
    """
    try:
        return importlib.import_module(f"rivals.{name}")
    except ImportError as error:
        raise MlxchatError(
            f"The torch competitor cannot be imported ({error}).",
            'Install the extra bench: pip install -e ".[bench]"; or choose --programs without it.',
        ) from error


def versions(*packages: str) -> dict[str, str]:
    """Of python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def listed(*packages: str) -> str:
    """`versions` in a line."""
    return ", ".join(f"{name} {number}" for name, number in versions(*packages).items())


def circumstances(name: str, saved: Any) -> dict[str, Any]:
    """Return what was evaluated, a `SavedModel`, and on what machine."""
    from mlxchat.runtime import (
        machine,  # which starts MLX; most programs here leave that to workers
    )

    return {
        "model": name,
        "parameters": sum(weight.size for weight in saved.model.named_parameters().values()),
        "vocabulary": saved.tokenizer.vocab_size,
        "device": machine().device,
        "load": os.getloadavg()[0],
        "versions": versions("mlx"),
    }


def resident_peak() -> int:
    """The most bytes of this process that were ever in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, the keys of the first row as its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def explain(main: Callable[[], None]) -> None:
    """Run a script; say in two lines what is wrong where it cannot."""
    try:
        main()
    except MlxchatError as error:
        sys.exit(f"{error.problem}\n{error.remedy}")
