"""How ranks train together: rank 0 runs the course of `mlxchat.train.run`, the others follow it.

Rank 0 makes the run or loads it, and sends the others everything but the data: they read the same
files on their own machine. Before each step and each evaluation it announces what follows; the
others do that, and nothing else. So whatever depends on a clock, a signal or a disk is decided in
one place, and order, batches and checkpoints do not depend on the number of ranks.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.data.documents import Documents
from mlxchat.data.fingerprint import agree
from mlxchat.data.loader import LoaderState, Stopped
from mlxchat.errors import ConfigError, DataError, MlxchatError
from mlxchat.home import Home
from mlxchat.json_text import as_type, parse_json
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.plan.plan import Plan
from mlxchat.runtime import compute_dtype, hold_memory, mx
from mlxchat.telemetry.events import Event
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from mlxchat.train.parts import step_parts
from mlxchat.train.resume import SavedRun, TrainState, new_optimizer
from mlxchat.train.stage import Stage
from mlxchat.train.world import World

START_PATIENCE = 3600.0  # seconds: rank 0 may have a tokenizer to train before it sends anything


class Act(IntEnum):
    """An announcement of rank 0: the act that follows."""

    STEP = 0
    EVALUATE = 1
    PLAN = 2  # a changed plan follows, as text
    END = 3


@dataclass
class Leader:
    """Rank 0's side.

    Args:
        world: the ranks.
        plan: returns the plan as it is now.
        stop: returns True to save and end; asked before each step.
    """

    world: World
    plan: Callable[[], Plan]
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self._sent = self.plan()

    def step(self, number: int) -> None:
        """Announce a step.

        Raises:
            Stopped: this rank or another one was asked to end; nobody makes the step.
        """
        if self.world.alone:
            return
        if (plan := self.plan()) is not self._sent:
            self._announce(Act.PLAN)
            self.world.gather_texts(plan.model_dump_json())
            self._sent = plan
        if self._announce(Act.STEP, number):
            raise Stopped

    def evaluation(self, step: int, arrays: Arrays) -> None:
        """Announce an evaluation; the ranks compare their weights before it."""
        if not self.world.alone:
            self._announce(Act.EVALUATE, step)
            self.world.require_equal(arrays, step)

    def end(self) -> None:
        """Announce that the run has ended, or was interrupted."""
        if not self.world.alone:
            self._announce(Act.END)

    def _announce(self, act: Act, number: int = 0) -> bool:
        """Tell the others what follows; returns whether any rank was asked to end."""
        asked = self.world.gather([act, number, self.stop()])[:, 2]
        return bool(asked.any())


def send(stage: Stage[Any, Any], documents: Documents, state: TrainState) -> None:
    """Send the state of a run that rank 0 has made or loaded.

    Args:
        stage: the run's stage.
        documents: its data.
        state: what is sent; its arrays are replaced by equal ones.

    Raises:
        MlxchatError: another rank cannot take part; it says why not.
    """
    world = stage.world
    if world.alone:
        return
    world.rows(state.plan.rows_per_step)
    record: TrainerState[Any] = TrainerState(
        step=state.step,
        stage=stage.name,
        settings=stage.config,
        plan=state.plan,
        meter=Meter().state(),
        data=list(documents.names),
        revision=stage.revision,
        fingerprints=stage.files(documents),
    )
    world.gather_texts(record.model_dump_json())
    with TemporaryDirectory() as folder:
        state.tokenizer.save(Path(folder))
        world.gather_texts((Path(folder) / TOKENIZER_FILE).read_text("utf-8"))
    _require_all_ready(world, "")
    _share_arrays(world, state)


def dismiss(world: World) -> None:
    """Tell the other ranks that there is nothing to do."""
    world.gather_texts("")


def follow(kind: type[Stage[Any, Any]], home: Home, world: World, stop: Callable[[], bool]) -> None:
    """Take part in a run that rank 0 leads, until it ends.

    Args:
        kind: the stage, whose settings rank 0 sends.
        home: where this machine's data is.
        world: the ranks.
        stop: polled; return True to have rank 0 save and end.

    Raises:
        MlxchatError: this rank cannot take part, or another one has ended.
    """
    with world.patient(START_PATIENCE):
        sent = world.gather_texts("")[0]
    if not sent:  # there is nothing to do
        return
    record: TrainerState[Any] = as_type(parse_json(sent), TypeAdapter(TrainerState[kind.settings]))  # type: ignore[name-defined]
    stage = kind(record.settings, home, world=world)
    saved = SavedRun(stage.folder, record, record.plan)
    tokenizer = _tokenizer(world.gather_texts("")[0])
    fault = ""
    try:
        documents = _documents(stage, saved)
    except MlxchatError as error:
        fault = error.problem
    _require_all_ready(world, fault)
    state = _received(stage, saved, tokenizer)
    follower = Follower(stage, documents, state, stop)
    try:
        follower.run()
    finally:
        documents.close()


@dataclass
class Follower:
    """Another rank's side, once it has the run's state and data."""

    stage: Stage[Any, Any]
    documents: Documents
    state: TrainState
    stop: Callable[[], bool]

    def run(self) -> None:
        """Do what rank 0 announces, until it announces the end."""
        world, state = self.stage.world, self.state
        evaluation = self.stage.evaluation(self.documents, state)
        with self.stage.batches(self.documents, state) as batches:
            launch = self.stage.compile(step_parts(self.stage, state, batches))
            while True:
                heard = world.gather([Act.END, 0, self.stop()])
                act, number, asked = Act(int(heard[0, 0])), int(heard[0, 1]), heard[:, 2].any()
                if act is Act.END:
                    return
                if act is Act.PLAN:
                    state.plan = as_type(parse_json(world.gather_texts("")[0]), TypeAdapter(Plan))
                elif act is Act.EVALUATE:
                    world.require_equal(state.model.named_parameters(), number)
                    _exhaust(evaluation.events(number))
                elif not asked:  # otherwise nobody makes the step, and the end follows
                    launch(number)


def _exhaust(events: Iterator[Event]) -> None:
    for _ in events:
        pass


def _tokenizer(text: str) -> Tokenizer:
    with TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER_FILE).write_text(text, "utf-8")
        return Tokenizer.load(Path(folder))


def _documents(stage: Stage[Any, Any], saved: SavedRun[Any]) -> Documents:
    """Open this machine's copy of the data.

    Raises:
        DataError: a file is missing, or is not the one of that name that rank 0 has.
    """
    documents: Documents = stage.open(saved)
    of_leader = saved.trainer.fingerprints
    for name, found in stage.files(documents).items():
        if not agree(of_leader.get(name, found), found):
            documents.close()
            raise DataError(f"{name} is not the file of that name that rank 0 has.")
    return documents


def _received(stage: Stage[Any, Any], saved: SavedRun[Any], tokenizer: Tokenizer) -> TrainState:
    plan, config = saved.plan, stage.config
    hold_memory(plan.memory_limit, plan.peak, config.wired)
    model = GPT.new(plan.model, config.seed, compute_dtype(config.dtype))
    optimizer = new_optimizer(model)
    state = TrainState(plan, tokenizer, model, optimizer, saved.trainer.step, LoaderState())
    _share_arrays(stage.world, state)
    return state


def _share_arrays(world: World, state: TrainState) -> None:
    """Give all ranks the weights, the optimizer's state and the place in the data of rank 0."""
    weights = world.spread(state.model.named_parameters())
    state.model.load_weights(list(weights.items()))
    state.optimizer.state = world.spread(state.optimizer.state)
    state.loader = _share_loader(world, state.loader)
    mx.eval(state.model.parameters(), state.optimizer.state)


