"""Ranks that train together: rank 0 runs `mlxchat.train.run`, and the others follow it.

Rank 0 creates or loads the run and sends it to the others (`mlxchat.train.sharing`). It announces
each step and each evaluation, and the others do exactly that. So everything that depends on a
clock, a signal or a disk is decided in one place, and the order of steps, the batches and the
checkpoints do not depend on the number of ranks.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from mlxchat.config.run import RunConfig
from mlxchat.data.loader import WAIT_SECONDS, Batch, Stopped
from mlxchat.errors import BackendError
from mlxchat.home import Home
from mlxchat.json_text import as_type, parse_json
from mlxchat.model.gpt import Arrays
from mlxchat.plan.plan import Plan
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Event, Noted
from mlxchat.train.evaluation import never
from mlxchat.train.loop import ShouldStop
from mlxchat.train.measure import least_resources, step_seconds
from mlxchat.train.parts import step_parts
from mlxchat.train.sharing import Received, receive
from mlxchat.train.stage import Stage
from mlxchat.train.step import Draw
from mlxchat.train.world import START_PATIENCE, Act, RanksDifferError, World

WAIT_INTERVAL = 1.0  # seconds between two signs of life while the others wait
COMPARED_EVERY = 100  # steps; comparing takes as long as reading the weights twice


class LastNote:
    """The last note of a rank without a screen, which rank 0 shows while it waits for that rank."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, event: Event) -> None:
        """Remember a note."""
        if isinstance(event, Noted):
            self.last = event.text


@dataclass
class RankBatches:
    """Draws batches on all ranks at the same time, however long one of them waits for a shard.

    A waiting rank keeps exchanging messages, so that the others know it is alive and why they wait.

    Args:
        world: the ranks.
        asked: returns True if this process was asked to end.
        weights: returns the arrays that must be the same on all ranks.
        note: returns the latest note about this rank's data; rank 0's is shown anyway.
        show: shows a note about another rank's data; used by rank 0.
    """

    world: World
    asked: ShouldStop
    weights: Callable[[], Arrays]
    note: LastNote = field(default_factory=LastNote)
    show: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._reported = [""] * self.world.size

    def step_batches(self, number: int, draw: Draw) -> list[Batch]:
        """Return a step's batches; every `COMPARED_EVERY` steps the weights are compared.

        Raises:
            Stopped: a rank was asked to end; nobody makes the step.
            RanksDifferError: the weights of a rank are not those of rank 0.
        """
        batches = self.draw(draw, self.asked)
        if number % COMPARED_EVERY == 0:
            self.world.require_equal(self.weights(), number - 1)
        return batches

    def draw(self, draw: Draw, asked: ShouldStop = never) -> list[Batch]:
        """Return what ``draw`` does as soon as all ranks have theirs; `Stopped` if one is asked."""
        if self.world.alone:
            return draw()
        drawing = self._thread.submit(draw)
        while True:
            done = wait([drawing], WAIT_SECONDS).done
            batches = drawing.result() if done else []
            heard = self.world.all_gather([bool(done), asked()])
            if heard[:, 1].any():
                raise Stopped
            if heard[:, 0].all():
                return batches
            self._report_reasons()

    def any_stopping(self) -> bool:
        """Return whether any rank was asked to end."""
        return bool(self.world.all_gather([self.asked()]).any())

    def _report_reasons(self) -> None:
        """Have rank 0 show each note of another rank once."""
        notes = self.world.all_gather_texts(self.note.last)
        for rank, text in enumerate(notes):
            if rank and text not in ("", self._reported[rank]):
                self.show(f"Rank {rank}: {text}")
        self._reported = notes


@dataclass
class Leader:
    """Rank 0's side of the protocol.

    Args:
        world: the ranks.
        plan: returns the plan as it is now.
        rank_batches: draws the batches.
    """

    world: World
    plan: Callable[[], Plan]
    rank_batches: RankBatches

    def __post_init__(self) -> None:
        self._sent = self.plan()
        self._waited_for = time.monotonic()

    def step(self, number: int, draw: Draw) -> list[Batch]:
        """Announce a step and return its batches, as `RankBatches.step_batches` does."""
        if self.world.alone:
            return draw()
        if (plan := self.plan()) is not self._sent:
            self.world.announce(Act.PLAN)
            self.world.all_gather_texts(plan.model_dump_json())
            self._sent = plan
        self.world.announce(Act.STEP, number)
        return self.rank_batches.step_batches(number, draw)

    def evaluation(self, step: int) -> None:
        """Announce an evaluation; the ranks compare their weights before it."""
        if not self.world.alone:
            self.world.announce(Act.EVALUATE, step)
            self.world.require_equal(self.rank_batches.weights(), step)

    def wait(self) -> bool:
        """Let the others know that rank 0 is busy, and alive; call it every few seconds.

        Returns:
            Whether any rank was asked to end.
        """
        if self.world.alone:
            return self.rank_batches.asked()
        if time.monotonic() <= self._waited_for + WAIT_INTERVAL:
            return False
        self.world.announce(Act.WAIT)
        asked = self.rank_batches.any_stopping()
        self._waited_for = time.monotonic()
        return asked


def follow(
    kind: type[Stage[Any, Any]], config: RunConfig, home: Home, world: World, stop: ShouldStop
) -> None:
    """Take part in a run that rank 0 leads, until it ends.

    Args:
        kind: the stage.
        config: the settings that were given here; rank 0 sends those that follow from them.
        home: where this machine's data is.
        world: the ranks.
        stop: polled; return True to have rank 0 save and end.

    Raises:
        MlxchatError: this rank cannot take part, or another one has ended.
    """
    while True:
        with world.patient(START_PATIENCE):
            act, _ = world.listen()
        if act is Act.RESOURCES:
            least_resources(world, config.dtype)
        elif act is Act.MEASURE:
            timer = SYSTEM_CLOCK.seconds
            step_seconds(_plan(world), math.inf, timer, dtype=config.dtype, world=world)
        elif act is Act.BEGIN:
            note = LastNote()
            try:
                _train(receive(kind, home, world, note), note, stop)
            except RanksDifferError as error:
                raise differing(error) from error
            return
        else:
            return


def _train(run: Received, note: LastNote, stop: ShouldStop) -> None:
    """Do what rank 0 announces, until it announces the end."""
    stage, documents, state = run
    world = stage.world
    rank_batches = RankBatches(world, stop, state.model.named_trainable, note)
    evaluation = stage.evaluation(documents, state, rank_batches.draw)
    # The documents are closed first: that ends a wait for one of their shards.
    with stage.batches(documents, state) as batches, closing(documents):
        launch = stage.compile(step_parts(stage, state, batches, rank_batches.step_batches))
        while True:
            act, number = world.listen()
            if act is Act.STEP:
                with suppress(Stopped):  # nobody makes the step, and the end follows
                    launch(number)
            elif act is Act.WAIT:
                rank_batches.any_stopping()
            elif act is Act.PLAN:
                state.plan = _plan(world)
            elif act is Act.EVALUATE:
                world.require_equal(rank_batches.weights(), number)
                for _ in evaluation.events(number):
                    pass
            else:
                return


def _plan(world: World) -> Plan:
    return as_type(parse_json(world.all_gather_texts("")[0]), TypeAdapter(Plan))


def differing(error: RanksDifferError) -> BackendError:
    """Return the error for ranks whose weights differ."""
    return BackendError(
        str(error),
        "One of the machines computes wrong results. Checkpoints saved since they last agreed, at "
        f"most {COMPARED_EVERY} steps ago, may be wrong too: remove them before you resume.",
    )
