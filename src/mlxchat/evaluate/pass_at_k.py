"""pass@k: the fraction of questions for which at least one of k answers is right."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlxchat.counts import Z_OF_95, share_within


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return share_within(self.value, (self.low, self.high))


def share_of(right: int, asked: int) -> Interval:
    """Return a share of problems, no two of which ask the same, with Wilson's interval.

    Args:
        right: how many were answered correctly.
        asked: how many there were, at least one.

    >>> str(share_of(60, 100))
    '60.0% (50.2% to 69.1%)'
    """
    return wilson(right / asked, asked)


def pass_at_k(
    right: Sequence[int], samples: int, k: int, asked: Sequence[Hashable] | None = None
) -> Interval:
    """Return an unbiased estimate of pass@k, with an interval over questions.

    The estimate for a question with c right answers of n is 1 - C(n - c, k) / C(n, k): the share of
    all choices of k of its answers that hold a right one (Chen et al. 2021, Evaluating large
    language models trained on code, arXiv 2107.03374, eq. 1).

    The interval is Wilson's for as many questions as `effective_count` finds.

    Args:
        right: the number of right answers to each question.
        samples: n, the number of answers to each.
        k: 1 to ``samples``.
        asked: what each question asks, which is equal for those that ask it in other words; None if
            no two ask the same.

    Raises:
        ValueError: there is no question, or a number is out of its bounds.

    >>> str(pass_at_k([0, 1, 4, 2], samples=4, k=1))
    '43.8% (14.3% to 78.4%)'
    """
    if not right or not 1 <= k <= samples or not all(0 <= count <= samples for count in right):
        raise ValueError("pass@k takes 1 <= k <= samples and 0 to samples right answers each")
    values = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in right]
    count = effective_count(values, range(len(values)) if asked is None else asked, samples)
    return wilson(fmean(values), count)


def effective_count(values: Sequence[float], asked: Sequence[Hashable], samples: int = 1) -> float:
    """Return how many single answers to different questions would tell the mean as exactly.

    That is mean * (1 - mean) / variance. The variance of the mean is found between clusters of
    questions that ask the same: it is the sum of (w * d)**2 / (1 - w), where w is a cluster's share
    of the questions, and d how far its mean is from the mean of all (Bell and McCaffrey 2002, Bias
    reduction in standard errors for linear regression with multi-stage samples, Survey Methodology
    28). A variance found between few clusters is uncertain itself. That is allowed for by the ratio
    of two squared t quantiles, which is 1 if no two questions ask the same (Korn and Graubard 1998,
    Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data, Survey Methodology 24).

    The number is at least 1 / sum(w**2), which is what is left where the questions of a cluster are
    all right or all wrong, and at most that of the answers.

    Args:
        values: the value of each question, from 0 to 1.
        asked: what each asks, which is equal within a cluster.
        samples: how many answers each value is made of.
    """
    count, mean = len(values), fmean(values)
    clusters: dict[Hashable, list[float]] = {}
    for value, name in zip(values, asked, strict=True):
        clusters.setdefault(name, []).append(value)
    shares = [len(cluster) / count for cluster in clusters.values()]
    fewest = 1 / sum(share**2 for share in shares)
    if len(clusters) == 1 or not 0 < mean < 1:
        return fewest
    variance = sum(
        (share * (fmean(cluster) - mean)) ** 2 / (1 - share)
        for share, cluster in zip(shares, clusters.values(), strict=True)
    )
    if not variance:
        return count * samples
    few = (_t_quantile(count - 1) / _t_quantile(fewest - 1)) ** 2
    return max(fewest, min(count * samples, few * mean * (1 - mean) / variance))


def wilson(share: float, count: float) -> Interval:
    """Return Wilson's interval of a share (1927, Probable inference, J. Am. Stat. Assoc. 22)."""
    spread = Z_OF_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, min(share, low), max(share, high))  # whatever rounding does at 0 and 1


def _t_quantile(freedom: float) -> float:
    """Return the quantile of Student's t that belongs to `Z_OF_95`.

    It is within 0.3% of it from 5 degrees of freedom on, and too large below (Wallace 1959,
    Bounds on normal approximations to Student's and the chi-square distributions, Ann. Math.
    Stat. 30).
    """
    freedom = max(1.0, freedom)
    z = Z_OF_95 * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z**2 / freedom))
