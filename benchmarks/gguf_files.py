"""An exported GGUF file in llama.cpp, beside the same model here: values, tokens, answers, speed.

    python benchmarks/gguf_files.py values MODEL --text held_out.parquet
    python benchmarks/gguf_files.py tokens TOKENIZER --text documents.parquet
    python benchmarks/gguf_files.py chat MODEL --ask "What does a cow say?"
    python benchmarks/gguf_files.py speed --depth 12

MODEL is a model's directory, TOKENIZER a folder with tokenizer.json, or nanochat's tokenizer.pkl.
``values`` compares raw logits and 50 greedy tokens, and measures bits per byte, in llama.cpp
without the soft cap and here with it and without. ``tokens`` encodes documents in both. ``chat``
has both answer a question, greedily. ``speed`` reads a prompt and decodes with random weights, in
turns.

llama-cpp-python is built from source, in minutes:

    pip install gguf cmake ninja
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rounds

from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig

NEW_TOKENS = 50
PACKAGES = ("mlx", "gguf", "llama-cpp-python")
ALL_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
OURS = "mlxchat"
PROMPT_TOKENS, DECODED_TOKENS = 256, 32  # of a repetition in `speed`
F32_CACHE = 0  # ggml's number of the type


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    values = commands.add_parser("values", help="logits, greedy tokens, bits per byte")
    values.add_argument("model", type=Path)
    values.add_argument("--text", type=Path, required=True, help="parquet with a column text")
    values.add_argument("--rows", type=rounds.positive, default=16, help="of a context length")
    values.add_argument("--types", nargs="+", choices=ALL_TYPES, default=list(ALL_TYPES))
    tokens = commands.add_parser("tokens", help="the tokenizer over documents")
    tokens.add_argument("tokenizer", type=Path)
    tokens.add_argument("--text", type=Path, required=True, nargs="+")
    tokens.add_argument("--documents", type=rounds.positive, default=2000)
    chat = commands.add_parser("chat", help="an answer")
    chat.add_argument("model", type=Path)
    chat.add_argument("--ask", default="What does a cow say?")
    speed = commands.add_parser("speed", help="reading and decoding, in turns")
    speed.add_argument("--depth", type=int, default=12)
    speed.add_argument("--vocab-size", type=int, default=65_536)
    speed.add_argument("--models", type=Path, help=argparse.SUPPRESS)  # for the workers
    rounds.add_options(speed, WORKS)
    given = parser.parse_args()
    if given.command == "speed":
        measure_speed(given)
    else:
        {"values": print_values, "tokens": print_tokens, "chat": print_chat}[given.command](given)


# ==== Files ====


@contextmanager
def exported(saved: Any, quantize: str) -> Iterator[Path]:
    """The GGUF file of a model, until the ``with`` block ends."""
    from mlxchat.checkpoint.history import History
    from mlxchat.evaluate.temperature import NearestTemperatures
    from mlxchat.interop import exporters
    from mlxchat.runtime import mx

    unneeded = NearestTemperatures(usual=1, one=1, positions=0, text="no text")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        history = History(tag="model", step=0)
        exporters.write(
            "gguf", folder, saved, history, mx.float32, quantize=quantize, temperatures=unneeded
        )
        [file] = folder.glob("*.gguf")
        yield file


def opened(file: Path, **settings: Any) -> Any:
    """The file in llama.cpp.

    Raises:
        MlxchatError: llama-cpp-python is not installed.
    """
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise MlxchatError(
            f"llama.cpp cannot be imported ({error}).", "Build it: see the top of this file."
        ) from error
    return Llama(str(file), verbose=False, n_gpu_layers=0, **settings)


def read(folder: Path) -> Any:
    """The model in a directory, in float32."""
    from mlxchat.checkpoint.layout import read_model
    from mlxchat.runtime import mx

    return read_model(folder, mx.float32)


def documents(paths: Sequence[Path]) -> Iterator[str]:
    """The texts of parquet files."""
    import pyarrow.parquet as pq

    for path in paths:
        yield from pq.read_table(path, columns=["text"])["text"].to_pylist()


# ==== Values ====


def print_values(given: argparse.Namespace) -> None:
    """Compare logits, greedy tokens and bits per byte."""
    from mlxchat.evaluate.loss import lay_out_text
    from mlxchat.evaluate.temperature import nearest_temperature
    from mlxchat.runtime import mx

    saved = read(given.model)
    config, tokenizer = saved.model.config, saved.tokenizer
    texts = islice(documents([given.text]), given.rows)
    ids = [[tokenizer.bos, *tokenizer.encode(text)][: config.sequence_len + 1] for text in texts]
    batches = lay_out_text(ids, tokenizer.bos, config.sequence_len)
    reference = [uncapped(saved.model, row[:-1]) for row in ids]
    ours = written(saved.model, ids[0][:16])
    rows = [
        {"where": "here, with the cap", "bits per byte": bits(saved.model.losses, batches, saved)},
        {
            "where": "here, without it",
            "bits per byte": bits(
                lambda x, y: nats(mx.array(uncapped(saved.model, x[0].tolist())), y), batches, saved
            ),
        },
    ]
    nearest = nearest_temperature(mx.array(np.concatenate(reference)), config.softcap, 1.0)
    rows.append(
        {
            "where": f"here, without it, at temperature {nearest:.2f}",
            "bits per byte": bits(
                lambda x, y: nats(mx.array(uncapped(saved.model, x[0].tolist())) / nearest, y),
                batches,
                saved,
            ),
        }
    )
    for kind in given.types:
        print(kind, file=sys.stderr, flush=True)
        with exported(saved, kind) as file:
            size = file.stat().st_size
            for cache in ("f32", "f16") if kind in ("f32", "f16") else ("f16",):
                types = {"type_k": F32_CACHE, "type_v": F32_CACHE} if cache == "f32" else {}
                model = opened(file, n_ctx=config.sequence_len, logits_all=True, **types)
                found = [raw_logits(model, row[:-1]) for row in ids]
                rows.append(
                    {
                        "where": f"llama.cpp, {kind.upper()}, cache {cache.upper()}",
                        "bits per byte": bits(
                            lambda x, y, m=model: nats(mx.array(raw_logits(m, x[0].tolist())), y),
                            batches,
                            saved,
                        ),
                        "MB": f"{size / 1e6:.1f}",
                        **differences(found, reference),
                        f"greedy, of {NEW_TOKENS}": str(agreeing(ours, greedy(model, ids[0][:16]))),
                    }
                )
                del model
    columns = list(rows[-1])
    print(f"{rounds.circumstances(str(given.model), saved)}\n")
    print(rounds.table([{name: row.get(name, "") for name in columns} for row in rows]))


def uncapped(model: Any, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Our logits before the soft cap, (T, V)."""
    from mlxchat.runtime import mx

    logits = model.lm_head(model.features(mx.array([list(ids)])))[0]
    return np.array(logits[:, : model.config.vocab_size])


