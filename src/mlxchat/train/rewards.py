"""Rewards of completions: the task's own check, and Python functions of the user.

A reward is a function of three texts, the prompt, the completion and the right answer, that returns
a number. Several are summed, each with a weight. One of the user's own is named by its file::

    rewards.py:brief          the function brief of rewards.py
    rewards.py:brief:-0.5     the same, with a weight
    answer                    built in: 1 if the answer is right, else 0
    form                      built in: 1 if there is a number after "#### ", right or wrong

The file runs in this process, with all that its user may do. Whatever a function does, the run goes
on: where it raises an exception, returns what is no finite number or takes longer than
`LONGEST_CALL`, its reward is 0. What it prints is not shown, and neither that nor a slow call
changes the reward. The first fault of each kind is said, all are counted, and the run ends only if
more than `MOST_FAULTY` of the answers, of at least `FEWEST_SCORED`, met one. A function has to give
equal texts equal rewards, or a resumed run is not what the undisturbed one would have been.
"""

import inspect
import io
import math
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

from mlxchat.counts import counted
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.questions.question import AnswerCheck, final_number, is_right
from mlxchat.errors import ConfigError, NotFound, reason_of
from mlxchat.home import expanded
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock

Reward = Callable[[str, str, str], float]  # of prompt, completion and answer

LONGEST_CALL = 10.0  # seconds, after which a function is stopped
SLOW_CALL = 1.0  # seconds, from which on a call is said to be slow
MOST_FAULTY = 0.25  # share of answers
FEWEST_SCORED = 32  # answers before that share ends a run
_SHOWN = 80  # characters of what a function returned or printed
_FORM = (
    "Name a function as rewards.py:function, with a weight if you like: rewards.py:function:0.5."
)


class WeightedReward(NamedTuple):
    """A reward, what it is called, and the factor it counts with."""

    name: str
    reward: Reward
    weight: float = 1.0


@dataclass(frozen=True)
class Fault:
    """The fault of a function that did not return a number.

    Attributes:
        kind: a short phrase, the same for similar faults.
        detail: a sentence about this one, to follow the function's name.
    """

    kind: str
    detail: str


class CheckedReward:
    """The sum of several rewards, which whatever they do is a finite number.

    Attributes:
        scored: the number of completions that have been scored.
        faulty: those of them for which a function failed.
        counts: faults, calls that printed and slow calls, by function and kind.
        fingerprints: those of the files, by path, so that a resumed run can compare them.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        fingerprints: dict[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.scored = self.faulty = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fingerprints = fingerprints or {}
        self._rewards, self._clock = tuple(rewards), clock
        self._notes: list[str] = []

    def score(self, prompt: str, completion: str, answer: str) -> float:
        """Return the weighted sum of the rewards of a completion.

        Raises:
            ConfigError: too many of the completions have met a function that fails.
        """
        total, fault = 0.0, None
        for name, reward, weight in self._rewards:
            result = self._called(name, partial(reward, prompt, completion, answer))
            if isinstance(result, Fault):
                fault = name, result
            else:
                total += weight * result
        self.scored += 1
        if fault:
            self.faulty += 1
            self._require_few(*fault)
        return total if math.isfinite(total) else 0.0

    def notes(self) -> list[str]:
        """Return what is to be said since the last call: the first fault of each kind."""
        said, self._notes = self._notes, []
        return said

    def summary(self) -> str:
        """Return the counts as a line; "" if there is nothing to count."""
        faults = [f"{name} {kind}: {count:,}" for (name, kind), count in self.counts.items()]
        return f"Of {counted(self.scored, 'rewards')}: {', '.join(faults)}." if faults else ""

    def _called(self, name: str, call: Callable[[], object]) -> float | Fault:
        """Return what a function returns, as a number, or its fault; counts what is to be said."""
        heard, began = _Heard(), self._clock.seconds()
        with redirect_stdout(heard), redirect_stderr(heard):
            result = _number_of(call)
        took = self._clock.seconds() - began
        if heard.text:
            self._count(name, "printed", f"printed {heard.text!r}, which is not shown.")
        if isinstance(result, Fault):
            self._count(name, result.kind, f"{result.detail} Its reward is 0.")
        elif took >= SLOW_CALL:
            self._count(name, "was slow", f"took {took:.1f} s for one completion.")
        return result

    def _count(self, name: str, kind: str, detail: str) -> None:
        self.counts[name, kind] += 1
        if self.counts[name, kind] == 1:
            self._notes.append(f"The reward {name} {detail} (Said once, then counted.)")

    def _require_few(self, name: str, fault: Fault) -> None:
        if self.scored >= FEWEST_SCORED and self.faulty > MOST_FAULTY * self.scored:
            raise ConfigError(
                f"The reward failed for {self.faulty:,} of {self.scored:,} completions; the last "
                f"time {name} {fault.detail}",
                "Mend the function, and resume the run.",
            )


def rewards_of(given: Sequence[str] | None, check: AnswerCheck) -> CheckedReward:
    """Return the rewards that the settings name; by default, whether the answer is right.

    Args:
        given: names of rewards, each perhaps with a weight; see the top of this module.
        check: how the task's answers are checked.

    Raises:
        NotFound: there is no such file, or no such function in it.
        ConfigError: a name has another form, the file cannot be run, or the function does not take
            three texts.
    """
    built_in: dict[str, Reward] = {
        "answer": lambda _, completion, answer: float(is_right(check, completion, answer)),
        "form": lambda _, completion, __: float(final_number(completion) is not None),
    }
    modules: dict[Path, ModuleType] = {}
    rewards: list[WeightedReward] = []
    for text in given or ("answer",):
        named, weight = _with_weight(text)
        if named in built_in:
            rewards.append(WeightedReward(named, built_in[named], weight))
            continue
        file, _, function = named.rpartition(":")
        if not file or not function.isidentifier():
            raise ConfigError(
                f"The reward {text!r} is neither {' nor '.join(built_in)}, nor names a function.",
                _FORM,
            )
        path = expanded(file).absolute()
        if path not in modules:
            modules[path] = _module(path)
        rewards.append(
            WeightedReward(f"{path.name}:{function}", _function(modules[path], function), weight)
        )
    return CheckedReward(rewards, {str(path): fingerprint(path) for path in modules})


def _with_weight(text: str) -> tuple[str, float]:
    """Split a reward's name from the weight after its last colon; 1 if there is none."""
    head, _, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError(f"The weight of the reward {text!r} is {tail}.", "Give another number.")
    return head, weight


