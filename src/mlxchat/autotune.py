"""Chooses the fastest of several ways to compute the same on this machine.

What is fastest depends on the chip, and a kernel may be wrong on a chip that it has never run on.
So each question is put to the machine once: every way is computed, compared with the plain one and
timed. The answer is kept in MLXCHAT_HOME by device and version of MLX; `mlxchat doctor` shows all.

    way = fastest("squares of 1,000 numbers", {"plain": lambda: [x * x], "power": lambda: [x**2]})
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlxchat import openblas
from mlxchat.disk import read_regular, replacing
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.json_text import as_type, parse_json
from mlxchat.runtime import machine, mx

RELATIVE_ERROR = 1e-5  # the largest difference from the plain way, relative to its norm
CLEARLY_FASTER = 0.95  # of the plain way's seconds: a smaller gain is noise
REPETITIONS = 5  # that are timed of each way
SHORT, MOST_AT_ONCE = 0.02, 4  # seconds of a repetition, at least; computations in it, at most
LONGEST_TRIAL = 1.0  # of a way, after which it is not repeated again
LARGEST_RECORD = 2**22  # bytes

Way = Callable[[], Sequence[mx.array]]
Chosen = TypeVar("Chosen")
Arguments = ParamSpec("Arguments")


class Trial(BaseModel):
    """The outcome of trying one way.

    Attributes:
        seconds: the least that it took; None if it failed.
        difference: from the plain way's results, relative to their norm; infinite if they are not
            comparable.
        failure: why it could not be computed; "" if it could.
        right: whether the difference is within the tolerance.
    """

    # By default infinity is written as null, which is no number when it is read again.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    seconds: float | None = None
    difference: float = 0.0
    failure: str = ""
    right: bool = True

    @property
    def sound(self) -> bool:
        """True if it could be computed and was right."""
        return self.right and not self.failure

    def outcome(self) -> str:
        """Return the time as text, or why it cannot be used."""
        if self.seconds is None:
            return f"failed: {self.failure}"
        long = self.seconds >= 0.9995
        time_taken = f"{self.seconds:.3g} s" if long else f"{1000 * self.seconds:.3g} ms"
        return time_taken if self.right else f"{time_taken}, wrong by {self.difference:.1e}"


class Tuned(BaseModel):
    """The way that was chosen for a question, and the trials of all ways by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chosen: str
    trials: dict[str, Trial]

    def comparison(self) -> str:
        """Return the trials as text: ``plain 2.1 ms, split 1.4 ms, other failed: why``."""
        return ", ".join(f"{name} {trial.outcome()}" for name, trial in self.trials.items())


_VERSION = ", version "  # between a question and the version of its ways
_FILE = TypeAdapter(dict[str, Tuned])
_answers: dict[str, Tuned] | None = None  # by question; None before the first one
_fixed: dict[str, str] = {}  # ways by a part of the question


def fastest(
    question: str,
    ways: Mapping[str, Way],
    *,
    version: str = "1",
    tolerance: float = RELATIVE_ERROR,
    exact: Mapping[str, Way] | None = None,
    share: float = CLEARLY_FASTER,
) -> str:
    """Return the name of the fastest way whose results are right, and remember it.

    It can be called while a function is traced.

    Args:
        question: what is computed, with all that the answer depends on but the device and the
            version: shapes, dtypes.
        ways: functions that compute the same arrays, by name. The first is the plain way, which is
            right by definition and is chosen unless another is clearly faster.
        version: of the ways; with another one the question is put to the machine again.
        tolerance: the largest difference from its arrays, relative to their norms.
        exact: where the ways round to half precision, the same ways in float32, by the same names.
            These may differ by `RELATIVE_ERROR`. The rounded results are then compared with the
            plain way in float32, and may be as far from it as the rounded plain way is.
        share: of the plain way's seconds, which another must stay below.
    """
    for part, name in _fixed.items():
        if part in question:
            return name
    found, asked = tuned(), f"{question}{_VERSION}{version}"
    if asked not in found or found[asked].chosen not in ways:
        found[asked] = _measured(ways, tolerance, exact or {}, share)
        mx.clear_cache()
        mx.reset_peak_memory()  # what was measured here is no part of the program's own peak
        _store(found)
    return found[asked].chosen


def tuned() -> dict[str, Tuned]:
    """Return what has been measured on this machine, by question and version."""
    global _answers
    if _answers is None:
        _answers = _stored()
    return _answers


def shown_question(asked: str) -> str:
    """Return a question of `tuned` as it is shown.

    >>> shown_question("squares of 1,000 numbers, mlx.core.float32, version 1")
    'squares of 1,000 numbers, float32'
    """
    return asked.partition(_VERSION)[0].replace("mlx.core.", "")


