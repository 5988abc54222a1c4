"""pass@k: the fraction of questions for which at least one of k answers is right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlxchat.counts import share_within

_Z = 1.959964  # the normal distribution is within this many standard deviations in 95% of cases


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return share_within(self.value, (self.low, self.high))


def share_of(right: int, asked: int) -> Interval:
    """Return a share of problems with Wilson's interval.

    Args:
        right: how many were answered correctly.
        asked: how many there were, at least one.

    >>> str(share_of(60, 100))
    '60.0% (50.2% to 69.1%)'
    """
    return _wilson(right / asked, asked)


def pass_at_k(right: Sequence[int], samples: int, k: int) -> Interval:
    """Return an unbiased estimate of pass@k, with an interval over questions.

    The estimate for a question with c right answers of n is 1 - C(n - c, k) / C(n, k): the share of
    all choices of k of its answers that hold a right one (Chen et al. 2021, Evaluating large
    language models trained on code, arXiv 2107.03374, eq. 1).

    The interval is Wilson's for N questions, whose values vary by less than right and wrong would
    if n is above k: N counts as N / v, where v is the ratio of the two variances, at least 1 / n,
    what chance alone makes of equally hard questions.

    Args:
        right: the number of right answers to each question.
        samples: n, the number of answers to each.
        k: 1 to ``samples``.

    Raises:
        ValueError: there is no question, or a number is out of its bounds.

    >>> str(pass_at_k([0, 1, 4, 2], samples=4, k=1))
    '43.8% (14.3% to 78.4%)'
    """
    if not right or not 1 <= k <= samples or not all(0 <= count <= samples for count in right):
        raise ValueError("pass@k takes 1 <= k <= samples and 0 to samples right answers each")
    values = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in right]
    count, mean = len(values), sum(values) / len(values)
    ratio = 1.0
    if count > 1 and 0 < mean < 1:
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        ratio = min(1.0, max(1 / samples, variance / (mean * (1 - mean))))
    return _wilson(mean, count / ratio)


def _wilson(share: float, count: float) -> Interval:
    """Return Wilson's interval of a share (1927, Probable inference, J. Am. Stat. Assoc. 22)."""
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
