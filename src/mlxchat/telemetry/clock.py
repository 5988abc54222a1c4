"""The two readings of a clock: the time of day stamps events, seconds measure what lasts.

The time of day can be set, forwards or back, while a run is under way. No duration is computed from
it: a budget, a speed and a time left come from seconds that nobody sets. They do not pass while the
machine sleeps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

TimeOfDay = Callable[[], float]  # returns seconds since the epoch, for stamps
Timer = Callable[[], float]  # returns seconds since any origin, for durations


@dataclass(frozen=True)
class Clock:
    """Called, it returns the time of day in seconds since the epoch, for stamps.

    Attributes:
        time_of_day: returns that time.
        seconds: returns seconds since any origin, for durations.
    """

    time_of_day: TimeOfDay = time.time
    seconds: Timer = time.monotonic

    def __call__(self) -> float:
        """Return the time of day."""
        return self.time_of_day()


SYSTEM_CLOCK = Clock()
