"""Numbers as a report shows them, on axes, in tables and in sentences."""

import math
import re

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_UNKNOWN = "—"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
    """Return a duration in its two largest units.

    >>> time_in_words(45), time_in_words(185), time_in_words(55_200), time_in_words(273_600)
    ('45 s', '3 min 5 s', '15 h 20 min', '3 d 4 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return _UNKNOWN
    if 0 < seconds < 10:
        return f"{seconds:.2g} s"
    left, parts = round(seconds), list[str]()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        whole, left = divmod(left, size)
        if whole or parts:
            parts.append(f"{whole} {unit}")
    return " ".join(part for part in parts[:2] if part[0] != "0") or "0 s"


def bytes_in_words(count: float | None) -> str:
    """Return a number of bytes in powers of 1,024, as memory is counted.

    >>> bytes_in_words(3 * 2**30), bytes_in_words(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    if count is None or not math.isfinite(count):
        return _UNKNOWN
    if count >= 2**40:
        return f"{count / 2**40:.1f} TiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def share_in_words(value: float | None, digits: int = 1) -> str:
    """Return a share in percent.

    >>> share_in_words(0.1234)
    '12.3%'
    """
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    return f"{value:.{digits}%}"


def without_controls(text: str) -> str:
    """Return a text without control characters other than tabs and line feeds, as HTML allows.

    >>> without_controls("a\\x1b[2J\\nb")
    'a[2J\\nb'
    """
    return _CONTROLS.sub("", text)
