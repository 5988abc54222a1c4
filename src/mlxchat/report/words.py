"""Numbers as a report shows them, on axes, in tables and in sentences."""

import math

from mlxchat.counts import duration

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_UNKNOWN = "—"


def figure(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, thousands in groups.

    >>> figure(0.123456), figure(123456.7), figure(2e-7), figure(None)
    ('0.1235', '123,457', '2·10⁻⁷', '—')
    """
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    size = abs(value)
    if size >= 10**digits:
        return f"{value:,.0f}" if size < 1e12 else power_of_ten(value)
    if 0 < size < 1e-4:
        return power_of_ten(value)
    return f"{value:.{digits}g}"


def power_of_ten(value: float) -> str:
    """Return a number as a multiple of a power of ten.

    >>> power_of_ten(1e18), power_of_ten(2.5e19)
    ('10¹⁸', '2.5·10¹⁹')
    """
    if value == 0 or not math.isfinite(value):
        return figure(value)
    factor, exponent = f"{value:.2e}".split("e")
    factor = factor.rstrip("0").rstrip(".")
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return power if factor == "1" else f"{factor}·{power}"


def power_of_ten_or_zero(value: float) -> str:
    """Return a number of FLOPs, such as a tick of an axis.

    >>> power_of_ten_or_zero(0.0), power_of_ten_or_zero(3e15)
    ('0', '3·10¹⁵')
    """
    return power_of_ten(value) if value else "0"


def bits_in_words(bits: float | None) -> str:
    """Return bits per byte, or a loss, with as many decimals as runs differ by.

    >>> bits_in_words(0.9), bits_in_words(12.34567)
    ('0.9000', '12.3457')
    """
    if bits is None or not abs(bits) < 1000:
        return figure(bits)
    return f"{bits:.4f}"


def count_in_words(value: float | None) -> str:
    """Return a count in thousands, millions, billions or trillions.

    >>> count_in_words(950), count_in_words(1500), count_in_words(11_200_000_000)
    ('950', '1.5k', '11.2B')
    """
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{letter}" if value < 1e15 else power_of_ten(value)
    return f"{value:.3g}" if value % 1 else f"{value:.0f}"


def time_in_words(seconds: float | None) -> str:
    """Return a duration, or that it is unknown.

    >>> time_in_words(185), time_in_words(None)
    ('3m 05s', '—')
    """
    return _UNKNOWN if seconds is None or not math.isfinite(seconds) else duration(seconds)


def share_in_words(value: float | None, digits: int = 1) -> str:
    """Return a share in percent.

    >>> share_in_words(0.1234)
    '12.3%'
    """
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    return f"{value:.{digits}%}"
