"""The sources of a stage's batches: data, or the model itself."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from mlxchat.data.loader import Batch, Loader
from mlxchat.telemetry.events import Event


class Batches(Iterator[Batch], AbstractContextManager["Batches"], Protocol):
    """A run's batches, step by step from its current position; a context manager."""

    def take_events(self) -> Sequence[Event]:
        """Return the events about the batches since the last call."""


class LoadedBatches(Loader):
    """Batches read from a dataset; they report no events."""

    def __enter__(self) -> "LoadedBatches":
        return self

    def take_events(self) -> Sequence[Event]:
        """Return nothing."""
        return ()
