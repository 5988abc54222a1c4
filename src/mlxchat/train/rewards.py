"""Rewards of completions: the task's own check, and the user's Python functions.

A reward is a function of three texts, the prompt, the completion and the right answer, that returns
a number. Several are summed, each with a weight. A user's function is named by its file::

    rewards.py:brief          the function brief of rewards.py
    rewards.py:brief:-0.5     the same, with a weight
    answer                    built in: 1 if the answer is right, else 0
    form                      built in: 1 if there is a number after "#### ", right or wrong

The file runs in this process, with all of the user's permissions, and may import modules beside it.
The run continues whatever a function does: if it raises an exception, takes too long, or returns
something other than a number, or one that is too large, its part of the reward is 0
(`mlxchat.train.reward_calls`). Only a function that cannot be stopped ends the program. Its output
is not shown; printing and slow calls do not change the reward. Faults are counted by kind from the
start of the process; the first of each kind is reported, then the tenth, the hundredth and so on.
The run stops only if more than `MOST_FAULTY` of at least `FEWEST_SCORED` answers caused a fault. A
function must give equal texts equal rewards; otherwise a resumed run differs from an uninterrupted
one.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mlxchat.config.rl import BUILT_IN_REWARDS
from mlxchat.counts import counted
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.questions.question import AnswerCheck, final_number, is_right
from mlxchat.errors import ConfigError, NotFound, reason_of
from mlxchat.home import expanded
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.train.reward_calls import (
    CALL_STOPPED_EVERY,
    LONGEST_CALL,
    MOST_CALL_STOPS,
    Fault,
    called_safely,
    in_one_sentence,
    users_code,
)
from mlxchat.train.world import GiveUp

Reward = Callable[[str, str, str], float]  # of prompt, completion and answer

LARGEST_REWARD_WEIGHT = 1e6  # of a function, above 0 or below
SLOW_CALL = 1.0  # seconds, from which on a call is said to be slow
MOST_FAULTY = 0.25  # share of answers
FEWEST_SCORED = 32  # answers before that share ends a run
_FORM = "Name a function as rewards.py:function, optionally with a weight: rewards.py:function:0.5."


class WeightedReward(NamedTuple):
    """A reward function, its name and its weight."""

    name: str
    reward: Reward
    weight: float = 1.0


class CheckedReward:
    """The weighted sum of several rewards, which is always a finite number.

    Args:
        rewards: what is added up.
        clock: times the calls.
        give_up: called if a function cannot be stopped; where it returns, the function goes on.

    Attributes:
        scored: the number of completions that have been scored.
        faulty: the number of completions for which a function failed.
        counts: faults, calls that printed and slow calls, by function and kind.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        clock: Clock = SYSTEM_CLOCK,
        give_up: GiveUp = lambda error: None,
    ) -> None:
        self.scored = self.faulty = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rewards, self._clock, self._give_up = tuple(rewards), clock, give_up
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
        return total

    def notes(self) -> list[str]:
        """Return the notes since the last call: about the 1st, 10th and 100th fault of a kind."""
        notes, self._notes = self._notes, []
        return notes

    def _called(self, name: str, call: Callable[[], object]) -> float | Fault:
        """Return what a function returns as a number, or its fault; count what deserves a note."""
        began = self._clock.seconds()
        result, printed = called_safely(call, lambda: self._give_up(_unstoppable(name)))
        took = self._clock.seconds() - began
        if printed:
            self._count(name, "printed", f"printed {printed!r}, which is not shown.")
        if isinstance(result, Fault):
            self._count(name, result.kind, f"{result.detail} That counts as 0.")
        elif took >= SLOW_CALL:
            self._count(name, "was slow", f"took {took:.1f} s for one completion.")
        return result

    def _count(self, name: str, kind: str, detail: str) -> None:
        self.counts[name, kind] = count = self.counts[name, kind] + 1
        if count == 1:
            self._notes.append(f"The reward {name} {detail}")
        elif set(str(count)[1:]) == {"0"} and str(count)[0] == "1":
            calls = f"{counted(count, 'times')} in {self.scored + 1:,} calls"
            self._notes.append(f"The reward {name} {kind} {calls}; the last time it {detail}")

    def _require_few(self, name: str, fault: Fault) -> None:
        if self.scored >= FEWEST_SCORED and self.faulty > MOST_FAULTY * self.scored:
            raise ConfigError(
                f"The reward failed for {self.faulty:,} of {self.scored:,} completions; the last "
                f"time {name} {fault.detail}",
                "Fix the function, and start from scratch with `fresh`.",
            )


