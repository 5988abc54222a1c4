"""Greedy decoding of one sequence by mlxchat, mlx-lm and torch, in turns, on the same weights.

    python benchmarks/decoding.py --depth 12
    python benchmarks/decoding.py --depth 12 --new-tokens 600
    python benchmarks/decoding.py --depth 12 --arch modern --vocab-size 32768  # of mlxchat alone

A random model is written as mlxchat saves one; every program reads that directory, the prompt is
the same, and the table says how many tokens are the same as ours. Each computes in float32 on a CPU
and in bfloat16 on a GPU; mlx-lm has the BLAS that mlxchat brings. Counted is the time after the
first token, in the rounds and, as "first pass", of the very first time after a warm-up of a few
tokens at other positions: what a program does anew for each position shows there, as it does in a
chat. torch-compile compiles in the warm-up, and has a cache of just the size that is needed. A
token needs every matrix once: that takes at least as long as reading so many bytes, which is
measured with a large matrix (memory). Then come 16 prompts that mlxchat continues together (batch),
and its reading of a prompt of 1,024 tokens (prefill), against the time that its floating-point
operations take in a matrix product.
Needs the extra bench: pip install -e ".[bench]".
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rounds

from mlxchat.errors import MlxchatError
from mlxchat.model.config import WINDOW_PATTERNS, GPTConfig
from mlxchat.model.size import parameters
from mlxchat.tokenizer.bpe import SMALLEST_VOCABULARY, SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

OURS, MEMORY, BATCH, PREFILL = "mlxchat", "memory", "batch", "prefill"
RIVALS = ("mlx-lm", "torch", "torch-compile")  # of the classic architecture
PROGRAMS = (OURS, *RIVALS, MEMORY, BATCH, PREFILL)
PACKAGES = ("mlx", "mlx-lm", "torch")
PROMPT_TOKENS, PREFILL_TOKENS = 64, 1024
WARM_UP_TOKENS = 16  # of a prompt, and new ones: before the positions that are counted
TOGETHER = 16  # prompts
SEQUENCE_LEN = 2048
WIDE = 2**14  # rows and columns of a matrix that no cache holds
LARGEST_VOCABULARY = SMALLEST_VOCABULARY + 256**2  # tokens of one byte, and of two

Continue = Callable[[Sequence[int], int], Iterator[int]]
"""Continues a prompt by a number of tokens."""


@dataclass(frozen=True)
class Decoder:
    """A program that decodes: where and how it computes, and what it does.

    ``after`` a prompt it makes the next tokens; ``drain`` waits until the device has done it all.
    """

    device: str
    dtype: object
    after: Continue
    drain: Callable[[], None]


@dataclass(frozen=True)
class Case:
    """The work of a program: the directory of the model, its shape, and the tokens to make."""

    folder: Path
    config: GPTConfig
    new_tokens: int

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Random ones, the same in every program."""
        random = np.random.default_rng(tokens)
        ids: list[list[int]] = random.integers(0, self.config.vocab_size, (count, tokens)).tolist()
        return ids


