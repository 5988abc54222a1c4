"""Sends the state of a run from rank 0 to the other ranks, and checks that all can take part.

The other ranks get everything except the data, which they read on their own machines.
"""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.data.documents import Documents
from mlxchat.data.fingerprint import agree
from mlxchat.data.loader import LoaderState
from mlxchat.errors import ConfigError, DataError, MlxchatError
from mlxchat.home import Home
from mlxchat.json_text import as_type, parse_json
from mlxchat.model.adapter import LoraConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import add_adapter
from mlxchat.model.quantization import Format
from mlxchat.model.quantized import formats_of, quantize_layers
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.runtime import check_limits, compute_dtype, hold_memory, mx
from mlxchat.telemetry.events import Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from mlxchat.train.resume import SavedRun, TrainState
from mlxchat.train.stage import Stage
from mlxchat.train.world import START_PATIENCE, Act, World


class ModelKind(BaseModel):
    """The properties of rank 0's model, apart from its shape, that the other ranks need."""

    adapter: LoraConfig | None
    formats: dict[str, Format]  # of quantized layers, by name


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
    world.announce(Act.BEGIN)
    world.all_gather_texts(record.model_dump_json())
    of_model = ModelKind(adapter=state.model.adapter, formats=formats_of(state.model))
    world.all_gather_texts(of_model.model_dump_json())
    with TemporaryDirectory() as folder:
        state.tokenizer.save(Path(folder))
        world.all_gather_texts((Path(folder) / TOKENIZER_FILE).read_text("utf-8"))
    _require_all_ready(world, None)
    _share_arrays(world, state)


class Received(NamedTuple):
    """A run as received by a rank other than 0."""

    stage: Stage[Any, Any]
    documents: Documents
    state: TrainState


def receive(kind: type[Stage[Any, Any]], home: Home, world: World, report: Report) -> Received:
    """Receive what rank 0 sends, and open this machine's copy of the data.

    Args:
        kind: the stage, whose settings rank 0 sends.
        home: where this machine's data is.
        world: the ranks.
        report: called with what the data says, such as that a shard is waited for.

    Raises:
        MlxchatError: a rank cannot take part.
    """
    text = world.all_gather_texts("")[0]
    record: TrainerState[Any] = as_type(parse_json(text), TypeAdapter(TrainerState[kind.settings]))  # type: ignore[name-defined]
    stage = kind(record.settings, home, report, world=world)
    saved = SavedRun(stage.folder, record, record.plan)
    of_model = as_type(parse_json(world.all_gather_texts("")[0]), TypeAdapter(ModelKind))
    tokenizer = _tokenizer(world.all_gather_texts("")[0])
    with ExitStack() as stack:
        try:
            check_limits(record.plan.memory_limit, record.settings.wired)
            documents = stack.enter_context(closing(_documents(stage, saved)))
        except MlxchatError as error:
            _require_all_ready(world, error)
            raise
        _require_all_ready(world, None)
        state = _received(stage, saved, tokenizer, of_model)
        stack.pop_all()  # the documents stay open
    return Received(stage, documents, state)


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
            raise DataError(
                f"{name} differs from rank 0's file of that name.",
                "Every machine needs the same data. Copy it from one to the others.",
            )
    return documents


def _received(
    stage: Stage[Any, Any],
    saved: SavedRun[Any],
    tokenizer: Tokenizer,
    of_model: ModelKind,
) -> TrainState:
    """Return the state of rank 0."""
    plan, config = saved.plan, stage.config
    hold_memory(plan.memory_limit, plan.peak, config.wired)
    model = GPT.new(plan.model, config.seed, compute_dtype(config.dtype))
    quantize_layers(model, of_model.formats)
    if of_model.adapter is not None:
        add_adapter(model, of_model.adapter)
        model.cast_frozen()
    optimizer = MuonAdamW(model)
    state = TrainState(plan, tokenizer, model, optimizer, saved.trainer.step, LoaderState())
    _share_arrays(stage.world, state)
    return state


def _share_arrays(world: World, state: TrainState) -> None:
    """Give all ranks the weights, the optimizer's state and the place in the data of rank 0."""
    weights = world.broadcast(state.model.named_parameters())
    state.model.load_weights(list(weights.items()))
    state.optimizer.state = world.broadcast(state.optimizer.state)
    state.loader = _share_loader(world, state.loader)
    mx.eval(state.model.parameters(), state.optimizer.state)


def _share_loader(world: World, loader: LoaderState) -> LoaderState:
    """Return rank 0's place in the data."""
    shared = {}
    for name, array in loader.to_arrays().items():
        numbers = array.tolist() if world.leads else []
        sizes = world.all_gather([len(numbers)])
        whole = int(sizes[0, 0])
        row = numbers if world.leads else [0.0] * whole
        shared[name] = world.all_gather(row)[0].astype(array.dtype) if whole else array[:0]
    return LoaderState.from_arrays(shared)


def _require_all_ready(world: World, fault: MlxchatError | None) -> None:
    """Check that every rank can take part; ``fault`` says why this one cannot.

    Raises:
        MlxchatError: one cannot.
    """
    said = [fault.problem, fault.remedy] if fault else []
    with world.patient(START_PATIENCE):  # one may have to fetch its data
        faults = world.all_gather_texts(json.dumps(said))
    for rank, text in enumerate(faults):
        if found := as_type(parse_json(text), TypeAdapter(list[str])):
            raise MlxchatError(f"Rank {rank}: {found[0]}", found[1])


def require_same(world: World, facts: dict[str, str]) -> None:
    """Check that all ranks were started alike.

    Args:
        world: the ranks.
        facts: what has to be the same, by name, such as the version and each setting.

    Raises:
        ConfigError: one differs, which is named.
    """
    for rank, text in enumerate(world.all_gather_texts(json.dumps(facts))):
        theirs = as_type(parse_json(text), TypeAdapter(dict[str, str]))
        if rank == 0:
            first = theirs
        for name in sorted(first.keys() | theirs.keys()):
            here, there = first.get(name, "its default"), theirs.get(name, "its default")
            if here != there:
                raise ConfigError(
                    f"Rank 0 has {name} {here}, rank {rank} has {there}.",
                    "Start all ranks with the same command and the same software versions.",
                )