def _unstoppable(name: str) -> ConfigError:
    seconds = LONGEST_CALL + MOST_CALL_STOPS * CALL_STOPPED_EVERY
    return ConfigError(
        f"The reward {name} has run for {seconds:.0f} s and cannot be stopped, perhaps because it "
        "catches every exception. What was learned since the last checkpoint is lost.",
        "Catch only Exception in it, and start from scratch with `fresh`.",
    )


class NamedReward(NamedTuple):
    """A reward as the settings name it.

    Attributes:
        name: the name of a function or a built-in reward.
        weight: the factor applied to it.
        file: where the function is; None if it is built in.
    """

    name: str
    weight: float
    file: Path | None


def named_rewards(given: Sequence[str] | None) -> list[NamedReward]:
    """Read the names of rewards, each perhaps with a weight; see the top of this module.

    Raises:
        ConfigError: a name has another form.
    """
    rewards = []
    for text in given or ("answer",):
        named, weight = _with_weight(text)
        if named in BUILT_IN_REWARDS:
            rewards.append(NamedReward(named, weight, None))
            continue
        file, _, function = named.rpartition(":")
        if not file or not function.isidentifier():
            raise ConfigError(
                f"The reward {text!r} is neither {' nor '.join(BUILT_IN_REWARDS)}, nor the name "
                "of a function.",
                _FORM,
            )
        rewards.append(NamedReward(function, weight, expanded(file).absolute()))
    return rewards


def reward_fingerprints(given: Sequence[str] | None) -> dict[str, str]:
    """Return the fingerprints of the files of rewards by path, so that resuming can compare them.

    Raises:
        ConfigError: a name has another form.
        OSError: a file cannot be read; `rewards_of` says which, and what to do.
    """
    files = {reward.file for reward in named_rewards(given) if reward.file}
    return {str(file): fingerprint(file) for file in sorted(files)}


def rewards_of(
    given: Sequence[str] | None, check: AnswerCheck, give_up: GiveUp = lambda error: None
) -> CheckedReward:
    """Return the rewards that the settings name, by default whether the answer is right.

    The files of functions are run, each once.

    Args:
        given: names of rewards, as for `named_rewards`.
        check: how the task's answers are checked.
        give_up: see `CheckedReward`.

    Raises:
        NotFound: there is no such file, or no such function in it.
        ConfigError: a name has another form, the file cannot be run, or the function does not take
            three texts and return a number.
    """
    built_in: dict[str, Reward] = {
        "answer": lambda _, completion, answer: float(is_right(check, completion, answer)),
        "form": lambda _, completion, __: float(final_number(completion) is not None),
    }
    modules: dict[Path, ModuleType] = {}
    rewards: list[WeightedReward] = []
    for name, weight, file in named_rewards(given):
        if file is None:
            rewards.append(WeightedReward(name, built_in[name], weight))
            continue
        if file not in modules:
            modules[file] = _module(file)
        function = _function(modules[file], name)
        rewards.append(WeightedReward(f"{file.name}:{name}", function, weight))
    return CheckedReward(rewards, give_up=give_up)


def _with_weight(text: str) -> tuple[str, float]:
    """Split a reward's name from the weight after its last colon; 1 if there is none."""
    head, _, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    most = f"{LARGEST_REWARD_WEIGHT:,.0f}"
    if not 0 < abs(weight) <= LARGEST_REWARD_WEIGHT:
        raise ConfigError(
            f"The weight of the reward {text!r} is {tail}.",
            f"Use a number other than 0, between -{most} and {most}.",
        )
    return head, weight


def _module(path: Path) -> ModuleType:
    """Return a file that has been run, as a module; nothing is written beside it.

    Its folder is the last in which modules are looked for from then on, so that it can import what
    is beside it and none of that takes the place of a module of the program.
    """
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"There is no file {path} with a reward.", _FORM) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}.", _FORM) from error
    module = ModuleType(f"mlxchat_reward_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for it
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with users_code():
            exec(compile(source, str(path), "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(f"{path} cannot be run: {in_one_sentence(error)}.", "Fix it.") from error
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
    for says, is_such in _NOT_RETURNING.items():
        if is_such(found) or is_such(getattr(found, "__call__", None)):  # noqa: B004  (of a class)
            raise ConfigError(
                f"The reward {name} of {module.__file__} returns no number: it {says}.",
                f"Write def {name}(prompt, completion, answer) with a return.",
            )
    reward: Reward = found
    return reward


_NOT_RETURNING: dict[str, Callable[[Any], bool]] = {
    "is an async function": inspect.iscoroutinefunction,
    "is a generator": inspect.isgeneratorfunction,
    "is an async generator": inspect.isasyncgenfunction,
}
