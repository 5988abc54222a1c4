"""Amounts of memory as one says them: ``12GB``, ``800MB``, ``1.5GiB``. Pure."""

import re

from mlxchat.errors import MlxchatError

UNITS = {  # bytes
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
LARGEST = 1000 * UNITS["TB"]
SPOKEN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([mgt]i?b)", re.IGNORECASE)


def to_bytes(text: str) -> int:
    """Bytes, to the nearest.

    Raises:
        MlxchatError: it has another form, or is less than a megabyte or more than 1,000 TB.
    """
    number, unit = _parts(text)
    return round(float(number) * UNITS[unit])


def spelled(text: str) -> str:
    """An amount in the one way to write its number with its unit: ``12GB`` for ``12 gb``.

    Raises:
        MlxchatError: as of `to_bytes`.
    """
    return "".join(_parts(text))


def rounded(size: int) -> str:
    """Bytes in ``602 MiB`` or ``1.2 GiB``."""
    gib = size / UNITS["GiB"]
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{size / UNITS['MiB']:,.0f} MiB"


def _parts(text: str) -> tuple[str, str]:
    match = SPOKEN.fullmatch(text.strip())
    units = {unit.lower(): unit for unit in UNITS}
    if match and (unit := units.get(match[2].lower())):
        number = match[1]
        if UNITS["MB"] <= float(number) * UNITS[unit] <= LARGEST:
            return number, unit
    raise MlxchatError(
        f"{text!r} is not an amount of memory of a megabyte to 1,000 TB.",
        "Write it as 12GB, 0.5GB, 800MB or 12GiB (GB are 10^9 bytes, GiB 2^30).",
    )
