"""Ctrl-C and SIGTERM while training: finish the step, save, end."""

import os
import signal
from types import FrameType, TracebackType


class Interrupts:
    """Remembers the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once.

    Before `defer` is called they act as always.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._before: dict[int, object] = {}

    def defer(self) -> None:
        """From now on, remember the signal and let the work go on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)

    def requested(self) -> bool:
        """Whether the work should come to an end."""
        return bool(self._signal)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 0 without either."""
        return 128 + self._signal if self._signal else 0

    def __enter__(self) -> "Interrupts":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            os._exit(128 + number)
        self._signal = number
