"""pass@k: equal to counting all subsets, with an interval that is right as often as it says."""

from itertools import combinations
from random import Random

import pytest

from mlxchat.evaluate.pass_at_k import effective_count, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_it_is_the_share_of_subsets_with_a_right_answer(samples: int) -> None:
    for k in range(1, samples + 1):
        for right in range(samples + 1):
            answers = [True] * right + [False] * (samples - right)
            chosen = [any(subset) for subset in combinations(answers, k)]
            assert pass_at_k([right], samples, k).value == pytest.approx(
                sum(chosen) / len(chosen), abs=1e-12
            )


def test_questions_count_the_same() -> None:
    assert pass_at_k([0, 8, 4], 8, 1).value == pytest.approx(0.5)
    assert pass_at_k([0, 8, 1], 8, 8).value == pytest.approx(2 / 3)


def test_the_interval_of_single_answers_is_wilsons() -> None:
    """By hand: z = 1.959964, n = 10, p = 0.3 gives 0.1078 to 0.6032."""
    found = pass_at_k([1] * 3 + [0] * 7, 1, 1)
    assert (found.low, found.high) == pytest.approx((0.10779, 0.60322), abs=1e-5)


@pytest.mark.parametrize("right", [0, 8])
def test_all_wrong_and_all_right_leave_doubt(right: int) -> None:
    found = pass_at_k([right] * 100, 8, 1)
    assert found.value == right / 8
    assert 0.03 < found.high - found.low < 0.04
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_more_answers_narrow_it() -> None:
    one = pass_at_k([1, 0] * 50, 1, 1)
    eight = pass_at_k([5, 3] * 50, 8, 1)
    assert eight.high - eight.low == pytest.approx((one.high - one.low) / 8**0.5, rel=0.02)


@pytest.mark.parametrize("k", [1, 8])
def test_it_holds_the_truth_19_times_in_20(k: int) -> None:
    """Questions of many difficulties, drawn anew each time; the truth is that of all questions."""
    rng, samples, trials = Random(0), 8, 500
    shares = [rng.betavariate(0.5, 1.0) for _ in range(20_000)]
    truth = sum(1 - (1 - share) ** k for share in shares) / len(shares)
    held = 0
    for _ in range(trials):
        drawn = rng.choices(shares, k=60)
        right = [sum(rng.random() < share for _ in range(samples)) for share in drawn]
        found = pass_at_k(right, samples, k)
        held += found.low <= truth <= found.high
    assert 0.93 < held / trials < 0.97


@pytest.mark.parametrize("k", [1, 4])
def test_other_words_do_not_narrow_it(k: int) -> None:
    """30 questions, each in 1 to 9 wordings that are as difficult as each other, drawn anew."""
    rng, samples, trials = Random(0), 4, 400
    asked = [number for number in range(30) for _ in range(1 + number % 9)]
    shares = [rng.betavariate(0.5, 1.0) for _ in range(20_000)]
    truth = sum(1 - (1 - share) ** k for share in shares) / len(shares)
    held = held_apart = 0
    for _ in range(trials):
        drawn = rng.choices(shares, k=30)
        right = [sum(rng.random() < drawn[name] for _ in range(samples)) for name in asked]
        found, apart = pass_at_k(right, samples, k, asked), pass_at_k(right, samples, k)
        assert found.value == apart.value
        held += found.low <= truth <= found.high
        held_apart += apart.low <= truth <= apart.high
    assert 0.93 < held / trials < 0.97
    assert held_apart / trials < 0.7  # as if all were different questions


@pytest.mark.parametrize("k", [1, 8])
def test_questions_that_all_differ_have_the_interval_without_clusters(k: int) -> None:
    rng = Random(0)
    right = [rng.randrange(9) for _ in range(400)]
    assert pass_at_k(right, 8, k, [f"{n}?" for n in range(400)]) == pass_at_k(right, 8, k)


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        ([float(n // 10 % 2) for n in range(200)], 20, 20),  # one wording tells of the others
        ([float(n % 2) for n in range(200)], 200, 200),  # it tells nothing of them
        ([0.5] * 200, 200, 200),  # though it would with several answers each
        ([1.0] * 200, 20, 20),  # they may well be alike
    ],
)
def test_20_questions_of_10_wordings_count_as_20_to_200(
    values: list[float], least: float, most: float
) -> None:
    asked = [n // 10 for n in range(200)]
    assert least - 1e-9 <= effective_count(values, asked) <= most + 1e-9


def test_a_single_question_in_many_words_is_one() -> None:
    assert effective_count([1.0, 0.0, 1.0], ["same"] * 3) == 1
    found = pass_at_k([8] * 50, 8, 1, ["same"] * 50)
    assert found.value == found.high == 1 and found.low < 0.3


def test_a_question_that_outnumbers_the_others_leaves_much_doubt() -> None:
    """Of two questions one is asked 99 times: little is known of others."""
    found = pass_at_k([8] * 99 + [0], 8, 1, [*["often"] * 99, "once"])
    assert found.value == 0.99 and found.low < 0.3


@pytest.mark.parametrize(
    ("right", "samples", "k"), [([], 8, 1), ([1], 8, 0), ([1], 8, 9), ([9], 8, 1), ([-1], 8, 1)]
)
def test_impossible_numbers_are_refused(right: list[int], samples: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(right, samples, k)
