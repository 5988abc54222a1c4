"""A trained model as programs use it: generate, chat, serve, measure, quantize, save, export."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from math import isqrt
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

from mlxchat.checkpoint import copies, layout, store
from mlxchat.checkpoint.digests import model_digest
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.checkpoint.run_names import new_run
from mlxchat.config.inference import BaseEvalConfig, ChatSettings, Sampling, TextSettings
from mlxchat.config.serve import ServeConfig
from mlxchat.config.validate import validated
from mlxchat.engine.answer import Answer
from mlxchat.engine.cache import KVCache
from mlxchat.engine.chat import Chat
from mlxchat.engine.generate import generate
from mlxchat.engine.sampling import make_sampler
from mlxchat.errors import ConfigError, DataError, MlxchatError
from mlxchat.evaluate.core import CoreResult, evaluate_run
from mlxchat.evaluate.loss import bits_per_byte, lay_out_text
from mlxchat.home import Home, expanded
from mlxchat.interop import exporters
from mlxchat.interop.programs import PROGRAMS, GgufType, Program
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import copied
from mlxchat.model.quantization import Mode, Quantization
from mlxchat.model.quantized import formats_of
from mlxchat.model.size import LARGEST_ARRAY
from mlxchat.quantize import quantize
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Report
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlxchat.serve.server import Server

Precision = Literal["float32", "bfloat16", "float16"]


class Loss(NamedTuple):
    """The loss of a model on a text."""

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
        network: the `GPT`, with its weights as they are saved.
        tokenizer: the `Tokenizer` it was trained with.
        conversational: whether it was trained on conversations, so that it answers.

    From the first generated token on, two copies of the weights are kept, one as they are saved and
    one rearranged for decoding; arrays that are the same in both are shared.
    """

    def __init__(
        self, saved: SavedModel, history: History, home: Home, folder: Path | None = None
    ) -> None:
        self.network: GPT = saved.model
        self.tokenizer: Tokenizer = saved.tokenizer
        self.conversational: bool = saved.conversational
        self._base = saved.base
        self._history = history
        self._home = home
        self._folder = folder  # that it was loaded from; None of a changed copy

    @property
    def name(self) -> str:
        """The name of its run, or of its directory."""
        return self._history.tag

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
            max_tokens: the largest number of tokens to generate, at least 1. The text ends
                earlier at the end of the context, or where the model ends the document or answer.
            seed: the seed of the random draws; the same seed and prompt give the same text.
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
            raise ConfigError(
                f"The text has {len(ids):,} tokens; the model's context is "
                f"{self.config.sequence_len:,}.",
                f"Shorten it to {self.config.sequence_len - 1:,} tokens at most.",
            )
        wanted = validated(TextSettings, {"max_tokens": max_tokens, "seed": seed})
        chosen = validated(Sampling, sampling)
        return self._pieces(ids, min(wanted.max_tokens, room), wanted.seed, chosen)

    def chat(
        self,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        seed: int = 42,
        **sampling: Unpack[SamplingOptions],
    ) -> Chat:
        """Start a conversation; `Chat.say` returns an answer, `Chat.reply` streams its parts.

        `Chat.regenerate`, `Chat.undo` and `Chat.set` give another answer, take a message back, and
        change these settings.

        Args:
            system: instructions for the whole conversation, which the model reads at the beginning
                of the first message, as in nanochat.
            max_tokens: the largest number of tokens in one answer, at least 1.
            seed: the seed of the random draws.
            **sampling: as for `generate`.

        Raises:
            ConfigError: a value is out of bounds.

        >>> import mlxchat
        >>> chat = mlxchat.load("quickstart-sft").chat(temperature=0)
        >>> answer = chat.say("What does a cow say?")
        >>> [message.role for message in chat.messages]
        ['user', 'assistant']
        >>> chat.undo(), chat.messages
        ('What does a cow say?', ())
        """
        given = {"system": system, "max_tokens": max_tokens, "seed": seed, **sampling}
        return Chat(
            self._decoding,
            self.tokenizer,
            conversational=self.conversational,
            settings=validated(ChatSettings, given),
        )

    def serve(self, log: Callable[[str], None] = lambda line: None, **settings: Any) -> Server:
        """Serve the model to programs that speak OpenAI's API, from threads of its own.

        It needs the extra ``serve``. The server runs until its `close` is called or its context
        ends; `wait` waits for that.

        Args:
            log: gets a line for each request, without text of it, and the traceback of each failure
                of the model.
            **settings: the options of ``mlxchat serve``: the fields of `ServeConfig`, such as
                ``port=8000`` or ``slots=16``, and those of `Sampling`, which count where a request
                does not say.

        Raises:
            ConfigError: a setting is wrong, another program has the port, or other machines could
                reach the address without ``api_key`` or ``insecure``.
            BackendError: the extra is not installed.

        >>> import mlxchat, openai
        >>> model = mlxchat.load("quickstart-sft")
        >>> with model.serve(port=0) as server:
        ...     client = openai.OpenAI(base_url=server.url, api_key="none")
        ...     messages = [{"role": "user", "content": "What does a cow say?"}]
        ...     reply = client.chat.completions.create(model=model.name, messages=messages)
        >>> reply.choices[0].message.role
        'assistant'
        """
        from mlxchat.serve.server import ServedModel, bind, start

        sampling = {name: settings.pop(name) for name in Sampling.model_fields if name in settings}
        config = validated(ServeConfig, settings)
        served = ServedModel(
            name=self.name,
            tokenizer=self.tokenizer,
            context=self.config.sequence_len,
            conversational=self.conversational,
            sampling=validated(Sampling, sampling),
            system=config.system,
        )
        return start(self._decoding, [served], config, bind(config), log)

    def loss(self, text: str | Sequence[int]) -> Loss:
        """Measure how well the model predicts a text, per token and per byte.

        Args:
            text: the text, which follows ``<|bos|>``, or token ids, of which the first is given
                and the others are predicted. A text that is longer than the context is predicted
                in pieces, each from its own tokens only.

        Raises:
            DataError: the text is too short: there is nothing to predict.

        >>> import mlxchat
        >>> loss = mlxchat.load("quickstart").loss("The cow says moo.")
        >>> loss.nats_per_token > 0, loss.bits_per_byte > 0
        (True, True)
        """
        batches = lay_out_text([self._ids(text)], self.tokenizer.bos, self.config.sequence_len)
        try:
            measured = bits_per_byte(self.network.losses, batches, len(batches), self.tokenizer)
            *_, result = measured
        except DataError as error:
            raise DataError(
                "The text is too short: it has no text token after the first one.",
                "Use at least two tokens.",
            ) from error
        assert isinstance(result, Evaluated)
        return Loss(result.loss, result.bits_per_byte, result.tokens)

    def evaluate_core(
        self,
        tasks: Sequence[str] | None = None,
        *,
        max_per_task: int | None = None,
        bundle: str | Path | None = None,
        memory_limit: str | None = None,
        fresh: bool = False,
        report: Report = lambda event: None,
    ) -> CoreResult:
        """Measure CORE, nanochat's metric of base models, as `mlxchat eval base` does.

        The verdicts are kept in ``$MLXCHAT_HOME/base_eval``: what was interrupted resumes.

        Args:
            tasks: labels such as ``"arc_easy"``; by default all 22.
            max_per_task: the most examples of each task; by default all, about 91,000 together.
            bundle: nanochat's ``eval_bundle.zip``, or the folder it was unpacked to; by default
                that in ``$MLXCHAT_HOME``, which is fetched if it is missing.
            memory_limit: the memory to read examples in, such as ``"2GB"``, the model included;
                by default 90% of what is free.
            fresh: forget earlier verdicts on these tasks.
            report: called with `Progressed` events, from other threads too.

        Raises:
            ConfigError: there is no such task, or too few examples of it.
            NotFound: there is no such bundle.
            DataError: it is not the original, or cannot be fetched.
            LockedError: another process evaluates the same.
            MemoryLimitError: not even a single row of the context fits.

        >>> import mlxchat
        >>> result = mlxchat.load("quickstart").evaluate_core(["copa"], bundle="eval_bundle")
        >>> [score.task for score in result.scores], result.has_all_tasks
        (['copa'], False)
        """
        named = None if tasks is None else ",".join(tasks)
        given = {"tasks": named, "max_per_task": max_per_task, "bundle": bundle}
        given |= {"memory_limit": memory_limit, "core": True}
        config = validated(BaseEvalConfig, given)
        name, saved = f"{self.name}_{self._history.step:06d}", self._saved(self.network)
        model = self._digest()
        return evaluate_run(name, saved, config, self._home, report, fresh, model=model)[0]

    def logits(self, text: str | Sequence[int]) -> mx.array:
        """Return the logits of the next token after each token, (T, V) float32.

        Args:
            text: the text, which follows ``<|bos|>``, or token ids; T of them. They may be more
                than the context, as in nanochat: the model was not trained to read so far.

        Raises:
            ConfigError: it is too long for the largest array of MLX.

        >>> import mlxchat
        >>> model = mlxchat.load("quickstart")
        >>> ids = [model.tokenizer.bos, *model.tokenizer.encode("The cow")]
        >>> model.logits("The cow").shape == (len(ids), model.config.vocab_size)
        True
        """
        ids = self._ids(text)
        # The logits are (T, V), and the mask of a window is (T, T).
        most = min(LARGEST_ARRAY // self.config.padded_vocab_size, isqrt(LARGEST_ARRAY))
        if len(ids) > most:
            raise ConfigError(
                f"The text has {len(ids):,} tokens, which is too many for MLX's arrays.",
                f"Shorten it to {most:,} tokens at most.",
            )
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
        """Return a copy with fewer bits per weight, which cannot be trained.

        This model is unchanged. In the copy, an adapter is part of the weights.

        Args:
            bits: 2, 3, 4, 5, 6 or 8; by default 4, or what the mode has.
            group_size: weights that share a scale: 32, 64 or 128; by default 64.
            mode: ``"affine"``, or ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"``, whose bits and groups
                are fixed.
            mixed: give more bits to the layers whose errors cost most.

        Raises:
            ConfigError: there is no such quantization, or this model is quantized already.

        >>> import mlxchat
        >>> small = mlxchat.load("quickstart").quantize(8)
        >>> small.name
        'quickstart-8bit'
        """
        given = {"bits": bits, "group_size": group_size, "mode": mode, "mixed": mixed}
        chosen = validated(Quantization, given)
        if self._base is None and formats_of(self.network):
            raise ConfigError(
                f"{self.name} is quantized already.", "Use the model it was made from."
            )
        saved = self._whole()
        quantize(saved.model, chosen.formats(self.config))
        return self._changed(saved, chosen.name)

    def fuse(self, *, keep_quantized: bool = False) -> Model:
        """Return a copy in which the adapter is part of the weights.

        This model is unchanged. The copy can be trained further, and saved without its base.

        Args:
            keep_quantized: quantize the layers of a quantized base again, as they were, by which
                much of what the adapter has learned is lost; by default they become float32.

        Raises:
            ConfigError: there is no adapter on this model.

        >>> import mlxchat
        >>> whole = mlxchat.load("quickstart-style").fuse()
        >>> whole.name
        'quickstart-style-fused'
        """
        if self._base is None:
            raise ConfigError(f"{self.name} has no adapter.", "Use it as it is.")
        return self._changed(self._whole(dequantize=not keep_quantized), "fused")

    def save(self, to: str | Path | None = None) -> Path:
        """Save the model as a run of its own, and return its directory.

        mlx-lm loads the directory of a classic model as it is. What training needs to resume is
        not saved; unless it is quantized, the model can be trained further as ``source`` or
        ``init_from``. Of a model with an adapter only the adapter is saved.

        Args:
            to: a name, for `load` and the command line, or the path of a folder. By default the
                model's own name, which is free for a quantized copy, such as ``d4-8bit``, but taken
                for a model that was loaded by the name of its run.

        Raises:
            ConfigError: there is a run of that name, or it cannot be a name.
            LockedError: another process is saving there.
            DiskError: the disk is full or not writable.

        >>> import mlxchat
        >>> folder = mlxchat.load("quickstart").quantize(8).save("small")
        >>> mlxchat.load("small").name, mlxchat.load(folder).name
        ('small', 'small')
        """
        to = self.name if to is None else to
        if isinstance(to, Path) or Path(to).name != to:
            run = expanded(to).absolute()
        else:
            run = new_run(self._home, to, self.conversational, "to")
        with store.locked(run):
            if store.steps(run):
                raise ConfigError(f"There is already a model in {run}.", "Name another folder.")
            return copies.save_copy(
                run, self._history.step, self._saved(self.network), self._history
            )

    def export(
        self,
        to: Program,
        out: str | Path | None = None,
        *,
        dtype: Precision | None = None,
        quantize: GgufType | None = None,
    ) -> Path:
        """Write the model for another program, with its tokenizer and a model card.

        Args:
            to: ``"mlx-lm"``, ``"nanochat"``, or, for classic models only, ``"transformers"``,
                ``"gguf"`` (llama.cpp, Ollama and LM Studio; it needs the extra ``gguf``) or
                ``"peft"`` for the adapter on the model. The others get an adapter as part of the
                weights.
            out: a new folder; by default one here, such as ``d12-mlx-lm``.
            dtype: the type of the matrices, ``"float32"``, ``"bfloat16"`` or ``"float16"``; by
                default float32, or bfloat16 for a quantized model.
            quantize: in place of it, the type of the matrices of ``"gguf"``: ``"f32"``, ``"f16"``
                (the default), ``"bf16"``, ``"q8_0"``, ``"q5_1"``, ``"q5_0"``, ``"q4_1"`` or
                ``"q4_0"``. For mlx-lm, export what the method `quantize` returns.

        Returns:
            The folder.

        Raises:
            ConfigError: there is no such format or type.
            BackendError: the extra is not installed.
            CheckpointError: the program cannot run such a model, or the folder exists.
            LockedError: another process is writing that folder.
            DiskError: the disk is full or not writable.

        >>> import mlxchat, pathlib, tempfile
        >>> out = pathlib.Path(tempfile.mkdtemp()) / "cow"
        >>> folder = mlxchat.load("quickstart-sft").export("mlx-lm", out)
        >>> (folder / "model.safetensors").exists()
        True
        """
        if to not in PROGRAMS:
            raise ConfigError(
                f"There is no export format `to={to}`.", f"Use one of {', '.join(PROGRAMS)}."
            )
        if dtype is not None and dtype not in get_args(Precision):
            raise ConfigError(
                f"Matrices cannot be exported with `dtype={dtype}`.",
                f"Give one of {', '.join(get_args(Precision))}.",
            )
        if to == "mlx-lm" and quantize is not None:
            raise ConfigError(
                "`quantize` here only takes gguf's data types.",
                "For other formats, call the model's method `quantize` and export its result.",
            )
        quantized = self._base is None and bool(formats_of(self.network))
        folder = expanded(out or f"{self.name}-{to}").absolute()
        exporters.require_readable(
            to,
            self.config,
            quantized=quantized,
            adapted=self._base is not None,
            folder=folder,
            quantize=quantize,
        )
        precision = exporters.precision(to, dtype, quantized)
        copy = self._saved(copied(self.network))  # which exporting casts
        return exporters.write(to, folder, copy, self._history, precision, quantize=quantize).folder

    @cached_property
    def _decoding(self) -> GPT:
        """A copy of the network, prepared for decoding."""
        network = copied(self.network)
        network.prepare_for_inference()
        return network

    def _saved(self, network: GPT) -> SavedModel:
        return SavedModel(network, self.tokenizer, self.conversational, self._base)

    def _digest(self) -> str | None:
        """Return the `model_digest` of its directory; None if the model there is another one.

        Whoever uses the model may have changed its weights.
        """
        if self._folder is None:
            return None
        with suppress(MlxchatError):
            digest = model_digest(self._folder)
            return digest if layout.is_saved_in(self._folder, self._saved(self.network)) else None
        return None

    def _whole(self, dequantize: bool = True) -> SavedModel:
        """Return a copy of the model, with the adapter as a part of the weights if it has one."""
        copy = self._saved(copied(self.network))
        return copy if self._base is None else copies.fused(copy, dequantize)

    def _changed(self, saved: SavedModel, kind: str) -> Model:
        """Return a changed copy, which is called after this model and the kind of change."""
        tag = f"{self.name}-{kind}"
        history = self._history.unmeasured().model_copy(update={"tag": tag})
        return Model(saved, history, self._home)

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        """Return the ids of a text, after ``<|bos|>``, or the given ids once they are checked."""
        if isinstance(text, str):
            return [self.tokenizer.bos, *self.tokenizer.encode(text)]
        try:
            ids = [index(token) for token in text]
        except TypeError:
            ids = []
        if not ids or not all(0 <= token < self.config.vocab_size for token in ids):
            raise ConfigError(
                "These are not valid token ids of the model.",
                f"Give at least one, each from 0 to {self.config.vocab_size - 1:,}.",
            )
        return ids

    def _pieces(
        self, ids: Sequence[int], max_tokens: int, seed: int, sampling: Sampling
    ) -> Generator[str, None, None]:
        stop = frozenset({self.tokenizer.bos, self.tokenizer.special(ASSISTANT_END)})
        answer = Answer(self.tokenizer)
        tokens = generate(
            self._decoding,
            ids,
            KVCache(self.config),
            make_sampler(sampling),
            key=mx.random.key(seed),
            stop=stop,
            max_tokens=max_tokens,
            repetition_penalty=sampling.repetition_penalty,
        )
        with closing(tokens):
            for token in tokens:
                if piece := answer.take(token):
                    yield piece.text