@contextmanager
def fixed(**ways: str) -> Iterator[None]:
    """Choose these ways without measuring inside a ``with`` block, by a word of the question.

    >>> with fixed(squares="power"):
    ...     fastest("squares of 1,000 numbers", {})
    'power'
    """
    before = dict(_fixed)
    _fixed.update(ways)
    try:
        yield
    finally:
        _fixed.clear()
        _fixed.update(before)


def remembered(choose: Callable[Arguments, Chosen]) -> Callable[Arguments, Chosen]:
    """Keep in memory what a function chooses by `fastest` for its arguments, except in `fixed`."""
    kept = cast(Callable[Arguments, Chosen], cache(choose))

    @wraps(choose)
    def choice(*args: Arguments.args, **options: Arguments.kwargs) -> Chosen:
        return choose(*args, **options) if _fixed else kept(*args, **options)

    return choice


def _measured(
    ways: Mapping[str, Way], tolerance: float, exact: Mapping[str, Way], share: float
) -> Tuned:
    plain, *others = ways
    expected = _computed(ways[plain])
    truth = exact[plain]() if exact else expected
    tolerance = max(tolerance, _largest_difference(expected, truth))
    trials = {plain: Trial()}
    for name in others:
        try:
            found = _computed(ways[name])
            difference = _largest_difference(found, truth) if _alike(found, expected) else math.inf
            right = difference <= tolerance
            if right and exact:
                difference = _largest_difference(exact[name](), truth)
                right = difference <= RELATIVE_ERROR
            trials[name] = Trial(difference=difference, right=right)
        except (RuntimeError, ValueError) as error:  # a kernel does not compile, or cannot start
            trials[name] = Trial(failure=str(error).partition("\n")[0])
    seconds = _timed({name: ways[name] for name, trial in trials.items() if not trial.failure})
    chosen, least = plain, share * seconds[plain]
    for name in others:
        if trials[name].sound and seconds[name] < least:
            chosen, least = name, seconds[name]
    timed = {
        name: trial.model_copy(update={"seconds": seconds.get(name)})
        for name, trial in trials.items()
    }
    return Tuned(chosen=chosen, trials=timed)


def _computed(way: Way) -> Sequence[mx.array]:
    results = way()
    mx.eval(results)
    return results


def _timed(ways: Mapping[str, Way]) -> dict[str, float]:
    """Return the least seconds that each way took: other programs can only make it slower.

    The ways take turns, so that these meet all of them. What takes a short time is computed several
    times before the device is awaited, as in training.
    """
    times = {
        name: min(MOST_AT_ONCE, 1 + int(SHORT / _seconds(way, 1))) for name, way in ways.items()
    }
    least, begun = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for _ in range(REPETITIONS):
        for name, way in ways.items():
            least[name] = min(least[name], _seconds(way, times[name]))
        if time.perf_counter() - begun > LONGEST_TRIAL * len(ways):
            break
    return least


def _seconds(way: Way, times: int) -> float:
    start = time.perf_counter()
    mx.eval([way() for _ in range(times)])  # not `async_eval`, which a trace forbids
    return (time.perf_counter() - start) / times


def _alike(found: Sequence[mx.array], expected: Sequence[mx.array]) -> bool:
    """Return whether arrays have the shapes and dtypes of others."""
    kinds, others = ([(x.shape, x.dtype) for x in arrays] for arrays in (found, expected))
    return kinds == others


def _largest_difference(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    return max(map(_difference, found, expected), default=0.0)


def _difference(found: mx.array, expected: mx.array) -> float:
    """Return the norm of the difference relative to that of ``expected``, or infinity."""
    a, b = (x.astype(mx.float32).flatten() for x in (found, expected))
    norm = float(mx.linalg.norm(b))
    difference = float(mx.linalg.norm(a - b)) / (norm or 1.0)
    return math.inf if math.isnan(difference) else difference


def _path() -> Path:
    """Return the file of this device's answers.

    Raises:
        ConfigError: there is no home folder.
    """
    # Clouds give processors of several generations the same name; OpenBLAS tells them apart.
    device = re.sub(r"[^\w.]+", "-", f"{machine().device} {openblas.core()}".strip())
    return Home.from_environment().autotune(version("mlx")) / f"{device}.json"


def _stored() -> dict[str, Tuned]:
    """Return the answers on disk; none if there are none that can be read."""
    with suppress(OSError, ConfigError, ValueError):
        return as_type(parse_json(read_regular(_path(), LARGEST_RECORD)), _FILE)
    return {}


def _store(found: Mapping[str, Tuned]) -> None:
    """Keep the answers, and those that another process has added meanwhile, if there is a disk."""
    with suppress(OSError, ConfigError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        both = {**_stored(), **found}
        with replacing(path) as partial:
            partial.write_bytes(_FILE.dump_json(both, indent=1))