def _module(path: Path) -> ModuleType:
    """Return a file that has been run, as a module; nothing is written beside it."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"There is no file {path} with a reward.", _FORM) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}.", _FORM) from error
    module = ModuleType(f"mlxchat_reward_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for it
    heard = _Heard()
    try:
        with redirect_stdout(heard), redirect_stderr(heard):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be run: {_said(error)}.", "Mend it.") from error
    return module


def _function(module: ModuleType, name: str) -> Reward:
    found: object = getattr(module, name, None)
    if not callable(found):
        others = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        has = f"Its functions: {', '.join(others)}." if others else "It has no function."
        raise NotFound(f"{module.__file__} has no function {name!r}.", has)
    try:
        inspect.signature(found).bind("", "", "")
    except TypeError as error:
        raise ConfigError(
            f"The reward {name} of {module.__file__} does not take prompt, completion and answer: "
            f"{error}.",
            f"Write def {name}(prompt, completion, answer).",
        ) from error
    except ValueError:
        pass  # a function in C that does not say what it takes
    reward: Reward = found
    return reward


class _Heard(io.TextIOBase):
    """A stream that keeps the beginning of what is written to it.

    Attributes:
        text: the beginning.
    """

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text[: _SHOWN - len(self.text)]
        return len(text)


class _TookTooLongError(BaseException):
    """Not an Exception, which a function may catch."""


def _number_of(call: Callable[[], object]) -> float | Fault:
    """Return what a call returns, if that is a finite number, or what it did instead."""
    try:
        with _limited(LONGEST_CALL):
            result = call()
        if not isinstance(result, Real):
            kind = type(result).__name__
            return Fault("returned no number", f"returned {_short(result)}, of type {kind}.")
        number = float(result)
    except _TookTooLongError:
        return Fault("took too long", f"took more than {LONGEST_CALL:g} s, and was stopped.")
    except (Exception, SystemExit) as error:  # noqa: BLE001  (the code is the user's)
        return Fault("raised an exception", f"raised {_said(error)}.")
    if not math.isfinite(number):
        return Fault("returned no number", f"returned {number}.")
    return number


def _short(result: object) -> str:
    text = repr(result)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _said(error: BaseException) -> str:
    """Return the last line of a traceback, and the line of the file that it leads to."""
    last = traceback.format_exception_only(error)[-1].strip().rstrip(".")
    if isinstance(error, SyntaxError):
        return f"{last} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename != __file__]
    return f"{last} (line {own[-1]})" if own else last


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_TookTooLongError` within the context after some time, in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise _TookTooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