def main() -> None:
    """Measure and print, or be one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=list(WINDOW_PATTERNS), default="classic")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)  # for the workers
    rounds.add_options(parser, PROGRAMS)
    given = parser.parse_args()
    if not SMALLEST_VOCABULARY <= given.vocab_size <= LARGEST_VOCABULARY:
        parser.error(f"--vocab-size must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}")
    if not 2 <= given.new_tokens <= SEQUENCE_LEN - PROMPT_TOKENS:
        parser.error(f"--new-tokens must be 2 to {SEQUENCE_LEN - PROMPT_TOKENS}")
    if given.arch != "classic":
        given.programs = [name for name in given.programs if name not in RIVALS]
        if not given.programs:
            parser.error(f"the {given.arch} architecture is decoded by {OURS} alone")
    config = GPTConfig.from_depth(given.depth, given.vocab_size, SEQUENCE_LEN, arch=given.arch)
    if given.worker:
        rounds.serve(partial(WORKS[given.worker], Case(given.model, config, given.new_tokens)))
        return
    with random_model(config) as folder:
        measured = rounds.measure(given, f"--model={folder}")
    if given.json:
        print(json.dumps(rounds.everything(given, measured, PACKAGES)))
    else:
        print(report(config, given.new_tokens, measured, given.threads))


@contextmanager
def random_model(config: GPTConfig) -> Iterator[Path]:
    """A folder with a random model, until the ``with`` block ends.

    Raises:
        MlxchatError: it could not be written.
    """
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own: what it takes of memory is given back.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_random_model, args=(Path(name), config)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise MlxchatError("The model could not be written.", "What was said of it is above.")
        yield Path(name)


def write_random_model(folder: Path, config: GPTConfig) -> None:
    """Write a model directory; every matrix normal, so that no logit is like another."""
    from mlxchat.checkpoint.layout import write_model
    from mlxchat.model.gpt import GPT
    from mlxchat.runtime import mx

    model, key = GPT(config), mx.random.key(0)
    drawn = []
    for name, weight in sorted(model.named_parameters().items()):
        key, own = mx.random.split(key)
        std = weight.shape[-1] ** -0.5
        drawn.append((name, std * mx.random.normal(weight.shape, key=own)))
    model.load_weights(drawn)
    tokens = tokens_of(config.vocab_size)
    special = {name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    write_model(folder, model, Tokenizer(ranks, SPLIT_PATTERN, special), conversational=False)


def tokens_of(vocab_size: int) -> list[bytes]:
    """The tokens of the random model, by their ids, without the special ones."""
    pairs = sorted(map(bytes, itertools.product(range(256), repeat=2)), key=_unprintable)
    return [bytes([i]) for i in range(256)] + pairs[: vocab_size - len(SPECIAL_TOKENS) - 256]


def _unprintable(pair: bytes) -> bool:
    return not (pair.isascii() and pair.decode().isprintable())


def prefill_flops(config: GPTConfig, tokens: int) -> int:
    """The fewest operations: every matrix for each token, half of the scores, the head once."""
    counts = parameters(config)
    scores = 2 * config.n_layer * config.n_embd * tokens**2  # queries by keys, weights by values
    return 2 * counts["matrices"] * tokens + scores + 2 * counts["lm_head"]


def report(
    config: GPTConfig, new_tokens: int, measured: Sequence[rounds.Measured], threads: int
) -> str:
    """What was measured, in Markdown."""
    counted = new_tokens - 1
    decoders = [program for program in measured if program.name in (OURS, *RIVALS)]
    speeds = {program.name: program.speeds(counted) for program in decoders}
    tokens = {program.name: program.facts["tokens"] for program in decoders}
    rows = []
    for program in decoders:
        own = speeds[program.name]
        row = {
            "program": program.name,
            "device": f"{program.facts['device']}, {program.facts['dtype']}",
            "warm-up, s": f"{program.facts['warm_up']:.1f}",
            "first pass, tokens/s": f"{counted / program.first:,.1f}",
            "tokens/s": f"{statistics.median(own):,.1f}",
            "of rounds": f"{min(own):,.1f} to {max(own):,.1f}",
        }
        if OURS in speeds:
            row["tokens as ours"] = f"{agreeing(tokens[OURS], tokens[program.name])}/{new_tokens}"
            row[f"{OURS} / it"] = f"{rounds.ratio(speeds[OURS], own):.2f}"
        rows.append(row)
    ours = next((program for program in decoders if program.name == OURS), None)
    lines = [
        f"{config.arch.capitalize()} d{config.n_layer}, vocabulary {config.vocab_size:,}, prompt "
        f"of {PROMPT_TOKENS} tokens, {new_tokens} new ones; medians of "
        f"{len(measured[0].seconds)} rounds, ratios within a round; {threads} threads; "
        f"{rounds.listed(*PACKAGES)}.",
        *(["", rounds.table(rows)] if rows else []),
    ]
    for program in measured:
        if program.name == MEMORY:
            lines.append(_of_memory(program, speeds.get(OURS)))
        if program.name == BATCH:
            lines.append(_of_batch(program, ours, counted))
        if program.name == PREFILL:
            lines.append(_of_prefill(config, program))
    return "\n".join(lines)


def _of_memory(program: rounds.Measured, ours: Sequence[float] | None) -> str:
    read, needed = program.facts["matrix_bytes"], program.facts["weight_bytes"]
    bandwidth, most = program.speeds(read), program.speeds(read / needed)
    share = f"; mlxchat's are {rounds.ratio(ours, most):.0%} of that" if ours else ""
    return (
        f"\nA token needs {needed / 1e6:,.0f} MB of weights. A matrix of {read / 1e6:,.0f} MB is "
        f"multiplied by a vector at {statistics.median(bandwidth) / 1e9:,.1f} GB/s: at most "
        f"{statistics.median(most):,.1f} tokens/s{share}."
    )


def _of_batch(program: rounds.Measured, ours: rounds.Measured | None, counted: int) -> str:
    speeds, first = program.speeds(TOGETHER * counted), TOGETHER * counted / program.first
    alone = first_alone = ""
    if ours:
        alone = f", {rounds.ratio(speeds, ours.speeds(counted)):.1f} times one alone"
        first_alone = f", {first * ours.first / counted:.1f} times one alone's first pass"
    return (
        f"\n{TOGETHER} prompts that mlxchat continues together: "
        f"{statistics.median(speeds):,.0f} tokens/s{alone}; first pass {first:,.0f}{first_alone}."
    )


def _of_prefill(config: GPTConfig, program: rounds.Measured) -> str:
    seconds, speed = statistics.median(program.seconds), program.facts["matmul_flops"]
    floor = prefill_flops(config, PREFILL_TOKENS) / speed
    return (
        f"\nmlxchat reads {PREFILL_TOKENS:,} tokens in {1000 * seconds:,.1f} ms. Their operations "
        f"take {1000 * floor:,.1f} ms in a matrix product, at {speed / 1e12:,.2f} TFLOP/s: "
        f"{floor / seconds:.0%}."
    )


def agreeing(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    pairs = zip(ours, theirs, strict=True)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _decoding(make: Callable[[Case], Decoder], case: Case) -> rounds.Work:
    """The work of a program that decodes."""
    decoder = make(case)
    (prompt,), (other,) = case.prompts(1, PROMPT_TOKENS), case.prompts(1, WARM_UP_TOKENS)
    latest, begun = list[int](), time.perf_counter()
    list(decoder.after(other, WARM_UP_TOKENS))
    warm_up = time.perf_counter() - begun

    def once() -> float:
        stream = decoder.after(prompt, case.new_tokens)
        latest[:] = [next(stream)]
        begun = time.perf_counter()
        latest.extend(stream)
        seconds = time.perf_counter() - begun
        decoder.drain()
        return seconds

    return rounds.Work(
        repeat=lambda times: sum(once() for _ in range(times)),
        facts=lambda: {
            "device": decoder.device,
            "dtype": str(decoder.dtype).rpartition(".")[2],
            "tokens": latest,
            "warm_up": warm_up,
        },
    )


def _mlxchat(case: Case) -> Decoder:
    from mlxchat.engine.cache import KVCache
    from mlxchat.engine.generate import generate
    from mlxchat.runtime import machine, mx

    model = _our_model(case.folder)

    def after(ids: Sequence[int], tokens: int) -> Iterator[int]:
        return generate(model, ids, KVCache(case.config), stop=frozenset(), max_tokens=tokens)

    return Decoder(machine().device, machine().compute_dtype, after, mx.synchronize)


def _batch(case: Case) -> rounds.Work:
    from mlxchat.engine.generate import generate_batch

    model = _our_model(case.folder)

    def once(prompt_tokens: int, new_tokens: int) -> float:
        prompts = case.prompts(TOGETHER, prompt_tokens)
        stream = generate_batch(model, prompts, stop=frozenset(), max_tokens=new_tokens)
        next(stream)
        begun = time.perf_counter()
        for _ in stream:
            pass
        return time.perf_counter() - begun

    once(WARM_UP_TOKENS, WARM_UP_TOKENS)
    return rounds.Work(
        lambda times: sum(once(PROMPT_TOKENS, case.new_tokens) for _ in range(times)), dict
    )


def _memory(case: Case) -> rounds.Work:
    from mlxchat.runtime import machine, mx

    counts, dtype = parameters(case.config), machine().compute_dtype
    on_cpu = machine().backend == "cpu"  # where numpy reads faster than MLX
    shape = (WIDE, WIDE)
    matrix = np.ones(shape, np.float32) if on_cpu else mx.ones(shape, dtype)
    vector = matrix[0]

    def repeat(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            product = matrix @ vector
            if not on_cpu:
                mx.eval(product)
        return time.perf_counter() - begun

    facts = {
        "matrix_bytes": matrix.nbytes,
        "weight_bytes": (counts["matrices"] + counts["lm_head"]) * dtype.size,
    }
    return rounds.Work(repeat, lambda: facts)


def _prefill(case: Case) -> rounds.Work:
    from mlxchat.engine.cache import KVCache
    from mlxchat.engine.generate import prefill
    from mlxchat.runtime import matmul_flops, mx

    model, (ids,) = _our_model(case.folder), case.prompts(1, PREFILL_TOKENS)
    floors: list[float] = []

    def repeat(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            mx.eval(prefill(model, ids, KVCache(case.config)))
        seconds = time.perf_counter() - begun
        floors.append(matmul_flops(1.0))  # as the machine is in this round
        return seconds

    return rounds.Work(repeat, lambda: {"matmul_flops": statistics.median(floors)})


def _our_model(folder: Path) -> Any:
    from mlxchat import runtime
    from mlxchat.checkpoint.layout import read_model

    runtime.bound_buffer_cache()
    model = read_model(folder, runtime.machine().compute_dtype).model
    model.prepare_for_inference()
    return model


def _mlx_lm(case: Case) -> Decoder:
    from mlxchat.runtime import machine, mx  # before mlx-lm imports MLX, so that it has OpenBLAS

    try:
        from mlx_lm.generate import generate_step
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise MlxchatError(
            f"mlx-lm cannot be imported ({error}).",
            'Install the extra bench: pip install -e ".[bench]"; or choose --programs without it.',
        ) from error
    model, _ = load_model(case.folder)
    dtype = machine().compute_dtype
    model.set_dtype(dtype)
    mx.eval(model.parameters())

    def after(ids: Sequence[int], tokens: int) -> Iterator[int]:
        for token, _ in generate_step(mx.array(list(ids)), model, max_tokens=tokens):
            yield int(token)

    return Decoder(machine().device, dtype, after, mx.synchronize)


def _torch(case: Case) -> Decoder:
    classic = rounds.import_rival("torch_classic")
    return _of_torch(case, lambda model: partial(classic.continue_greedily, model))


def _torch_compile(case: Case) -> Decoder:
    decoding = rounds.import_rival("torch_decoding")
    positions = PROMPT_TOKENS + case.new_tokens
    return _of_torch(
        case, lambda model: decoding.Decoder(model, positions, compiled=True).continue_greedily
    )


def _of_torch(case: Case, continues: Callable[[Any], Continue]) -> Decoder:
    """``continues`` makes of a model what continues prompts with it."""
    classic, parts = map(rounds.import_rival, ("torch_classic", "torch_parts"))
    from safetensors.torch import load_file  # is there, and for these programs only

    device = parts.best_device()
    dtype = parts.dtype_on(device)
    model = classic.GPT(case.config)
    model.load_state_dict(load_file(case.folder / "model.safetensors"))
    model.to(device, dtype)
    drain = partial(parts.synchronise, device)
    return Decoder(parts.name_of(device), dtype, continues(model), drain)


DECODERS: dict[str, Callable[[Case], Decoder]] = {
    OURS: _mlxchat,
    "mlx-lm": _mlx_lm,
    "torch": _torch,
    "torch-compile": _torch_compile,
}
WORKS: dict[str, Callable[[Case], rounds.Work]] = {
    **{name: partial(_decoding, make) for name, make in DECODERS.items()},
    MEMORY: _memory,
    BATCH: _batch,
    PREFILL: _prefill,
}


if __name__ == "__main__":
    rounds.explain(main)
