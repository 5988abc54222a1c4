"""Every sampler against the exact probabilities, in 10^5 draws; and the edges of each."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from mlxchat.config.inference import Sampling
from mlxchat.engine.sampling import (
    apply_repetition_penalty,
    keep_min_p,
    keep_top_p,
    make_sampler,
    row_settings,
    sample_rows,
)
from mlxchat.runtime import mx

DRAWS = 100_000
LOGITS = np.array([1.5, -0.5, 3.0, 0.25, -4.0, 2.0, 0.0, 2.9, -1.0, 1.0, -2.5, 0.5])
SEEN = np.isin(np.arange(12), [1, 2, 6])
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


def penalised(logits: np.ndarray, penalty: float) -> np.ndarray:
    return np.where(SEEN, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def chi_square_p(statistic: float, freedom: int) -> float:
    """How often Pearson's statistic is larger by chance: Q(freedom / 2, statistic / 2).

    The regularised upper incomplete gamma function, from Q(1/2, x) = erfc(sqrt(x)) or
    Q(1, x) = exp(-x) by Q(a + 1, x) = Q(a, x) + x^a exp(-x) / Gamma(a + 1)
    (https://dlmf.nist.gov/8.8.E6).
    """
    x = statistic / 2
    a, q = (0.5, math.erfc(math.sqrt(x))) if freedom % 2 else (1.0, math.exp(-x))
    while a < freedom / 2:
        q += x**a * math.exp(-x) / math.gamma(a + 1)
        a += 1
    return q


def assert_drawn_from(expected: np.ndarray, tokens: mx.array) -> None:
    """Pearson's chi-square test at p > 1e-4, and no token that cannot be."""
    counts = np.bincount(np.array(tokens), minlength=expected.size)
    assert counts.sum() == DRAWS
    possible = expected > 0
    assert not counts[~possible].any()
    mean = DRAWS * expected[possible]
    assert mean.min() >= 5  # with fewer the statistic has another distribution (Cochran, 1954)
    statistic = ((counts[possible] - mean) ** 2 / mean).sum()
    assert chi_square_p(statistic, possible.sum() - 1) > 1e-4


def draws(
    sampling: Sampling, seen: np.ndarray | None = None, logits: np.ndarray = LOGITS
) -> mx.array:
    """10^5 tokens, one for each of as many equal rows, in a single call."""
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (DRAWS, len(logits)))
    if seen is not None:
        rows = apply_repetition_penalty(rows, mx.array(seen), sampling.repetition_penalty)
    tokens, _ = make_sampler(sampling)(rows, mx.random.key(7))
    return tokens


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"),
    [  # quantiles as printed in tables
        (3.841458820694124, 1, 0.05),
        (5.991464547107979, 2, 0.05),
        (7.814727903251179, 3, 0.05),
        (18.307038053275146, 10, 0.05),
        (19.67513757268249, 11, 0.05),
        (31.264133620239985, 11, 1e-3),
        (0.0, 4, 1.0),
        (0.0, 5, 1.0),
    ],
)
def test_chi_square_p_equals_the_tables(statistic: float, freedom: int, p: float) -> None:
    assert chi_square_p(statistic, freedom) == pytest.approx(p, rel=1e-9)


CASES = [
    ({"temperature": 1.0}, softmax(LOGITS)),
    ({"temperature": 0.8}, softmax(LOGITS / 0.8)),
    ({"temperature": 1.7}, softmax(LOGITS / 1.7)),
    ({"top_k": 4}, top_k(softmax(LOGITS), 4)),
    ({"top_k": 11}, top_k(softmax(LOGITS), 11)),
    ({"top_k": 12}, softmax(LOGITS)),
    ({"top_k": 50}, softmax(LOGITS)),
    ({"top_p": 0.7}, top_p(softmax(LOGITS), 0.7)),
    ({"top_p": 0.99}, top_p(softmax(LOGITS), 0.99)),
    ({"top_p": 1.0}, softmax(LOGITS)),
    ({"min_p": 0.1}, min_p(softmax(LOGITS), 0.1)),
    ({"repetition_penalty": 1.5}, softmax(penalised(LOGITS, 1.5))),
    (
        {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "min_p": 0.2},
        min_p(top_p(top_k(softmax(LOGITS / 1.3), 7), 0.9), 0.2),
    ),
    ({"temperature": 0.8, "top_k": 3}, top_k(softmax(LOGITS / 0.8), 3)),
    (
        {"temperature": 0.8, "repetition_penalty": 1.5},
        softmax(penalised(LOGITS, 1.5) / 0.8),
    ),
    (
        {"temperature": 1.7, "top_k": 9, "top_p": 0.95, "repetition_penalty": 2.0},
        top_p(top_k(softmax(penalised(LOGITS, 2.0) / 1.7), 9), 0.95),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), CASES, ids=[str(fields) for fields, _ in CASES])
def test_draws_follow_the_exact_probabilities(fields: dict, expected: np.ndarray) -> None:
    assert_drawn_from(expected, draws(Sampling(**{**PLAIN, **fields}), SEEN))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"top_p": 1e-46},  # 0 in float32
        {"top_p": 1e-46, "top_k": 3},
        {"min_p": 0.95},
    ],
)
def test_a_single_candidate_is_always_drawn(fields: dict) -> None:
    assert set(draws(Sampling(**{**PLAIN, **fields})).tolist()) == {2}


def test_the_chi_square_test_notices_probabilities_taken_for_logits() -> None:
    wrong = draws(Sampling(**PLAIN), logits=softmax(LOGITS))
    with pytest.raises(AssertionError):
        assert_drawn_from(softmax(LOGITS), wrong)


