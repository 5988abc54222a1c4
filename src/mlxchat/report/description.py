"""A run in detail: its settings and where they are from, its command, data, steps and samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from mlxchat.checkpoint import store
from mlxchat.checkpoint.catalog import SavedStep, saved_steps
from mlxchat.checkpoint.files import HISTORY, ORIGIN, TRAINER, in_words, read_json, unreadable
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import ConversationConfig
from mlxchat.config.stages import STAGE_SETTINGS
from mlxchat.counts import counted
from mlxchat.data.shards import DATASETS
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.home import Home
from mlxchat.json_text import as_type
from mlxchat.plan.plan import Plan
from mlxchat.report.log_end import read_events_of
from mlxchat.report.places import find_run
from mlxchat.report.provenance import NOT_SET, SettingRow, command_of_run, setting_rows
from mlxchat.report.runs import RunSummary, Summaries, beginning_with
from mlxchat.report.scores import StepResults, kept_results, of_other_models
from mlxchat.telemetry.events import Event, Judged, Sampled, Started


class _Record(BaseModel):
    """The part of the trainer's state that describes a run (`mlxchat.checkpoint.trainer`)."""

    stage: str
    settings: dict[str, Any]
    plan: Plan
    mlxchat: str
    mlx: str
    data: list[str] = []
    revision: str | None = None
    fingerprints: dict[str, str] = {}


_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


@dataclass(frozen=True)
class RunDescription:
    """A run in detail. What is not known of it is None or empty.

    Attributes:
        summary: the run at a glance.
        config: its settings.
        plan: what was derived from them.
        rows: its settings, with the derived ones.
        command: the command that repeats it.
        data: what it learns from, in words.
        validation_file: the name of the shard that bits per byte are measured on.
        files: what tells the files of its data from others, by their names.
        versions: of mlxchat and MLX that saved it.
        starts: each start and resumption.
        samples: the last ones.
        judged: how it last answered held-out questions.
        steps: its checkpoints.
        continued: the runs that began with its model.
        base_is_there: whether the model that it began with is still where its settings say.
        origin: the program that its model was imported from.
        made_from: the model that it was made from: of a quantized copy, say.
        tasks: the results of its checkpoints on tasks, ascending.
        of_other_models: the evaluations with its name that are of models which had it before.
        fault: why its settings cannot be read.
        unread: why results on tasks cannot be read.
    """

    summary: RunSummary
    config: RunConfig | None = None
    plan: Plan | None = None
    rows: tuple[SettingRow, ...] = ()
    command: str | None = None
    data: tuple[str, ...] = ()
    validation_file: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    versions: str | None = None
    starts: tuple[Started, ...] = ()
    samples: tuple[Sampled, ...] = ()
    judged: Judged | None = None
    steps: tuple[SavedStep, ...] = ()
    continued: tuple[str, ...] = ()
    base_is_there: bool = True
    origin: str | None = None
    made_from: str | None = None
    tasks: tuple[StepResults, ...] = ()
    of_other_models: tuple[Path, ...] = ()
    fault: str | None = None
    unread: tuple[str, ...] = ()


