"""What `recipes.py` trains: candidates as they are written, and their runs in order. Pure."""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import rounds

from mlxchat.config.run import is_name
from mlxchat.config.units import spell_duration, to_seconds
from mlxchat.errors import MlxchatError

BUDGET, STEPS = "budget", "num-iterations"  # the options of a run's length
OWN_OPTIONS = (  # which the script gives, or which would have nothing trained
    *("--model-tag", "--seed", "--data-dir", "--dataset", "--num-shards"),
    *("--json", "--dry-run", "--fresh"),
)


@dataclass(frozen=True)
class Candidate:
    """A name, options of `mlxchat train`, and how long it trains."""

    name: str
    options: tuple[str, ...]
    unit: str  # of its length: "budget", in seconds, or "num-iterations"
    length: int


@dataclass(frozen=True)
class Run:
    """A candidate, trained with a seed for a multiple of its length."""

    candidate: Candidate
    seed: int
    share: float = 1

    def __str__(self) -> str:
        return f"{self._name(' for {:g} times its length')}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its folder among those of the other runs; no candidate's name has an ``@``."""
        return Path(self._name("@{:g}")) / f"seed-{self.seed}"

    @property
    def length(self) -> int:
        """The seconds or steps that it has."""
        return max(1, round(self.share * self.candidate.length))

    @property
    def budget(self) -> int | None:
        """The seconds that it has; None if it has steps."""
        return self.length if self.candidate.unit == BUDGET else None

    @property
    def options(self) -> list[str]:
        """Its options, without those of seed and data."""
        length = spell_duration(self.length) if self.candidate.unit == BUDGET else self.length
        return [*self.candidate.options, f"--{self.candidate.unit}={length}"]

    def _name(self, share: str) -> str:
        return self.candidate.name + ("" if self.share == 1 else share.format(self.share))


def candidate(text: str, default: str) -> Candidate:
    """Return the candidate that is written as ``NAME=OPTIONS``.

    Args:
        text: what was given.
        default: the option with its length, unless it has one of its own.

    Raises:
        MlxchatError: it is not written so, or has an option that is the script's to give.
    """
    name, equals, written = text.partition("=")
    if not (equals and is_name(name)):
        raise MlxchatError(
            f"{text!r} is not a name and options.", 'Write, for example, deep="--depth 6".'
        )
    try:
        words = shlex.split(written)
    except ValueError as error:
        raise MlxchatError(f"{text!r}: {error}.", "Close what it opens.") from error
    for word in words:
        if word.partition("=")[0] in OWN_OPTIONS:
            raise MlxchatError(
                f"{name}: {word} is not a candidate's to give.",
                "Leave it out; the script gives data, seed and name.",
            )
    parser = argparse.ArgumentParser(prog=f"candidate {name}", add_help=False, allow_abbrev=False)
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument(f"--{BUDGET}", type=to_seconds)
    lengths.add_argument(f"--{STEPS}", type=rounds.positive)
    own, others = parser.parse_known_args(words)
    if own.budget is None and own.num_iterations is None:
        own = parser.parse_args([default])
    if own.budget is None:
        return Candidate(name, tuple(others), STEPS, own.num_iterations)
    return Candidate(name, tuple(others), BUDGET, own.budget)


def order(candidates: Sequence[Candidate], seeds: int, horizons: Iterable[float]) -> list[Run]:
    """Return all runs: seed by seed, the candidates, then the baseline's other horizons."""
    shares = sorted(set(horizons) - {1})
    return [
        run
        for seed in range(1, seeds + 1)
        for run in (
            *(Run(each, seed) for each in candidates),
            *(Run(candidates[0], seed, share) for share in shares),
        )
    ]