def raw_logits(model: Any, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """llama.cpp's logits, (T, V)."""
    model.reset()
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)], np.float32)


def nats(logits: Any, targets: Any) -> Any:
    """The cross entropy of raw logits, (T, V), at targets, (1, T); 0 where the target is -1."""
    from mlxchat.runtime import mx

    each = mx.logsumexp(logits, axis=-1)
    flat = mx.maximum(targets[0], 0)
    each = each - mx.take_along_axis(logits, flat[:, None], axis=-1)[:, 0]
    return mx.where(targets[0] >= 0, each, 0)[None]


def bits(losses: Callable[..., Any], batches: Any, saved: Any) -> str:
    """Bits per byte, from the cross entropies of each row."""
    from mlxchat.data.loader import Batch
    from mlxchat.evaluate.loss import bits_per_byte

    rows = [
        Batch(batch.ids[i : i + 1], batch.targets[i : i + 1], batch.state)
        for batch in batches
        for i in range(len(batch.ids))
    ]
    *_, result = bits_per_byte(losses, rows, len(rows), saved.tokenizer)
    return f"{result.bits_per_byte:.4f}"


def differences(found: Sequence[Any], reference: Sequence[Any]) -> dict[str, str]:
    """How far logits are apart, and how often the likeliest token is the same."""
    pairs = list(zip(found, reference, strict=True))
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    same = [a.argmax(-1) == b.argmax(-1) for a, b in pairs]
    return {
        "logits differ by": f"{largest:.1e}",
        "likeliest the same": f"{np.concatenate(same).mean():.2%}",
    }


