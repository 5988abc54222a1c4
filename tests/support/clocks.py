"""A clock for tests, advanced by hand, whose time of day jumps."""

from itertools import cycle


class FakeClock:
    """As `mlxchat.telemetry.clock.Clock`, but it stands still unless ``now`` is advanced.

    Its time of day jumps by an hour, forwards or back, at each reading, so that durations computed
    from it are nonsense.
    """

    def __init__(self, now: float = 1e9) -> None:
        self.now = now
        self._set = cycle((0.0, 3600.0, -3600.0))

    def __call__(self) -> float:
        return self.now + next(self._set)

    def seconds(self) -> float:
        return self.now
