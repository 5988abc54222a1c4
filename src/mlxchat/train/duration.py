"""Durations as one says them: ``90s``, ``30m``, ``1.5h``, ``1h30m``, ``2d``. Pure."""

import re

from mlxchat.errors import MlxchatError

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}  # seconds
LONGEST = 1000 * UNITS["d"]
SPOKEN = re.compile("".join(rf"(?:(?P<{unit}>\d{{1,9}}(?:\.\d{{1,9}})?){unit})?" for unit in UNITS))


def to_seconds(text: str) -> int:
    """Seconds, to the nearest, of a duration.

    Raises:
        MlxchatError: it has another form, or is less than a second or more than 1,000 days.
    """
    match = SPOKEN.fullmatch(text.strip().lower())
    parts = match.groupdict(default="0") if match else {}
    seconds = round(sum(float(count) * UNITS[unit] for unit, count in parts.items()))
    if not 1 <= seconds <= LONGEST:
        raise MlxchatError(
            f"{text!r} is not a duration of a second to 1,000 days.",
            "Write it as 90s, 30m, 2h, 1.5h, 1h30m or 2d.",
        )
    return seconds


def spelled(seconds: int) -> str:
    """The one way to write whole seconds that `to_seconds` reads back: ``1h30m``."""
    text = ""
    for unit, size in UNITS.items():
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text