def written(model: Any, ids: Sequence[int]) -> list[int]:
    """Our greedy tokens."""
    from mlxchat.engine.cache import KVCache
    from mlxchat.engine.generate import generate

    cache = KVCache(model.config)
    return list(generate(model, list(ids), cache, stop=frozenset(), max_tokens=NEW_TOKENS))


def greedy(model: Any, ids: Sequence[int]) -> list[int]:
    """llama.cpp's greedy tokens."""
    model.reset()
    tokens, new = list[int](), list(ids)
    for _ in range(NEW_TOKENS):
        model.eval(new)
        new = [int(model.scores[model.n_tokens - 1].argmax())]
        tokens += new
    return tokens


def agreeing(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return same.index(False) if False in same else len(same)


# ==== Tokens ====


def print_tokens(given: argparse.Namespace) -> None:
    """Compare the tokens of documents."""
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.interop.nanochat_files import read_tokenizer
    from mlxchat.model.gpt import GPT
    from mlxchat.tokenizer.bpe import Tokenizer

    pickled = given.tokenizer.suffix == ".pkl"
    tokenizer = (read_tokenizer if pickled else Tokenizer.load)(given.tokenizer)
    config = GPTConfig(
        sequence_len=32, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1,
        n_embd=32,
    )  # fmt: skip
    same = long_numbers = other = 0
    texts = list(islice(documents(given.text), given.documents))
    with exported(SavedModel(GPT(config), tokenizer, False), "q8_0") as file:
        model = opened(file, vocab_only=True)
        for text in texts:
            ours = tokenizer.encode(text)
            theirs = model.tokenize(text.encode(), add_bos=False, special=False)
            if ours == theirs:
                same += 1
            elif re.search(r"\d{3}", text):
                long_numbers += 1
            else:
                other += 1
    print(
        f"{tokenizer.vocab_size:,} tokens, {len(texts):,} documents: {same:,} the same, "
        f"{long_numbers:,} differ and have a number of three or more digits, {other:,} differ "
        f"otherwise; {rounds.listed(*PACKAGES)}"
    )


# ==== Chat ====


def print_chat(given: argparse.Namespace) -> None:
    """Have both answer a question."""
    from mlxchat.config.inference import ChatSettings
    from mlxchat.engine.chat import Chat

    saved = read(given.model)
    with exported(saved, "f16") as file:
        model = opened(file, n_ctx=saved.model.config.sequence_len)
        messages = [{"role": "user", "content": given.ask}]
        answer = model.create_chat_completion(messages, temperature=0.0, max_tokens=64)
    choice = answer["choices"][0]
    saved.model.prepare_for_inference()
    settings = ChatSettings(temperature=0, max_tokens=64)
    chat = Chat(saved.model, saved.tokenizer, conversational=True, settings=settings)
    print(f"llama.cpp: {choice['message']['content']} ({choice['finish_reason']})")
    print(f"mlxchat:   {chat.say(given.ask)}")


# ==== Speed ====


def measure_speed(given: argparse.Namespace) -> None:
    """Measure in turns and print, or be one of the programs."""
    if given.worker:
        rounds.serve(partial(WORKS[given.worker], given.models))
        return
    config = GPTConfig.from_depth(given.depth, given.vocab_size, 2048)
    with tempfile.TemporaryDirectory() as name:
        kinds = {program.partition(" ")[2] for program in given.programs} - {"float32"}
        write_random_models(Path(name), config, kinds)
        measured = rounds.measure(given, f"--models={name}")
    if given.json:
        print(json.dumps(rounds.everything(given, measured, PACKAGES)))
        return
    first = measured[0]
    rows = [
        {
            "program": program.name,
            "reads, tokens/s": f"{program.facts['read']:,.0f}",
            "decodes, tokens/s": f"{program.facts['decode']:,.1f}",
            f"{first.name} / it": f"{rounds.ratio(first.speeds(1), program.speeds(1)):.2f}",
        }
        for program in measured
    ]
    print(
        f"Classic d{config.n_layer}, vocabulary {config.vocab_size:,}, a prompt of {PROMPT_TOKENS} "
        f"tokens, {DECODED_TOKENS} decoded; {len(first.seconds)} rounds, {given.threads} threads; "
        f"{rounds.listed(*PACKAGES)}.\n"
    )
    print(rounds.table(rows))


def write_random_models(folder: Path, config: GPTConfig, kinds: set[str]) -> None:
    """Write a random model as mlxchat saves it, and as a GGUF file of each type."""
    from decoding import write_random_model

    write_random_model(folder, config)
    saved = read(folder)
    for kind in sorted(kinds):
        print(f"writing {kind}", file=sys.stderr, flush=True)
        with exported(saved, kind.lower()) as file:
            file.rename(folder / f"{kind}.gguf")


Halves = tuple[Callable[[], None], Callable[[], None]]
"""Functions that read a prompt, and decode after it."""


def timed(halves: Halves) -> rounds.Work:
    """Work whose seconds are those of both halves; the facts are the speed of each."""
    read_prompt, decode = halves
    reading, decoding = list[float](), list[float]()

    def once() -> float:
        begun = time.perf_counter()
        read_prompt()
        middle = time.perf_counter()
        decode()
        ended = time.perf_counter()
        reading.append(middle - begun)
        decoding.append(ended - middle)
        return ended - begun

    return rounds.Work(
        repeat=lambda times: sum(once() for _ in range(times)),
        facts=lambda: {
            "read": PROMPT_TOKENS / float(np.median(reading[rounds.WARM_UPS :])),
            "decode": DECODED_TOKENS / float(np.median(decoding[rounds.WARM_UPS :])),
        },
    )


def prompt() -> list[int]:
    """A random one, of tokens that every vocabulary has."""
    ids: list[int] = np.random.default_rng(0).integers(0, 256, PROMPT_TOKENS).tolist()
    return ids


def _ours(models: Path) -> rounds.Work:
    from mlxchat.engine.cache import KVCache
    from mlxchat.engine.generate import generate, prefill
    from mlxchat.runtime import mx

    model = read(models).model
    model.prepare_for_inference()
    cache = KVCache(model.config)

    def read_prompt() -> None:
        cache.trim(0)
        mx.eval(prefill(model, prompt(), cache))

    def decode() -> None:
        for _ in generate(model, [0], cache, stop=frozenset(), max_tokens=DECODED_TOKENS - 1):
            pass

    return timed((read_prompt, decode))


def _llama(kind: str, models: Path) -> rounds.Work:
    import llama_cpp

    threads = int(os.environ[rounds.THREADS[0]])
    settings = {"n_threads": threads, "n_threads_batch": threads}
    model = opened(models / f"{kind}.gguf", n_ctx=2048, **settings)

    def read_prompt() -> None:
        model.reset()
        model.eval(prompt())

    def decode() -> None:
        token = 0
        for _ in range(DECODED_TOKENS):
            model.eval([token])
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    return timed((read_prompt, decode))


WORKS: dict[str, Callable[[Path], rounds.Work]] = {f"{OURS} float32": _ours} | {
    f"llama.cpp {kind.upper()}": partial(_llama, kind.upper())
    for kind in ("f32", "f16", "q8_0", "q4_0")
}


if __name__ == "__main__":
    rounds.explain(main)