def test_the_chi_square_test_notices_a_temperature_five_percent_off() -> None:
    wrong = draws(Sampling(temperature=1.05, top_k=None))
    with pytest.raises(AssertionError):
        assert_drawn_from(softmax(LOGITS), wrong)


@pytest.mark.parametrize("k", [None, 2])
def test_rows_of_a_batch_are_drawn_independently(k: int | None) -> None:
    """The pairs drawn for two rows with unlike logits have the product of their probabilities."""
    logits = np.array([[1.0, 0.5, 0.0], [-0.5, 0.0, 0.7]])
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (DRAWS, 2, 3))
    tokens, _ = make_sampler(Sampling(temperature=1.0, top_k=k))(rows, mx.random.key(5))
    first, second = tokens.T
    pairs = np.outer(*(top_k(softmax(row), k or 3) for row in logits))
    assert_drawn_from(pairs.ravel(), 3 * first + second)


def test_penalise_divides_positive_and_multiplies_negative_logits() -> None:
    logits, seen = mx.array([2.0, -2.0, 0.0, 3.0]), mx.array([True, True, True, False])
    assert apply_repetition_penalty(logits, seen, 2.0).tolist() == [1.0, -4.0, 0.0, 3.0]


def test_top_k_keeps_exactly_k_of_a_large_vocabulary() -> None:
    logits = mx.random.normal((32_768,), key=mx.random.key(0))
    rows = mx.broadcast_to(logits, (2_000, 32_768))
    sampling = Sampling(temperature=100.0, top_k=50)
    drawn = np.array(make_sampler(sampling)(rows, mx.random.key(1))[0])
    assert set(drawn) == set(np.argsort(-np.array(logits))[:50])


def test_top_k_of_equal_logits_keeps_k() -> None:
    drawn = draws(Sampling(temperature=1.0, top_k=3), logits=np.zeros(12))
    kept = np.isin(np.arange(12), np.array(drawn))
    assert kept.sum() == 3
    assert_drawn_from(kept / 3, drawn)


def test_top_k_keeps_one_of_the_logits_tied_for_the_last_place() -> None:
    logits = np.array([0.5, 1.0, 0.5, -1.0, 0.5])
    drawn = draws(Sampling(temperature=1.0, top_k=2), logits=logits)
    kept = np.isin(np.arange(5), np.array(drawn))
    assert kept.sum() == 2
    assert kept[1]
    assert not kept[3]
    assert_drawn_from(renormalised(softmax(logits), kept), drawn)


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
def test_a_temperature_of_zero_is_greedy(temperature: float) -> None:
    logits = mx.array([[1.0, 3.0, 2.0], [15.0, -15.0, 0.0]])
    sampling = Sampling(temperature=temperature, top_k=None)
    tokens, _ = make_sampler(sampling)(logits, mx.random.key(0))
    assert tokens.tolist() == [1, 0]


def test_one_row_and_one_key_give_one_token() -> None:
    logits = mx.array(LOGITS, mx.float32)
    sample = make_sampler(Sampling())
    (first, _), (again, _) = (sample(logits, mx.random.key(3)) for _ in range(2))
    assert first.shape == ()
    assert first.item() == again.item()


def test_every_call_draws_with_another_key() -> None:
    logits = mx.zeros(1000)
    sample = make_sampler(Sampling(top_k=None))

    def draw_20() -> list[int]:
        key, tokens = mx.random.key(3), []
        for _ in range(20):
            token, key = sample(logits, key)
            tokens.append(token.item())
        return tokens

    assert len(set(draw_20())) > 15
    assert draw_20() == draw_20()


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


# ==== Rows with settings of their own ====

ROWS = [
    Sampling(temperature=0),
    Sampling(temperature=0.6, top_k=50),
    Sampling(temperature=1.5, top_k=3, top_p=0.9),
    Sampling(temperature=1.0, top_k=70, min_p=0.02),
    Sampling(temperature=1.0, top_k=None),
    Sampling(temperature=2.0, top_k=None, top_p=0.8, min_p=0.01),
    Sampling(temperature=0.8, top_k=10_000),
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:4], ROWS[4:], [ROWS[1]], [ROWS[5]]])
def test_each_row_is_drawn_as_by_its_own_sampler(rows: list[Sampling]) -> None:
    vocab_size, keys = 300, mx.random.split(mx.random.key(5), len(rows))
    settings, needs = row_settings(rows, vocab_size)
    for step in range(30):
        logits = 3 * mx.random.normal((len(rows), vocab_size), key=mx.random.key(step))
        tokens, following = sample_rows(logits, keys, settings, needs)
        for n, row in enumerate(rows):
            token, key = make_sampler(row)(logits[n : n + 1], keys[n])
            assert token.item() == tokens[n].item()
            if row.temperature:
                assert mx.array_equal(key, following[n])
        keys = following


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_row_keeps_its_likeliest_token_however_small_its_top_p(top_k: int | None) -> None:
    row = Sampling(temperature=1.0, top_k=top_k, top_p=1e-46)
    settings, needs = row_settings([row, ROWS[5]], 300)
    logits = mx.random.normal((2, 300), key=mx.random.key(1))
    tokens, _ = sample_rows(logits, mx.random.split(mx.random.key(2), 2), settings, needs)
    assert tokens[0].item() == mx.argmax(logits[0]).item() != 0


def test_few_needs_serve_many_settings() -> None:
    """Each combination is traced once: it must not depend on the numbers themselves."""
    needs = {
        row_settings([Sampling(temperature=t, top_k=k, top_p=p)], 65536)[1]
        for t in (0.5, 1.0, 1.5) for k in (1, 7, 50, 64) for p in (0.3, 0.9, 1.0)
    }  # fmt: skip
    assert needs == {(64, False, False)}
