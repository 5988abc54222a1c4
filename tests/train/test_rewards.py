"""Rewards: named ones, the user's, and what becomes of functions that fail, print or take long."""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from mlxchat.errors import ConfigError, MlxchatError, NotFound
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.train import reward_calls
from mlxchat.train.rewards import (
    FEWEST_SCORED,
    MOST_FAULTY,
    CheckedReward,
    WeightedReward,
    reward_fingerprints,
    rewards_of,
)

OWN = """
import sys

def length(prompt, completion, answer):
    return len(completion)

def same(prompt, completion, answer):
    return completion == answer

def raises(prompt, completion, answer):
    return 1 / len(completion)

def prints(prompt, completion, answer):
    print("seen", completion)
    print("error", file=sys.stderr)
    return 2

def leaves(prompt, completion, answer):
    sys.exit(3)

def two(prompt, completion):
    return 1

def inner(prompt, completion, answer):
    import json
    return json.loads(completion)

async def later(prompt, completion, answer):
    return 1

def yields(prompt, completion, answer):
    yield 1

class Later:
    async def __call__(self, prompt, completion, answer):
        return 1

called_later = Later()
number = 7
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def single(function: object, **options: object) -> CheckedReward:
    return CheckedReward([WeightedReward("own", function)], **options)  # type: ignore[arg-type]


def test_by_default_a_right_answer_counts_1() -> None:
    number, exact = rewards_of(None, "number"), rewards_of([], "exact")
    assert number.score("6*7?", "6*7=42\n#### 42", "42") == 1
    assert number.score("6*7?", "42", "42") == number.score("", "#### 42.0", "42") == 0
    assert exact.score("Spell cow.", " cow:c,o,w\n", "cow:c,o,w") == 1
    assert exact.score("Spell cow.", "cow:c,o,w!", "cow:c,o,w") == 0
    assert number.scored == 3 and number.notes() == [] and not number.counts


def test_the_form_is_a_number_after_the_mark() -> None:
    form = rewards_of(["form"], "number")
    assert [form.score("", text, "5") for text in ("#### 7", "7", "#### x")] == [1, 0, 0]


def test_several_are_summed_by_their_weights(own: Path) -> None:
    given = [f"{own}:length:-0.5", "answer:2", f"{own}:same"]
    several = rewards_of(given, "exact")
    assert several.score("", "cow", "cow") == -1.5 + 2 + 1
    assert several.score("", "cows", "cow") == -2
    assert list(reward_fingerprints(given)) == [str(own)]
    assert not (own.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("nowhere.py:f", NotFound, "nowhere.py"),
        ("OWN:lenght", NotFound, "length, same, raises"),
        ("OWN:number", NotFound, "has no function 'number'"),
        ("OWN:two", ConfigError, "does not take prompt, completion and answer"),
        ("OWN:later", ConfigError, "returns no number: it is an async function"),
        ("OWN:yields", ConfigError, "returns no number: it is a generator"),
        ("OWN:called_later", ConfigError, "returns no number: it is an async function"),
        ("OWN", ConfigError, "nor the name of a function"),
        ("OWN:length:0", ConfigError, "weight"),
        ("answer:nan", ConfigError, "weight"),
        ("answer:1e7", ConfigError, "weight"),
        ("FOLDER:f", ConfigError, "cannot be read"),
        ("", ConfigError, "nor the name of a function"),
    ],
)
def test_a_name_without_a_function_is_said(
    text: str, kind: type[MlxchatError], said: str, own: Path
) -> None:
    text = text.replace("OWN", str(own)).replace("FOLDER", str(own.parent))
    with pytest.raises(kind) as caught:
        rewards_of([text], "number")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (line 2)"),
        ("import no_such_module_here", "No module named 'no_such_module_here' (line 1)"),
        ("print('hi')\nraise SystemExit(2)", "SystemExit: 2 (line 2)"),
        ("\x00", "cannot be run"),
    ],
)
def test_a_file_that_cannot_be_run_is_said(
    source: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(source)
    with pytest.raises(ConfigError) as caught:
        rewards_of([f"{path}:f"], "number")
    assert said in caught.value.problem and str(path) in caught.value.problem
    assert capsys.readouterr().out == ""


def test_an_exception_counts_0_and_is_said_once_with_its_line(own: Path) -> None:
    checked = rewards_of([f"{own}:raises", f"{own}:length"], "number")
    assert checked.score("", "", "") == 0
    assert checked.score("", "ab", "") == 2.5
    assert checked.score("", "", "") == 0
    [note] = checked.notes()
    assert "own.py:raises raised ZeroDivisionError: division by zero (line 11)." in note
    assert checked.notes() == [] and (checked.scored, checked.faulty) == (3, 2)
    assert checked.counts == {("own.py:raises", "raised an exception"): 2}


def test_the_count_of_a_fault_is_said_when_it_has_another_digit() -> None:
    checked = single(lambda prompt, *_: print("x") or 1)
    said = []
    for call in range(1, 121):
        checked.score("", "", "")
        said += [(call, note) for note in checked.notes()]
    assert [call for call, _ in said] == [1, 10, 100]
    assert said[1][1].startswith("The reward own printed 10 times in 10 calls; the last time it")


def test_the_text_of_an_exception_is_one_line_of_bounded_length() -> None:
    def fails(*_: str) -> float:
        raise ValueError("x" * 500 + "\n" + "y" * 3000)

    checked = single(fails)
    checked.score("", "", "")
    [note] = checked.notes()
    assert len(note) < 300 and "\n" not in note


def test_a_file_is_run_once_however_many_functions_it_has(tmp_path: Path) -> None:
    path, seen = tmp_path / "own.py", tmp_path / "seen"
    functions = "".join(f"\ndef {name}(a, b, c): return 1" for name in "fg")
    path.write_text(f"import os\nos.mkdir({str(seen)!r}){functions}")
    reward_fingerprints([f"{path}:f"])
    assert not seen.exists()
    rewards_of([f"{path}:f", f"{path}:g"], "number")
    assert seen.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "returned nan"),
        (float("-inf"), "returned -inf"),
        (None, "returned None, of type NoneType"),
        ("1", "returned '1', of type str"),
        ([1.0], "returned [1.0], of type list"),
        (1j, "of type complex"),
        ("x" * 1000, "xxx..., of type str"),
        (10**400, "returned inf; a reward must be between -1,000,000 and 1,000,000"),
        (-1e39, "returned -1e+39"),
    ],
)
def test_what_is_no_number_to_learn_from_counts_0(value: object, said: str) -> None:
    checked = single(lambda *_: value)
    assert checked.score("", "", "") == 0
    [note] = checked.notes()
    assert said in note and len(note) < 250
    assert checked.faulty == 1


def test_truth_and_other_numbers_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    for value, reward in (
        (True, 1.0),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3.0),
        (numpy.bool_(True), 1.0),
        (numpy.array(2.5), 2.5),
        (mx.array(2.5), 2.5),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
    ):
        scored = single(lambda *_, value=value: value).score("", "", "")
        assert scored == reward and type(scored) is float


def test_what_is_printed_is_said_and_changes_nothing(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = rewards_of([f"{own}:prints"], "number")
    assert [checked.score("", text, "") for text in ("moo", "x" * 500)] == [2, 2]
    [note] = checked.notes()
    assert r"printed 'seen moo\nerror\n'" in note
    assert checked.faulty == 0 and checked.counts == {("own.py:prints", "printed"): 2}
    assert capsys.readouterr() == ("", "")


def test_a_function_that_ends_the_program_does_not(own: Path) -> None:
    checked = rewards_of([f"{own}:leaves"], "number")
    assert checked.score("", "", "") == 0
    assert "raised SystemExit: 3" in checked.notes()[0]


def test_an_exception_of_a_library_leads_to_the_line_of_the_file(own: Path) -> None:
    checked = rewards_of([f"{own}:inner"], "number")
    assert checked.score("", "x", "") == 0
    [line] = [n for n, text in enumerate(OWN.splitlines(), 1) if "json.loads" in text]
    [note] = checked.notes()
    assert "JSONDecodeError" in note and f"(line {line})" in note


def test_every_other_exception_is_a_fault() -> None:
    for kind in (asyncio.CancelledError, GeneratorExit, pytest.fail.Exception):

        def fails(*_: str, kind: type[BaseException] = kind) -> float:
            raise kind("no")

        checked = single(fails)
        assert checked.score("", "", "") == 0
        assert f"{kind.__name__}: no" in checked.notes()[0]


def test_a_child_that_a_function_forks_ends() -> None:
    """Otherwise it would train as well, and write into the same folder."""

    def forks(*_: str) -> float:
        child = os.fork()
        return float(os.waitpid(child, 0)[1] != 0) if child else sys.exit(0)

    process = os.getpid()
    assert single(forks).score("", "", "") == 1  # it did not end by its own exit
    assert os.getpid() == process


def test_a_file_may_import_what_is_beside_it_but_hides_no_module(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (own.parent / "beside_the_reward.py").write_text("value = 3")
    (own.parent / "mailbox.py").write_text("raise ValueError")
    own.write_text(
        "import mailbox, beside_the_reward\ndef f(a, b, c): return beside_the_reward.value"
    )
    assert rewards_of([f"{own}:f", f"{own}:f"], "number").score("", "", "") == 6
    assert sys.path[-1] == str(own.parent) and sys.path.count(str(own.parent)) == 1


def test_bytes_are_printed_like_texts() -> None:
    checked = single(lambda *_: sys.stdout.buffer.write(b"raw \xff") and sys.stdout.close())
    assert checked.score("", "", "") == 0
    assert "printed 'raw \ufffd'" in checked.notes()[0]


def test_an_interrupt_passes() -> None:
    def interrupted(*_: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        single(interrupted).score("", "", "")


def test_a_slow_call_is_said_and_changes_nothing() -> None:
    seconds = iter([0.0, 0.9, 1.0, 3.5])
    checked = single(lambda *_: 1, clock=Clock(seconds=lambda: next(seconds)))
    assert [checked.score("", "", "") for _ in range(2)] == [1, 1]
    assert "took 2.5 s" in checked.notes()[0] and checked.faulty == 0


def endless(*_: str) -> float:
    while True:
        with suppress(Exception):
            sum(range(1000))


def test_an_endless_call_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_calls, "LONGEST_CALL", 0.02)
    checked = single(endless)
    assert checked.score("", "", "") == 0
    assert "took more than 0.02 s" in checked.notes()[0] and checked.faulty == 1


def test_a_call_that_cannot_be_stopped_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("LONGEST_CALL", 0.02),
        ("CALL_STOPPED_EVERY", 0.01),
        ("MOST_CALL_STOPS", 3),
    ):
        monkeypatch.setattr(reward_calls, name, value)
    given_up: list[MlxchatError] = []

    def give_up(error: MlxchatError) -> None:
        given_up.append(error)
        print("said")

    def swallows(*_: str) -> float:
        while not given_up:
            try:  # noqa: SIM105
                time.sleep(0.01)
            except:  # noqa: E722
                pass
        return 1

    checked = single(swallows, give_up=give_up)
    checked.score("", "", "")
    [error] = given_up
    assert "The reward own has run for" in error.problem and "cannot be stopped" in error.problem
    assert "`fresh`" in error.remedy
    assert capsys.readouterr().out == "said\n"  # not taken for what the function printed


def test_a_call_that_catches_once_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_calls, "LONGEST_CALL", 0.02)
    monkeypatch.setattr(reward_calls, "CALL_STOPPED_EVERY", 0.01)

    def twice(*_: str) -> float:
        try:
            time.sleep(5)
        except:  # noqa: E722
            time.sleep(5)
        return 1

    checked, before = single(twice), signal.getsignal(signal.SIGALRM)
    assert checked.score("", "", "") == 0 and checked.faulty == 1
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_other_threads_score_without_a_limit() -> None:
    checked, found = single(lambda *_: 4), []
    thread = threading.Thread(target=lambda: found.append(checked.score("", "", "")))
    thread.start()
    thread.join()
    assert found == [4]


def test_too_many_faults_end_the_run(own: Path) -> None:
    """The share counts from the first answers on, however the faults are spread."""
    checked = rewards_of([f"{own}:raises"], "number")
    allowed = int(MOST_FAULTY * FEWEST_SCORED)
    for number in range(FEWEST_SCORED):
        checked.score("", "" if number < allowed else "right", "")
    with pytest.raises(ConfigError) as caught:
        checked.score("", "", "")
    assert f"{allowed + 1} of {FEWEST_SCORED + 1} completions" in caught.value.problem
    assert "own.py:raises raised ZeroDivisionError" in caught.value.problem
    assert "`fresh`" in caught.value.remedy  # a run is not resumed with another function


def test_a_function_that_always_fails_ends_the_run_soon(own: Path) -> None:
    checked = rewards_of([f"{own}:raises"], "number")
    with pytest.raises(ConfigError):
        for _ in range(1000):
            checked.score("", "", "")
    assert checked.scored == FEWEST_SCORED
