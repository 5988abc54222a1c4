"""Counts, shares, sizes, durations and speeds in words, in one form for all screens and pages."""

SINGULAR = {"batches": "batch", "micro-batches": "micro-batch", "matrices": "matrix"}
"""Nouns whose singular is not the plural without its s; also with words before them."""

Z_OF_95 = 1.959964  # a normal distribution is within this many standard deviations in 95% of cases


def counted(count: float, unit: str) -> str:
    """Return a count with its unit: ``1 step``, ``2,000 steps``.

    Args:
        count: of what there is; it is rounded to a whole number.
        unit: what is counted, in the plural. It may go on with ``of``.

    >>> counted(1, "rows of 128")
    '1 row of 128'
    >>> counted(2000, "training shards")
    '2,000 training shards'
    """
    shown = f"{count:,.0f}"
    if shown != "1":
        return f"{shown} {unit}"
    nouns, of, rest = unit.partition(" of ")
    *before, noun = nouns.split(" ")
    return " ".join((shown, *before, SINGULAR.get(noun, noun.removesuffix("s")))) + of + rest


def share_within(share: float, ends: tuple[float, float] | None = None) -> str:
    """Return a share with the ends of its interval, which is lopsided near 0 and 1.

    >>> share_within(0.98, (0.93, 0.995)), share_within(0.98)
    ('98.0% (93.0% to 99.5%)', '98.0%')
    """
    return f"{share:.1%} ({ends[0]:.1%} to {ends[1]:.1%})" if ends else f"{share:.1%}"


def ends_of(mean: float, error: float) -> tuple[float, float]:
    """Return the ends of the 95% interval of a mean with this standard error."""
    return mean - Z_OF_95 * error, mean + Z_OF_95 * error


def score_within(score: float, error: float) -> str:
    """Return a score such as CORE, which is no share, with the 95% interval of its standard error.

    >>> score_within(0.1139, 0.008)
    '0.1139 (0.0982 to 0.1296)'
    """
    low, high = ends_of(score, error)
    return f"{score:.4f} ({low:.4f} to {high:.4f})"


_SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))  # as settings count: 1GB is 1e9


def round_size(size: float) -> str:
    """Return bytes of memory or of files for display, in powers of 1,000.

    >>> round_size(95_100_000), round_size(1.25e9), round_size(80)
    ('95.1 MB', '1.2 GB', '80 B')
    """
    for unit, factor in _SIZES:
        if size >= 0.99995 * factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} B"


def part_of_size(part: float, whole: float) -> str:
    """Return how many of some bytes are used or free, in the unit of the whole.

    >>> part_of_size(5e8, 16e9)
    '0.5 of 16.0 GB'
    """
    size, unit = round_size(whole).split(" ")
    return f"{part / dict(_SIZES).get(unit, 1):,.1f} of {size} {unit}"


def duration(seconds: float) -> str:
    """Return a duration as text, in its two largest units.

    >>> duration(0.42), duration(59), duration(65), duration(7200), duration(273_600)
    ('0.4s', '59s', '1m 05s', '2h 00m', '3d 04h')
    """
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02}h"


def round_duration(seconds: float) -> str:
    """Return a duration without a second unit that is zero, as the ticks of an axis are written.

    >>> round_duration(60), round_duration(7200), round_duration(5400)
    ('1m', '2h', '1h 30m')
    """
    text = duration(seconds)
    first, _, second = text.partition(" ")
    return first if second.startswith("00") else text


def flops_per_second(speed: float) -> str:
    """Return a speed of computing as text.

    >>> flops_per_second(430.2e9), flops_per_second(12.36e12)
    ('430 GFLOP/s', '12.4 TFLOP/s')
    """
    return f"{speed / 1e12:,.1f} TFLOP/s" if speed >= 1e12 else f"{speed / 1e9:,.0f} GFLOP/s"
