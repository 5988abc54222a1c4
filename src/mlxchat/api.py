"""The public functions and `Model`: what `import mlxchat` offers beside its classes.

The command line does the same with the same parts. Here nothing is printed, and everything that
goes wrong for a reason that a user can mend is an `MlxchatError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ValidationError

from mlxchat import runtime
from mlxchat.checkpoint import catalog, history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import Sampling
from mlxchat.config.pretrain import IN_WORDS, PretrainConfig
from mlxchat.config.run import NAME
from mlxchat.config.sft import SftConfig
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.engine.cache import Cache
from mlxchat.engine.chat import Answer, Chat
from mlxchat.engine.generate import generate
from mlxchat.errors import ConfigError
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.home import Home
from mlxchat.interop import exporters, importers
from mlxchat.interop.exporters import Program
from mlxchat.interop.importers import optimizer as importing
from mlxchat.interop.importers.model import network as read_network
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Mode, Quantization
from mlxchat.model.quantized import formats_of, quantize_layers
from mlxchat.quantize import quantize, save
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Event, Progressed, Report
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer
from mlxchat.train import pretrain as pretraining
from mlxchat.train import sft
from mlxchat.train.resume import new_optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Loss", "Model", "fine_tune", "import_model", "load", "pretrain"]

Settings = TypeVar("Settings", bound=BaseModel)


def load(source: str | Path | None = None, *, step: int | None = None) -> Model:
    """Load a trained model.

    Args:
        source: the name of a run, or the directory of a model or of a run. By default the run
            that was saved last.
        step: which of the run's saved steps; by default the newest.

    Raises:
        NotFound: there is no such model; the message lists the ones there are.
        CheckpointError: a file of the model is missing or damaged.

    >>> import mlxchat
    >>> model = mlxchat.load("quickstart-sft")
    >>> model.name, model.conversational
    ('quickstart-sft', True)
    """
    home = Home.from_environment()
    folder = catalog.find_model(home.stages, None if source is None else str(source), step)
    runtime.bound_buffer_cache()
    saved = layout.read_model(folder, runtime.machine().compute_dtype)
    return Model(saved, history.read(folder), home)


def pretrain(
    config: PretrainConfig | None = None,
    *,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Pretrain a model, or resume the run of the same name; iterate over it to make it happen.

    One stream carries everything: the steps, evaluations, samples and checkpoints of the run, its
    notes, and the progress of downloads that other threads make. Of the latter the newest comes
    before the next event of the run.

    To end early, let ``stop`` return True: the run saves and ends. Leaving the loop (``break``,
    Ctrl-C, or ``close()`` of the iterator) saves nothing more; the run can be resumed from its
    newest checkpoint by the same call.

    Args:
        config: the settings as one object, in place of ``settings``.
        fresh: set an earlier run of that name aside and train from scratch.
        stop: called again and again; returns whether to save and end.
        **settings: the fields of `PretrainConfig`, such as ``depth=4`` or ``dataset="builtin"``.

    Raises:
        ConfigError: a setting is unknown, out of bounds, or does not go with the others or with
            the run to resume.
        MlxchatError: while iterating, as the error messages say.

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
    chosen, home = _config(PretrainConfig, config, settings), Home.from_environment()
    return _one_stream(
        lambda report: pretraining.pretrain(chosen, home, report, stop=stop, fresh=fresh)
    )


def fine_tune(
    config: SftConfig | None = None,
    *,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[Event, None, None]:
    """Fine-tune a model on conversations, or resume the run of the same name.

    As `pretrain` in every other way.

    Args:
        config: the settings as one object, in place of ``settings``.
        fresh: set an earlier run of that name aside and begin from scratch.
        stop: called again and again; returns whether to save and end.
        **settings: the fields of `SftConfig`, such as ``source="d4"`` or ``data=["chats.jsonl"]``.

    Raises:
        ConfigError: a setting is unknown, out of bounds, or does not go with the others or with
            the run to resume.
        NotFound: there is no such model to fine-tune.
        MlxchatError: while iterating, as the error messages say.

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
    chosen, home = _config(SftConfig, config, settings), Home.from_environment()
    return _one_stream(lambda report: sft.fine_tune(chosen, home, report, stop=stop, fresh=fresh))


