"""The public functions: load a trained model, train one, import one.

The command line does the same with the same parts. Here nothing is printed, and whatever fails for
a reason that a user can fix raises an `MlxchatError`.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, cast

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.run_names import new_run
from mlxchat.config.inference import Dtype
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.config.validate import validated
from mlxchat.errors import ConfigError
from mlxchat.home import Home, expanded
from mlxchat.interop import importers
from mlxchat.interop.importers.adapter import (
    concerns_adapter,
    import_adapter,
    open_adapter,
)
from mlxchat.telemetry.events import Event, Progressed, Report
from mlxchat.train import mid, rl, sft
from mlxchat.train import pretrain as pretraining
from mlxchat.train.saved_settings import settings_to_resume
from mlxchat.train.stage import history_of
from mlxchat.trained import Model

__all__ = ["fine_tune", "import_model", "load", "mid_train", "pretrain", "reinforce"]

_Chosen = TypeVar("_Chosen", bound=RunConfig)


def load(
    source: str | Path | None = None,
    *,
    step: int | None = None,
    dtype: Dtype = "auto",
    home: str | Path | None = None,
) -> Model:
    """Load a trained model.

    Args:
        source: the name of a run, or the directory of a model or of a run. By default the run
            that was saved last.
        step: the checkpoint to load; by default the newest.
        dtype: the precision to compute in; by default the best of this machine.
        home: where runs are; by default ``$MLXCHAT_HOME``.

    Raises:
        NotFound: there is no such model; the message lists the ones there are.
        CheckpointError: a file of the model is missing or damaged.

    >>> import mlxchat
    >>> model = mlxchat.load("quickstart-sft")
    >>> model.name, model.conversational
    ('quickstart-sft', True)
    """
    place = _home(home)
    folder = catalog.find_model(place.stages, None if source is None else str(source), step)
    runtime.bound_buffer_cache()
    saved = layout.read_model(folder, runtime.compute_dtype(dtype))
    return Model(saved, history_of(folder, place), place, folder)


def pretrain(
    config: PretrainConfig | None = None,
    *,
    resume: str | None = None,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    home: str | Path | None = None,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Pretrain a model, or resume the run of the same name; iterate over it to make it happen.

    One stream carries everything: the steps, evaluations, samples and checkpoints of the run, its
    notes, and the progress of downloads in other threads. Progress from other threads is delivered
    just before the run's next event; only the newest per task.

    To end early, let ``stop`` return True: the run saves and ends. Leaving the loop (``break``,
    Ctrl-C, or ``close()`` of the iterator) saves nothing more; the run can be resumed from its
    newest checkpoint by the same call.

    Args:
        config: the settings as one object, in place of ``settings``.
        resume: the name of a saved run to resume with its own settings; ``settings`` then has only
            what may change, such as ``memory_limit``.
        fresh: set an earlier run of that name aside and train from scratch.
        stop: polled; return True to save and stop.
        home: where data, checkpoints and logs are; by default ``$MLXCHAT_HOME``.
        **settings: the fields of `PretrainConfig`, such as ``depth=4`` or ``dataset="builtin"``.

    Raises:
        ConfigError: at the call: a setting is unknown or out of bounds, or two do not go together;
            or the run to resume is of another stage. `NotFound` if there is no such run.
        MlxchatError: while iterating: the settings are not those of the run to resume, there is no
            such model, data cannot be read, and so on, as the error messages say.

    >>> import mlxchat
    >>> for event in mlxchat.pretrain(
    ...     depth=1, dataset="builtin", vocab_size=300, max_seq_len=32, device_batch_size=4,
    ...     total_batch_size=128, num_iterations=2, eval_tokens=128, model_tag="tiny",
    ... ):
    ...     if isinstance(event, mlxchat.Stepped):
    ...         print(event.step, event.position.epoch)
    1 1
    2 1
    >>> mlxchat.load("tiny").config.n_layer
    1
    """
    place = _home(home)
    chosen = _config(PretrainConfig, config, settings, resume, fresh, place)
    return _one_stream(
        lambda report: pretraining.run_pretraining(chosen, place, report, stop=stop, fresh=fresh)
    )