def _share_loader(world: World, loader: LoaderState) -> LoaderState:
    """Return rank 0's place in the data."""
    shared = {}
    for name, array in loader.to_arrays().items():
        numbers = array.tolist() if world.leads else []
        sizes = world.gather([len(numbers)])
        whole = int(sizes[0, 0])
        row = numbers if world.leads else [0.0] * whole
        shared[name] = world.gather(row)[0].astype(array.dtype) if whole else array[:0]
    return LoaderState.from_arrays(shared)


def _require_all_ready(world: World, fault: str) -> None:
    """Check that every rank can take part; ``fault`` says why this one cannot.

    Raises:
        DataError: one cannot.
    """
    with world.patient(START_PATIENCE):  # one may have to fetch its data
        faults = world.gather_texts(fault)
    for rank, found in enumerate(faults):
        if found:
            raise DataError(
                f"Rank {rank}: {found}",
                "Every machine needs the same data: copy it from one to the others.",
            )


def require_same(world: World, facts: dict[str, str]) -> None:
    """Check that all ranks were started alike.

    Args:
        world: the ranks.
        facts: what has to be the same, by name, such as the version and each setting.

    Raises:
        ConfigError: one differs, which is named.
    """
    for rank, text in enumerate(world.gather_texts(json.dumps(facts))):
        theirs = as_type(parse_json(text), TypeAdapter(dict[str, str]))
        if rank == 0:
            first = theirs
        for name in sorted(first.keys() | theirs.keys()):
            here, there = first.get(name, "its default"), theirs.get(name, "its default")
            if here != there:
                raise ConfigError(
                    f"Rank 0 has {name} {here}, rank {rank} has {there}.",
                    "Start all ranks with the same command and the same versions.",
                )