def import_model(
    path: str | Path,
    name: str | None = None,
    *,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    softcap: float | None = None,
    conversational: bool | None = None,
    with_optimizer: bool = False,
) -> Model:
    """Import a model that another program trained, as a run that can be fine-tuned or continued.

    These are checkpoints of nanochat (``model_*.pt``), of the original mlxchat
    (``model_*.npz``), and directories for transformers or mlx-lm. Nothing in the files is run.

    Args:
        path: the directory or file of the checkpoint.
        name: the name of the new run; by default the folder's.
        step: which of a directory's checkpoints; by default the newest.
        tokenizer: the file or folder of its tokenizer; by default where its program puts it.
        softcap: the bound of the logits; by default the era's.
        conversational: whether it was trained on conversations; by default as the folder says.
        with_optimizer: import the state of its optimizer too.

    Raises:
        NotFound: there is no such file.
        CheckpointError: the model is damaged, of another architecture, or asks for more than data.
        ConfigError: the name is another run's, or no name.
    """
    home = Home.from_environment()
    tokenizer_path = None if tokenizer is None else Path(tokenizer)
    foreign = importers.open_model(Path(path), step, tokenizer_path, softcap, conversational)
    run = _new_run(home, name or foreign.name, foreign.conversational)
    file = importing.find(foreign.path, foreign.step, foreign.config) if with_optimizer else None
    runtime.bound_buffer_cache()
    model, state = read_network(foreign), None
    if file:
        expected = {name: array.shape for name, array in new_optimizer(model).state.items()}
        state = importing.read(file, foreign.config, expected)
    return load(importers.save(run, foreign, model, state))


class Loss(NamedTuple):
    """How well a model predicts a text."""

    nats_per_token: float  # mean cross entropy
    bits_per_byte: float  # comparable between tokenizers
    tokens: int  # that were predicted


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments that choose the next token; `Sampling` has the defaults."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float