def described_run(home: Home, name: str) -> RunDescription:
    """Return a run in detail.

    Raises:
        NotFound: there is no such run.
        ConfigError: two stages have a run of that name.
        MlxchatError: a folder of runs cannot be read.
    """
    summary = Summaries(home).read(find_run(home, name))
    starts, samples, judged = _of_log(home.log(name))
    folder = summary.places.folder
    steps = saved_steps([folder], lambda _: None) if folder else []
    every = Summaries(home).all()
    tasks, unread = kept_results(home, summary.places, summary.saved_steps)
    common: dict[str, Any] = {
        "starts": tuple(starts),
        "samples": tuple(samples),
        "judged": judged,
        "steps": tuple(steps),
        "tasks": tasks,
        "of_other_models": of_other_models(summary.places, summary.saved_steps),
        "unread": unread,
        "continued": tuple(run.name for run in beginning_with(name, every)),
        "base_is_there": _is_there(summary.began_with, [run.name for run in every]),
    }
    newest = store.directory(folder, steps[-1].step) if folder and steps else None
    if newest is None:
        return RunDescription(summary, **common)
    common["origin"] = _text_in(newest / ORIGIN, "program")
    if not (newest / TRAINER).exists():
        common["made_from"] = _text_in(newest / HISTORY, "tag")
        return RunDescription(summary, **common)
    try:
        record, config = _read_record(newest)
    except MlxchatError as error:
        return RunDescription(summary, **common, fault=error.problem)
    except ValidationError as error:
        fault = f"{newest / TRAINER} was saved by another version of mlxchat ({in_words(error)})."
        return RunDescription(summary, **common, fault=fault)
    ranks = starts[-1].ranks if starts else 1
    return RunDescription(
        summary,
        config,
        record.plan,
        _rows_shown(config, record.plan),
        command_of_run(record.stage, config, name, ranks),
        data_of(config, record.data, record.revision),
        record.data[-1] if record.data and isinstance(config, PretrainConfig) else None,
        tuple(sorted(record.fingerprints.items())),
        f"mlxchat {record.mlxchat}, MLX {record.mlx}",
        **common,
    )


def _read_record(newest: Path) -> tuple[_Record, RunConfig]:
    record = as_type(read_json(newest / TRAINER), _RECORD)
    kind = STAGE_SETTINGS.get(record.stage)
    if kind is None:
        raise ConfigError(f"{newest / TRAINER}: its stage is {record.stage!a:.99}.")
    return record, as_type(kind.upgraded(record.settings), TypeAdapter(kind))


def _of_log(log: Path) -> tuple[list[Started], list[Sampled], Judged | None]:
    """Return every start of a run, its last samples, and its last answers to held-out questions.

    Raises:
        MlxchatError: the log cannot be read.
    """
    try:
        events: list[Event] = read_events_of(log, Started, Sampled, Judged)
    except OSError as error:
        raise unreadable(log, error) from error
    starts = [event for event in events if isinstance(event, Started)]
    samples = [event for event in events if isinstance(event, Sampled)]
    judged = next((event for event in reversed(events) if isinstance(event, Judged)), None)
    return starts, [sample for sample in samples if sample.step == samples[-1].step], judged


def _is_there(model: str | None, names: Sequence[str]) -> bool:
    """Return whether a run, or the directory of a model, has a name."""
    return model is None or model in names or Path(model).expanduser().is_dir()


def _text_in(path: Path, entry: str) -> str | None:
    """Return an entry of a JSON file; None if there is none, or the file cannot be read."""
    try:
        text = read_json(path).get(entry) if path.exists() else None
    except MlxchatError:
        return None
    return text if isinstance(text, str) else None


def _rows_shown(config: RunConfig, plan: Plan) -> tuple[SettingRow, ...]:
    """Return the settings that have a value, without the name, which the user has just said."""
    rows = setting_rows(config, plan)
    return tuple(row for row in rows if row.value != NOT_SET and row.name != "model_tag")


def data_of(config: RunConfig, files: list[str], revision: str | None) -> tuple[str, ...]:
    """Return what a run learns from, a phrase for each part."""
    if isinstance(config, ConversationConfig):
        parts = list(config.data or ())
        parts += ["its identity"] if config.identity else []
        parts += (
            [counted(config.spelling, "conversations") + " about spelling"]
            if config.spelling
            else []
        )
        return tuple(parts)
    if isinstance(config, RlConfig):
        level = "" if config.level is None else f", level {config.level}"
        return (f"{config.task}{level}",)
    assert isinstance(config, PretrainConfig)
    if config.is_builtin:
        return ("the built-in corpus",)
    name = f"the shards in {config.data_dir}" if config.data_dir else config.dataset
    licence = DATASETS[config.dataset].licence_note if config.dataset in DATASETS else None
    parts = [name if licence is None or config.data_dir else f"{name} ({licence})"]
    parts += [counted(len(files) - 1, "training shards")] if len(files) > 1 else []
    parts += [f"revision {revision[:12]}"] if revision else []
    return tuple(parts)