def mid_train(
    config: MidConfig | None = None,
    *,
    resume: str | None = None,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    home: str | Path | None = None,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Train a base model on all of many conversations, or resume the run of the same name.

    It comes before `fine_tune`, and works as `pretrain` in every other way.

    Args:
        config: the settings as one object, in place of ``settings``.
        resume: the name of a saved run to resume with its own settings; ``settings`` then has only
            what may change, such as ``memory_limit``.
        fresh: set an earlier run of that name aside and train from scratch.
        stop: polled; return True to save and stop.
        home: where data, checkpoints and logs are; by default ``$MLXCHAT_HOME``.
        **settings: the fields of `MidConfig`, such as ``source="d4"`` or ``data=["chats.jsonl"]``.

    Raises:
        ConfigError: at the call: a setting is unknown or out of bounds, or two do not go together;
            or the run to resume is of another stage. `NotFound` if there is no such run.
        MlxchatError: while iterating, as for `pretrain`; `NotFound` if there is no such model.

    >>> import mlxchat
    >>> for event in mlxchat.mid_train(
    ...     source="quickstart", data=["chats.jsonl"], num_iterations=2, total_batch_size=256,
    ...     eval_every=0, sample_every=0, model_tag="middle",
    ... ):
    ...     if isinstance(event, mlxchat.Saved):
    ...         print(event.step)
    2
    >>> mlxchat.load("middle").conversational
    True
    """
    place = _home(home)
    chosen = _config(MidConfig, config, settings, resume, fresh, place)
    return _one_stream(
        lambda report: mid.run_mid_training(chosen, place, report, stop=stop, fresh=fresh)
    )


def fine_tune(
    config: SftConfig | None = None,
    *,
    resume: str | None = None,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    home: str | Path | None = None,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Fine-tune a model on conversations, or resume the run of the same name.

    It works as `pretrain` in every other way.

    Args:
        config: the settings as one object, in place of ``settings``.
        resume: the name of a saved run to resume with its own settings; ``settings`` then has only
            what may change, such as ``memory_limit``.
        fresh: set an earlier run of that name aside and train from scratch.
        stop: polled; return True to save and stop.
        home: where data, checkpoints and logs are; by default ``$MLXCHAT_HOME``.
        **settings: the fields of `SftConfig`, such as ``source="d4"`` or ``data=["chats.jsonl"]``.

    Raises:
        ConfigError: at the call: a setting is unknown or out of bounds, or two do not go together;
            or the run to resume is of another stage. `NotFound` if there is no such run.
        MlxchatError: while iterating, as for `pretrain`; `NotFound` if there is no such model.

    >>> import mlxchat
    >>> for event in mlxchat.fine_tune(
    ...     source="quickstart", data=["chats.jsonl"], num_iterations=2, total_batch_size=256,
    ...     eval_every=0, sample_every=0, model_tag="tuned",
    ... ):
    ...     if isinstance(event, mlxchat.Saved):
    ...         print(event.step)
    2
    >>> mlxchat.load("tuned").conversational
    True
    """
    place = _home(home)
    chosen = _config(SftConfig, config, settings, resume, fresh, place)
    return _one_stream(
        lambda report: sft.run_fine_tuning(chosen, place, report, stop=stop, fresh=fresh)
    )


def reinforce(
    config: RlConfig | None = None,
    *,
    resume: str | None = None,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    home: str | Path | None = None,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Train a model by rewards for its own answers, or resume the run of the same name.

    It works as `pretrain` in every other way.

    Args:
        config: the settings as one object, in place of ``settings``.
        resume: the name of a saved run to resume with its own settings; ``settings`` then has only
            what may change, such as ``memory_limit``.
        fresh: set an earlier run of that name aside and train from scratch.
        stop: polled; return True to save and stop.
        home: where data, checkpoints and logs are; by default ``$MLXCHAT_HOME``.
        **settings: the fields of `RlConfig`, such as ``source="d4-sft"`` or ``task="spelling"``.

    Raises:
        ConfigError: at the call: a setting is unknown or out of bounds, or two do not go together;
            or the run to resume is of another stage. `NotFound` if there is no such run.
        MlxchatError: while iterating, as for `pretrain`; `NotFound` if there is no such model.

    >>> import mlxchat
    >>> for event in mlxchat.reinforce(
    ...     source="quickstart-sft", task="arithmetic", level=1, num_iterations=2, examples=2,
    ...     samples=2, max_tokens=8, eval_every=0, sample_every=0, model_tag="rewarded",
    ... ):
    ...     if isinstance(event, mlxchat.Rewarded):
    ...         print(event.step)
    1
    2
    >>> mlxchat.load("rewarded").conversational
    True
    """
    place = _home(home)
    chosen = _config(RlConfig, config, settings, resume, fresh, place)
    return _one_stream(
        lambda report: rl.run_reinforcement(chosen, place, report, stop=stop, fresh=fresh)
    )


def import_model(
    path: str | Path,
    name: str | None = None,
    *,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    softcap: float | None = None,
    conversational: bool | None = None,
    with_optimizer: bool = False,
    onto: str | Path | None = None,
    force: bool = False,
    home: str | Path | None = None,
) -> Model:
    """Import a model that another program trained, as a run that can be fine-tuned or continued.

    Supported are checkpoints of nanochat (``model_*.pt``), of the original mlxchat, which is
    zhubert's of October 2025 (``model_*.npz``), and directories for transformers or mlx-lm; with
    ``onto`` adapters of mlx-lm and PEFT. No code in the files is run.

    Args:
        path: the directory or file of the checkpoint.
        name: the name of the new run; by default the folder's.
        step: the step of the checkpoint to import from a directory; by default the newest.
        tokenizer: the file or folder of its tokenizer; by default where its program puts it.
        softcap: the bound of the logits; by default that of the version of nanochat's network whose
            tensors the checkpoint has.
        conversational: whether it was trained on conversations; by default judged by its folder.
        with_optimizer: whether to import the state of its optimizer too.
        onto: for an adapter, which takes none of the four before: the run, or the directory, of the
            model to put it on.
        force: put an adapter on another model than it is known to be of.
        home: where runs are; by default ``$MLXCHAT_HOME``.

    Raises:
        NotFound: there is no such file.
        CheckpointError: the model is damaged, of an unknown architecture, or would run code.
        ConfigError: the name is another run's, or is not a valid name.
    """
    path = expanded(path)
    options = {"step": step, "tokenizer": tokenizer, "softcap": softcap}
    if concerns_adapter(path, onto, force, **options, with_optimizer=with_optimizer or None):
        place = _home(home)
        base = catalog.find_model(place.stages, str(onto), None)
        adapter = open_adapter(path, base, conversational, force)
        run = new_run(place, name or adapter.name, adapter.conversational, "name")
        return load(import_adapter(run, adapter), home=home)
    tokenizer_path = None if tokenizer is None else expanded(tokenizer)
    foreign = importers.open_model(path, step, tokenizer_path, softcap, conversational)
    run = new_run(_home(home), name or foreign.name, foreign.conversational, "name")
    return load(importers.import_run(run, foreign, with_optimizer), home=home)


def _home(folder: str | Path | None) -> Home:
    if folder is None:
        return Home.from_environment()
    return Home(expanded(folder).absolute())


class _Reports:
    """Events that other threads report, until the run's own iterator passes them on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[object, Event] = {}

    def add(self, event: Event) -> None:
        """Keep an event; of a task's progress only the newest is kept."""
        key: object = event.task if isinstance(event, Progressed) else object()
        with self._lock:
            self._events.pop(key, None)
            self._events[key] = event

    def take(self) -> list[Event]:
        """Return what is kept, oldest first, and forget it."""
        with self._lock:
            events, self._events = list(self._events.values()), {}
        return events


def _one_stream(begin: Callable[[Report], Iterator[Event]]) -> Generator[Event, None, None]:
    """Yield the events of a run in one stream with those that it reports.

    Args:
        begin: starts the run, given what it reports to; called at the first iteration.
    """
    reports = _Reports()
    with closing(cast(Generator[Event, None, None], begin(reports.add))) as run:
        for event in run:
            yield from reports.take()
            yield event
        yield from reports.take()


def _config(
    kind: type[_Chosen],
    config: _Chosen | None,
    settings: dict[str, Any],
    resumed: str | None,
    fresh: bool,
    home: Home,
) -> _Chosen:
    """Return the settings of a run, given as one object, one by one, or by its name."""
    if resumed is not None and fresh:
        raise ConfigError(
            f"`resume={resumed}` resumes a run, and `fresh` starts from scratch.",
            "Leave one of them out.",
        )
    if config is None:
        if resumed is not None:
            settings = settings_to_resume(kind, resumed, home, settings)
        return validated(kind, settings)
    if not isinstance(config, kind):
        raise ConfigError(
            f"{config!r:.100} is not of type {kind.__name__}.",
            "Give settings by name, as in `depth=4`.",
        )
    if settings or resumed is not None:
        other = next(iter(settings), "resume")
        raise ConfigError(
            f"`{other}` cannot be combined with a {kind.__name__}, which already has all settings.",
            "Give one or the other.",
        )
    return config