class Model:
    """A trained model with its tokenizer, as `load` returns it.

    Attributes:
        network: the `GPT`, its weights as they are saved.
        tokenizer: the `Tokenizer` it was trained with.
        conversational: whether it was trained on conversations, so that it answers.

    The weights are held once for saving and once, from the first token on, as decoding wants them;
    arrays that are the same in both are shared.
    """

    def __init__(self, saved: SavedModel, about: History, home: Home) -> None:
        self.network: GPT = saved.model
        self.tokenizer: Tokenizer = saved.tokenizer
        self.conversational: bool = saved.conversational
        self._about = about
        self._home = home

    @property
    def name(self) -> str:
        """The name of its run, or of its directory."""
        return self._about.tag

    @property
    def config(self) -> GPTConfig:
        """The shape of the network."""
        return self.network.config

    def __repr__(self) -> str:
        kind = "conversational" if self.conversational else "base"
        return (
            f"<mlxchat.Model {self.name}: {self.config.arch}, depth {self.config.n_layer}, {kind}>"
        )

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        seed: int = 42,
        **sampling: Unpack[SamplingOptions],
    ) -> str:
        """Continue a text.

        A model that was trained on conversations continues it too; `chat` has it answer.

        Args:
            prompt: the text, which follows ``<|bos|>``, or token ids as they are.
            max_tokens: the most tokens to generate; they end earlier at the end of the context, or
                where the model ends the document or its answer.
            seed: of the random draws; the same seed and prompt give the same text.
            **sampling: ``temperature`` (0.6; 0 takes the likeliest token), ``top_k`` (50),
                ``top_p``, ``min_p`` and ``repetition_penalty``.

        Raises:
            ConfigError: the prompt leaves no room in the context, or a value is out of bounds.

        >>> import mlxchat
        >>> model = mlxchat.load("quickstart")
        >>> text = model.generate("The cow", max_tokens=20, temperature=0)
        >>> text == model.generate("The cow", max_tokens=20, temperature=0)
        True
        """
        return "".join(self.stream(prompt, max_tokens=max_tokens, seed=seed, **sampling))

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        seed: int = 42,
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[str, None, None]:
        """Continue a text, piece by piece as it is generated; pieces are whole characters.

        Arguments and errors are those of `generate`.

        >>> import mlxchat
        >>> model = mlxchat.load("quickstart")
        >>> pieces = model.stream("The cow", max_tokens=20, seed=1)
        >>> "".join(pieces) == model.generate("The cow", max_tokens=20, seed=1)
        True
        """
        ids = self._ids(prompt)
        room = self.config.sequence_len - len(ids)
        if room < 1:
            raise self._too_long(ids)
        chosen = _settings(Sampling, dict(sampling))
        return self._pieces(ids, min(max_tokens, room), seed, chosen)

    def chat(
        self, *, max_tokens: int = 512, seed: int = 42, **sampling: Unpack[SamplingOptions]
    ) -> Chat:
        """Start a conversation; `Chat.reply` yields the pieces of an answer.

        Args:
            max_tokens: the most tokens in one answer.
            seed: of the random draws.
            **sampling: as for `generate`.

        >>> import mlxchat
        >>> chat = mlxchat.load("quickstart-sft").chat(temperature=0)
        >>> answer = "".join(part.text for part in chat.reply("What does a cow say?"))
        >>> [message.role for message in chat.messages]
        ['user', 'assistant']
        """
        return Chat(
            self._decoding,
            self.tokenizer,
            conversational=self.conversational,
            sampling=_settings(Sampling, dict(sampling)),
            seed=seed,
            max_tokens=max_tokens,
        )

    def loss(self, text: str | Sequence[int]) -> Loss:
        """Measure how well the model predicts a text, per token and per byte.

        Args:
            text: the text, which follows ``<|bos|>``, or token ids, of which the first is given
                and the others are predicted. What is longer than the context is predicted in
                pieces, each from its own tokens only.

        Raises:
            DataError: there is nothing to predict.

        >>> import mlxchat
        >>> loss = mlxchat.load("quickstart").loss("The cow says moo.")
        >>> loss.nats_per_token > 0, loss.bits_per_byte > 0
        (True, True)
        """
        ids, context = np.array(self._ids(text), np.int32), self.config.sequence_len
        pieces = [
            Batch(ids[None, i : i + context][:, : len(ids) - 1 - i], targets, LoaderState())
            for i in range(0, len(ids) - 1, context)
            for targets in [ids[None, i + 1 : i + 1 + context]]
        ]
        events = list(bits_per_byte(self.network.losses, pieces, len(pieces), self.tokenizer))
        result = cast(Evaluated, events[-1])
        return Loss(result.loss, result.bits_per_byte, result.tokens)

    def logits(self, text: str | Sequence[int]) -> mx.array:
        """Return the logits of the next token after each token, (T, V) float32.

        Args:
            text: the text, which follows ``<|bos|>``, or token ids; T of them.

        Raises:
            ConfigError: it is longer than the context.

        >>> import mlxchat
        >>> model = mlxchat.load("quickstart")
        >>> ids = [model.tokenizer.bos, *model.tokenizer.encode("The cow")]
        >>> model.logits("The cow").shape == (len(ids), model.config.vocab_size)
        True
        """
        ids = self._ids(text)
        if len(ids) > self.config.sequence_len:
            raise self._too_long(ids)
        logits: mx.array = self.network(mx.array([ids]))[0]
        return logits

    def quantize(
        self,
        bits: int | None = None,
        *,
        group_size: int | None = None,
        mode: Mode = "affine",
        mixed: bool = False,
    ) -> Model:
        """Return a copy with fewer bits per weight, which cannot be trained; this one stays.

        Args:
            bits: 2, 3, 4, 5, 6 or 8; by default 4, or what the mode has.
            group_size: weights that share a scale: 32, 64 or 128; by default 64.
            mode: ``"affine"``, or ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"``, whose bits and groups
                are fixed.
            mixed: give the layers whose errors cost most more bits.

        Raises:
            ConfigError: there is no such quantization, or this model is quantized already.

        >>> import mlxchat
        >>> small = mlxchat.load("quickstart").quantize(8)
        >>> small.name
        'quickstart-8bit'
        """
        given = {"bits": bits, "group_size": group_size, "mode": mode, "mixed": mixed}
        chosen = _settings(Quantization, given)
        if formats_of(self.network):
            raise ConfigError(
                f"{self.name} is quantized already.", "Load the model it was made of."
            )
        network = _copy(self.network)
        quantize(network, chosen.formats(self.config))
        tag = f"{self.name}-{chosen.name}"
        about = self._about.model_copy(update={"tag": tag, "bits_per_byte": None})
        return Model(SavedModel(network, self.tokenizer, self.conversational), about, self._home)

    def save(self, to: str | Path | None = None) -> Path:
        """Save the model as a run of its own, and return its directory.

        mlx-lm loads the directory of a classic model as it is. What training needs to resume is
        not saved; the model can be trained further as ``source`` or ``init_from``.

        Args:
            to: a name, for `load` and the command line, or the path of a folder. By default the
                model's own name.

        Raises:
            ConfigError: there is a run of that name, or it cannot be a name.
            DiskError: the disk is full or not writable.

        >>> import mlxchat
        >>> folder = mlxchat.load("quickstart").quantize(8).save("small")
        >>> mlxchat.load("small").name, mlxchat.load(folder).name
        ('small', 'small')
        """
        to = self.name if to is None else to
        if isinstance(to, Path) or Path(to).name != to:
            run = Path(to).expanduser().absolute()
            if store.steps(run):
                raise ConfigError(f"There is a model in {run} already.", "Name another folder.")
        else:
            run = _new_run(self._home, to, self.conversational)
        return save(run, self._about.step, self._saved(self.network), self._about)

    def export(
        self,
        to: Program,
        out: str | Path | None = None,
        *,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> Path:
        """Write the model for another program, with its tokenizer and a model card.

        Args:
            to: ``"mlx-lm"``, ``"transformers"`` (classic models only) or ``"nanochat"``.
            out: a new folder; by default one here, such as ``d12-mlx-lm``.
            dtype: of the matrices; by default float32, of a quantized model bfloat16.

        Returns:
            The folder.

        Raises:
            CheckpointError: that program cannot run such a model, or the folder exists.
            DiskError: the disk is full or not writable.

        >>> import mlxchat, pathlib, tempfile
        >>> out = pathlib.Path(tempfile.mkdtemp()) / "cow"
        >>> folder = mlxchat.load("quickstart-sft").export("mlx-lm", out)
        >>> (folder / "model.safetensors").exists()
        True
        """
        quantized = bool(formats_of(self.network))
        folder = Path(out or f"{self.name}-{to}").expanduser().absolute()
        exporters.require_readable(to, self.config, quantized, folder)
        precision = getattr(mx, dtype or ("bfloat16" if quantized else "float32"))
        copy = self._saved(_copy(self.network))  # which exporting casts
        return exporters.write(to, folder, copy, self._about, precision).folder

    @cached_property
    def _decoding(self) -> GPT:
        """The network as decoding wants it."""
        network = _copy(self.network)
        network.ready_to_infer()
        return network

    def _saved(self, network: GPT) -> SavedModel:
        return SavedModel(network, self.tokenizer, self.conversational)

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        """Return token ids; of a text, after ``<|bos|>``."""
        if isinstance(text, str):
            return [self.tokenizer.bos, *self.tokenizer.encode(text)]
        ids = list(text)
        if not ids or not all(0 <= token < self.config.vocab_size for token in ids):
            raise ConfigError(
                "These are no token ids of the model.",
                f"Give at least one, each from 0 to {self.config.vocab_size - 1:,}.",
            )
        return ids

    def _too_long(self, ids: Sequence[int]) -> ConfigError:
        context = self.config.sequence_len
        return ConfigError(
            f"The text has {len(ids):,} tokens; the model's context is {context:,}.",
            f"Shorten it to fewer than {context:,} tokens.",
        )

    def _pieces(
        self, ids: Sequence[int], max_tokens: int, seed: int, sampling: Sampling
    ) -> Generator[str, None, None]:
        stop = frozenset({self.tokenizer.bos, self.tokenizer.special(ASSISTANT_END)})
        answer = Answer(self.tokenizer)
        tokens = generate(
            self._decoding,
            ids,
            Cache(self.config),
            sampling,
            mx.random.key(seed),
            stop=stop,
            max_tokens=max_tokens,
        )
        with closing(tokens):
            for token in tokens:
                if piece := answer.take(token):
                    yield piece.text


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
    """Return the events of a run in one stream with those that it reports.

    Args:
        begin: starts the run, given what it reports to.
    """
    reports = _Reports()
    run = cast(Generator[Event, None, None], begin(reports.add))

    def events() -> Generator[Event, None, None]:
        with closing(run):
            for event in run:
                yield from reports.take()
                yield event
            yield from reports.take()

    return events()


def _config(kind: type[Settings], config: Settings | None, settings: dict[str, Any]) -> Settings:
    """Return the settings of a run, given as one object or one by one."""
    if config is None:
        return _settings(kind, settings)
    if not isinstance(config, kind):
        raise ConfigError(
            f"{config!r:.100} is no {kind.__name__}.",
            "Give settings by their names, as in `depth=4`.",
        )
    if settings:
        raise ConfigError(
            f"`{next(iter(settings))}` does not go with a {kind.__name__}, which has all settings.",
            "Give one or the other.",
        )
    return config


def _settings(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """Validate settings.

    Raises:
        ConfigError: one is unknown, or its value is not one that it can have.
    """
    for name in given.keys() - kind.model_fields.keys():
        nearest = get_close_matches(name, kind.model_fields, 1)
        raise ConfigError(
            f"There is no setting `{name}`.",
            f"Did you mean `{nearest[0]}`?"
            if nearest
            else f"There are: {', '.join(kind.model_fields)}.",
        )
    try:
        return kind(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ConfigError(f"{fault['msg']}.") from error
        name, reason = str(fault["loc"][0]), fault["msg"][:1].lower() + fault["msg"][1:]
        if fault["type"] == "string_pattern_mismatch":
            reason = IN_WORDS[fault["ctx"]["pattern"]]
        raise ConfigError(
            f"`{name}={given.get(name)}`: {reason}.",
            f"`{name}`: {kind.model_fields[name].description}",
        ) from error


def _new_run(home: Home, name: str, conversational: bool) -> Path:
    """Return the folder of a new run, of the stage that its model has come to.

    Raises:
        ConfigError: the name cannot be a folder's, or is another run's.
    """
    if not fullmatch(NAME, name):
        raise ConfigError(f"{name!a} cannot be the name of a run.", f"Use {IN_WORDS[NAME]}.")
    if any(store.steps(stage / name) for stage in home.stages):
        raise ConfigError(
            f"There is a run called {name} already: {home.run(name)}.", "Choose another name."
        )
    return (home.finetuned if conversational else home.runs) / name


def _copy(network: GPT) -> GPT:
    """Return a network with the same arrays, to change without changing the first."""
    copy = GPT(network.config, network.dtype)
    quantize_layers(copy, formats_of(network))
    copy.load_weights(list(network.named_parameters().items()))
    return copy
