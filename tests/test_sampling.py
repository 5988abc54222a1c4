import math

import numpy as np
import pytest
from pydantic import ValidationError

from mlxchat.engine.options import Sampling
from mlxchat.engine.sampling import keep_min_p, keep_top_p, penalise, sample
from mlxchat.runtime import mx

DRAWS = 100_000
LOGITS = np.array([1.5, -0.5, 3.0, 0.25, -4.0, 2.0, 0.0, 2.9, -1.0, 1.0, -2.5, 0.5])
PLAIN = {"temperature": 1.0, "top_k": None}


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def renormalised(probabilities: np.ndarray, kept: np.ndarray) -> np.ndarray:
    weights = np.where(kept, probabilities, 0.0)
    return weights / weights.sum()


def top_k(probabilities: np.ndarray, k: int) -> np.ndarray:
    rank = np.argsort(np.argsort(-probabilities))
    return renormalised(probabilities, rank < k)


def top_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    kept = np.zeros(len(probabilities), bool)
    for token in np.argsort(-probabilities):
        if probabilities[kept].sum() >= p:
            break
        kept[token] = True
    return renormalised(probabilities, kept)


def min_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    return renormalised(probabilities, probabilities >= p * probabilities.max())


def assert_drawn_from(expected: np.ndarray, tokens: mx.array) -> None:
    """Pearson's chi-square, against a bound (Laurent and Massart, 2000) exceeded once in 10^6."""
    counts = np.bincount(np.array(tokens), minlength=len(expected))
    assert counts.sum() == DRAWS
    possible = expected > 0
    assert not counts[~possible].any()
    mean = DRAWS * expected[possible]
    statistic = ((counts[possible] - mean) ** 2 / mean).sum()
    freedom, t = possible.sum() - 1, math.log(1e6)
    assert statistic <= freedom + 2 * math.sqrt(freedom * t) + 2 * t


def draws(
    sampling: Sampling, seen: mx.array | None = None, logits: np.ndarray = LOGITS
) -> mx.array:
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (DRAWS, len(logits)))
    return sample(rows, sampling, mx.random.key(7), seen)


CASES = [
    ({"temperature": 1.0}, softmax(LOGITS)),
    ({"temperature": 0.6}, softmax(LOGITS / 0.6)),
    ({"temperature": 1.7}, softmax(LOGITS / 1.7)),
    ({"top_k": 1}, top_k(softmax(LOGITS), 1)),
    ({"top_k": 4}, top_k(softmax(LOGITS), 4)),
    ({"top_k": 12}, softmax(LOGITS)),
    ({"top_k": 50}, softmax(LOGITS)),
    ({"top_p": 0.7}, top_p(softmax(LOGITS), 0.7)),
    ({"top_p": 0.99}, top_p(softmax(LOGITS), 0.99)),
    ({"top_p": 1e-9}, top_p(softmax(LOGITS), 1e-9)),
    ({"min_p": 0.1}, min_p(softmax(LOGITS), 0.1)),
    ({"min_p": 0.95}, min_p(softmax(LOGITS), 0.95)),
    (
        {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "min_p": 0.2},
        min_p(top_p(top_k(softmax(LOGITS / 1.3), 7), 0.9), 0.2),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), CASES, ids=[str(fields) for fields, _ in CASES])
def test_draws_follow_the_exact_probabilities(fields: dict, expected: np.ndarray) -> None:
    assert_drawn_from(expected, draws(Sampling(**{**PLAIN, **fields})))


def test_the_test_notices_softmax_taken_for_logits() -> None:
    wrong = draws(Sampling(**PLAIN), logits=softmax(LOGITS))
    with pytest.raises(AssertionError):
        assert_drawn_from(softmax(LOGITS), wrong)


def test_penalty_is_applied_before_the_temperature() -> None:
    seen = np.isin(np.arange(12), [1, 2, 6])
    penalised = np.where(seen, np.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5), LOGITS)
    sampling = Sampling(temperature=0.8, top_k=None, repetition_penalty=1.5)
    assert_drawn_from(softmax(penalised / 0.8), draws(sampling, mx.array(seen)))


def test_penalise_divides_positive_and_multiplies_negative_logits() -> None:
    logits, seen = mx.array([2.0, -2.0, 0.0, 3.0]), mx.array([True, True, True, False])
    assert penalise(logits, seen, 2.0).tolist() == [1.0, -4.0, 0.0, 3.0]


def test_top_k_keeps_exactly_k_of_a_large_vocabulary() -> None:
    logits = mx.random.normal((32_768,), key=mx.random.key(0))
    rows = mx.broadcast_to(logits, (2_000, 32_768))
    sampling = Sampling(temperature=100.0, top_k=50)
    drawn = np.array(sample(rows, sampling, mx.random.key(1)))
    assert set(drawn) == set(np.argsort(-np.array(logits))[:50])


def test_top_k_of_equal_logits_keeps_k() -> None:
    drawn = draws(Sampling(temperature=1.0, top_k=3), logits=np.zeros(12))
    assert len(set(drawn.tolist())) == 3


def test_top_p_of_equal_logits_keeps_the_smallest_set() -> None:
    kept = keep_top_p(mx.zeros((2, 8)), 0.5)
    assert (kept == 0).sum(axis=-1).tolist() == [4, 4]


def test_top_p_treats_rows_apart_and_keeps_order() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.2], [0.1, 0.05, 0.85]]))
    kept = keep_top_p(logits, 0.6) > -math.inf
    assert kept.tolist() == [[True, True, False], [False, False, True]]


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.2], [0.1, 0.05, 0.85]]))
    kept = keep_min_p(logits, 0.5) > -math.inf
    assert kept.tolist() == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize("temperature", [0.0, 1e-45])
def test_no_temperature_is_greedy(temperature: float) -> None:
    logits = mx.array([[1.0, 3.0, 2.0], [15.0, -15.0, 0.0]])
    sampling = Sampling(temperature=temperature, top_k=None)
    assert sample(logits, sampling, mx.random.key(0)).tolist() == [1, 0]


def test_greedy_heeds_the_penalty() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2)
    seen = mx.array([False, True, False])
    assert sample(mx.array([1.0, 3.0, 2.0]), sampling, mx.random.key(0), seen).item() == 2


def test_one_row_and_one_key_give_one_token() -> None:
    logits, sampling = mx.array(LOGITS, mx.float32), Sampling()
    first, again = (sample(logits, sampling, mx.random.key(3)) for _ in range(2))
    assert first.shape == ()
    assert first.item() == again.item()


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1},
        {"repetition_penalty": 0.9},
        {"top_a": 1},
    ],
)
def test_numbers_out_of_bounds_are_refused(field: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        Sampling(**field)


def test_every_option_is_described() -> None:
    assert all(field.description for field in Sampling.model_fields.values())
