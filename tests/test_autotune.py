"""The fastest way is chosen only where its results are right, and what was measured is kept."""

import time
from pathlib import Path

import pytest

from mlxchat import autotune
from mlxchat.runtime import mx


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_answers", None)
    monkeypatch.setattr(autotune, "REPETITIONS", 2)


def slow() -> list[mx.array]:
    time.sleep(0.01)
    return [mx.arange(4.0)]


def quick() -> list[mx.array]:
    return [mx.arange(4.0)]


def wrong() -> list[mx.array]:
    return [mx.arange(4.0) * 1.001]


def not_finite() -> list[mx.array]:
    return [mx.arange(4.0) / 0]


def broken() -> list[mx.array]:
    raise RuntimeError("does not compile\nhere")


def test_a_faster_way_that_is_right_is_chosen() -> None:
    assert autotune.fastest("q", {"plain": slow, "quick": quick}) == "quick"


@pytest.mark.parametrize("way", [wrong, not_finite, broken])
def test_a_way_that_is_wrong_or_fails_is_not_chosen(way: autotune.Way) -> None:
    assert autotune.fastest("q", {"plain": slow, "other": way}) == "plain"
    measured = autotune.tuned()["q, version 1"]
    trial = measured.trials["other"]
    assert trial.failure == ("does not compile" if way is broken else "")
    assert not trial.sound
    autotune._answers = None
    assert autotune.tuned() == {"q, version 1": measured}


def test_the_plain_way_is_kept_unless_another_is_clearly_faster() -> None:
    assert autotune.fastest("q", {"plain": quick, "slow": slow}) == "plain"


def test_how_much_faster_a_way_must_be_can_be_said() -> None:
    ways = {"plain": slow, "quick": quick}
    assert autotune.fastest("a", ways, share=0.0) == "plain"


def test_ways_that_round_are_compared_in_float32_too() -> None:
    ways = {"plain": slow, "quick": quick}
    rounded = {"tolerance": 1e-2, "exact": {"plain": quick, "quick": wrong}}
    assert autotune.fastest("a", ways, **rounded) == "plain"
    assert autotune.fastest("b", ways, exact={"plain": quick, "quick": quick}) == "quick"


@pytest.mark.parametrize(("error", "chosen"), [(0.04, "other"), (0.06, "plain")])
def test_a_way_may_round_as_much_as_the_plain_way_does(error: float, chosen: str) -> None:
    def rounded(by: float, way: autotune.Way) -> autotune.Way:
        return lambda: [x * (1 + by) for x in way()]

    ways = {"plain": rounded(-0.05, slow), "other": rounded(error, quick)}
    assert autotune.fastest("q", ways, exact={"plain": quick, "other": quick}) == chosen


def test_an_answer_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    autotune.fastest("q", {"plain": slow, "quick": quick})
    monkeypatch.setattr(autotune, "_answers", None)  # another process
    assert autotune.fastest("q", {"plain": broken, "quick": broken}) == "quick"
    assert set(autotune.tuned()["q, version 1"].trials) == {"plain", "quick"}


def test_a_file_that_cannot_be_read_is_measured_again(home: Path) -> None:
    autotune.fastest("q", {"plain": slow, "quick": quick})
    [path] = home.rglob("*.json")
    path.write_text('{"q": 1}')
    autotune._answers = None
    assert autotune.fastest("q", {"plain": quick}) == "plain"


def test_what_another_process_measured_meanwhile_is_kept(home: Path) -> None:
    autotune.fastest("a", {"plain": quick})
    ours, autotune._answers = autotune._answers, None
    autotune.fastest("b", {"plain": quick})
    autotune._answers = ours
    autotune.fastest("c", {"plain": quick})
    autotune._answers = None
    assert {*map(autotune.shown_question, autotune.tuned())} == {"a", "b", "c"}


def test_without_a_disk_it_measures_all_the_same(home: Path) -> None:
    home.write_text("not a folder")
    assert autotune.fastest("q", {"plain": slow, "quick": quick}) == "quick"


def test_a_question_can_be_put_while_a_function_is_traced() -> None:
    def traced(x: mx.array) -> mx.array:
        return x * (2 if autotune.fastest("q", {"plain": slow, "quick": quick}) == "quick" else 3)

    assert mx.compile(traced)(mx.array(1.0)).item() == 2


def test_ways_can_be_fixed() -> None:
    with autotune.fixed(attention="blocks"):
        assert autotune.fastest("attention of 4 rows", {"plain": broken}) == "blocks"


def test_what_is_remembered_gives_way_to_what_is_fixed() -> None:
    @autotune.remembered
    def squares(count: int) -> str:
        return autotune.fastest(f"squares of {count} numbers", {"plain": quick})

    assert squares(3) == "plain"
    with autotune.fixed(squares="power"):
        assert squares(3) == "power"
    assert squares(3) == "plain"


def test_a_new_version_of_a_way_is_measured_anew() -> None:
    ways = {"plain": slow, "quick": quick}
    assert autotune.fastest("q", {**ways, "quick": broken}, version="1") == "plain"
    assert autotune.fastest("q", ways, version="2") == "quick"
    assert [*map(autotune.shown_question, autotune.tuned())] == ["q", "q"]
