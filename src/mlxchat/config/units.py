"""Durations such as ``90s`` or ``1h30m``, and sizes such as ``12GB`` or ``1.5GiB``. Pure."""

import re

from mlxchat.errors import ConfigError

UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST_DURATION = 1000 * UNIT_SECONDS["d"]
_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>\d{{1,9}}(?:\.\d{{1,9}})?){unit})?" for unit in UNIT_SECONDS)
)


def to_seconds(text: str) -> int:
    """Return a duration in seconds, rounded.

    >>> to_seconds("1h30m")
    5400

    Raises:
        ConfigError: it has another form, or is less than a second or more than 1,000 days.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    parts = match.groupdict(default="0") if match else {}
    seconds = round(sum(float(count) * UNIT_SECONDS[unit] for unit, count in parts.items()))
    if not 1 <= seconds <= LONGEST_DURATION:
        raise ConfigError(
            f"{text!r} is not a duration between one second and 1,000 days.",
            "Write it as 90s, 30m, 2h, 1.5h, 1h30m or 2d.",
        )
    return seconds


def spell_duration(seconds: int) -> str:
    """Write whole seconds in the canonical form, which `to_seconds` reads back: ``1h30m``."""
    text = ""
    for unit, size in UNIT_SECONDS.items():
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text


UNIT_BYTES = {
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
LARGEST_SIZE = 1000 * UNIT_BYTES["TB"]
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([mgt]i?b)", re.IGNORECASE)


def to_bytes(text: str) -> int:
    """Return a size in bytes, rounded.

    >>> to_bytes("1.5GiB")
    1610612736

    Raises:
        ConfigError: it has another form, or is less than a megabyte or more than 1,000 TB.
    """
    number, unit = _parts(text)
    return round(float(number) * UNIT_BYTES[unit])


def spell_size(text: str) -> str:
    """Write a size in the canonical form: ``12GB`` for ``12 gb``.

    Raises:
        ConfigError: as `to_bytes` does.
    """
    return "".join(_parts(text))


def round_size(size: int) -> str:
    """Write bytes for display: ``602 MiB`` or ``1.2 GiB``."""
    gib = size / UNIT_BYTES["GiB"]
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{size / UNIT_BYTES['MiB']:,.0f} MiB"


def _parts(text: str) -> tuple[str, str]:
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): unit for unit in UNIT_BYTES}
    if match and (unit := units.get(match[2].lower())):
        number = match[1]
        if UNIT_BYTES["MB"] <= float(number) * UNIT_BYTES[unit] <= LARGEST_SIZE:
            return number, unit
    raise ConfigError(
        f"{text!r} is not an amount of memory between one megabyte and 1,000 TB.",
        "Write it as 12GB, 0.5GB, 800MB or 12GiB (a GB is 10^9 bytes, a GiB 2^30).",
    )
