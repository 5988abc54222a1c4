"""Evaluations of a run on held-out data; every rank takes a share of each."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Protocol

from mlxchat.data.documents import Documents
from mlxchat.data.loader import Batch, Loader, first_rows
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Event
from mlxchat.train.loop import ShouldStop
from mlxchat.train.resume import TrainState
from mlxchat.train.step import Draw
from mlxchat.train.world import World


def never() -> bool:
    """Return False: nothing asks to stop."""
    return False


class Evaluation(Protocol):
    """Measures the model in training."""

    def events(self, step: int, stop: ShouldStop = never) -> Iterator[Event]:
        """Evaluate after a step, yielding progress and, last, the result of all ranks.

        ``stop`` may cut it short; an evaluation that ranks share goes on.
        """


class LossEvaluation:
    """Measures bits per byte on the first validation documents; each rank takes some batches.

    Args:
        documents: the data.
        state: the model to evaluate, and the plan.
        world: the ranks.
        clock: stamps the events.
        draw: returns the first batch once all ranks have theirs, since one may have to wait for its
            shard.
    """

    def __init__(
        self,
        documents: Documents,
        state: TrainState,
        world: World,
        clock: Clock,
        draw: Callable[[Draw], list[Batch]],
    ) -> None:
        self._documents, self._state, self._draw = documents, state, draw
        self._world, self._clock = world, clock
        in_chunks = partial(state.model.losses, chunk_rows=state.plan.chunk_rows)
        self._losses = mx.compile(in_chunks, inputs=state.model.state)

    def events(self, step: int, stop: ShouldStop = never) -> Iterator[Event]:
        """Evaluate after a step, yielding progress and, last, an `Evaluated` of all ranks.

        ``stop`` is asked while the loader is waited for.
        """
        plan, tokenizer, world = self._state.plan, self._state.tokenizer, self._world
        rows, context = plan.device_batch_size, plan.model.sequence_len
        documents, preparation = self._documents.validation(), self._documents.preparation
        with Loader(
            documents, tokenizer, rows, context, stop=stop, preparation=preparation
        ) as batches:
            rest = first_rows(batches, plan.eval_rows)
            wanted = chain(self._draw(lambda: list(islice(rest, 1))), rest)
            limit = math.ceil(plan.eval_rows / rows)
            yield from bits_per_byte(
                self._losses,
                islice(wanted, world.rank, None, world.size),
                len(range(world.rank, limit, world.size)),
                tokenizer,
                step,
                self._clock,
                lambda numbers: world.all_gather(numbers).sum(axis=0).tolist(),
            )
