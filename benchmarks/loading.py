"""The loader beside the training that it feeds, in turns: tokens a second, and time waited for it.

    python benchmarks/loading.py FOLDER --ranks nanochat_65536.tiktoken

FOLDER holds shard_*.parquet, the last for validation. The loader reads, tokenizes and packs that
text by itself; then whole training steps (forward, backward, clipping, Muon and AdamW) take their
batches from a loader of their own, and what they wait for the next batch is added up. Both are done
with a small and with a large vocabulary. The tokenizer of the large one is read from --ranks, in
tiktoken's text form; one that is not given is trained on FOLDER first.
"""

import argparse
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import rounds

from mlxchat.data.documents import Cursor, ShardDocuments
from mlxchat.data.loader import BATCHES_AHEAD, Batch, Loader
from mlxchat.data.shards import LocalShards
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

SMALL, LARGE = 4_096, 65_536  # vocabularies
VOCABULARIES = {"small": SMALL, "large": LARGE}
PROGRAMS = tuple(f"{work}-{size}" for size in VOCABULARIES for work in ("loader", "training"))
PACKAGES = ("mlx", "cmeel-openblas", "tiktoken", "pyarrow", "numpy")


def main() -> None:
    """Measure and print, or be one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=Path, help=f"of a tokenizer of {LARGE:,} tokens")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--device-batch-size", type=int, default=8)
    parser.add_argument("--tokenizers", type=Path, help=argparse.SUPPRESS)  # for the workers
    rounds.add_options(parser, PROGRAMS)
    given = parser.parse_args()
    if given.worker:
        rounds.serve(partial(_work, given))
        return
    with tempfile.TemporaryDirectory() as folder:
        for program in given.programs:
            size = program.partition("-")[2]
            if not Path(folder, size).exists():
                Path(folder, size).mkdir()
                _tokenizer(given, VOCABULARIES[size]).save(Path(folder, size))
        measured = rounds.measure(given, f"--tokenizers={folder}")
    if given.json:
        print(json.dumps(rounds.everything(given, measured, PACKAGES)))
    else:
        print(report(given, measured))


def report(given: argparse.Namespace, measured: Sequence[rounds.Measured]) -> str:
    """What was measured, in Markdown."""
    tokens = given.device_batch_size * given.max_seq_len
    speeds = {program.name: program.speeds(tokens) for program in measured}
    rows = []
    for program in measured:
        work, _, size = program.name.partition("-")
        speed = speeds[program.name]
        waits, training = program.facts["waits"][-given.rounds :], f"training-{size}"
        rows.append(
            {
                "program": work,
                "vocabulary": f"{VOCABULARIES[size]:,}",
                "tokens/s": f"{statistics.median(speed):,.0f}",
                "of rounds": f"{min(speed):,.0f} to {max(speed):,.0f}",
                "times training": f"{rounds.ratio(speed, speeds[training]):,.0f}"
                if work == "loader" and training in speeds
                else "",
                "waiting": f"{statistics.median(waits):.3%}, {max(waits):.3%} at most"
                if waits
                else "",
            }
        )
    return "\n".join(
        [
            f"Classic d{given.depth}, {given.device_batch_size} rows of {given.max_seq_len} tokens "
            f"a step; medians of {given.rounds} rounds, ratios within a round; {given.threads} "
            f"threads; {measured[0].facts['device']}; {rounds.listed(*PACKAGES)}.",
            "",
            rounds.table(rows),
        ]
    )


def _tokenizer(given: argparse.Namespace, vocab_size: int) -> Tokenizer:
    if given.ranks is None or vocab_size != LARGE:
        return Tokenizer.train(ShardDocuments(LocalShards(given.folder)).texts(), vocab_size)
    lines = (line.split() for line in given.ranks.read_text("ascii").splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    if len(ranks) + len(special) != vocab_size:
        raise MlxchatError(
            f"{given.ranks} has {len(ranks):,} tokens, not {vocab_size - len(special):,}.",
            "Leave out --ranks, and a tokenizer is trained.",
        )
    return Tokenizer(ranks, SPLIT_PATTERN, special)


def _work(given: argparse.Namespace) -> rounds.Work:
    work, _, size = given.worker.partition("-")
    tokenizer = Tokenizer.load(given.tokenizers / size)
    batches = Loader(
        ShardDocuments(LocalShards(given.folder)).training(Cursor()),
        tokenizer,
        given.device_batch_size,
        given.max_seq_len,
    )
    if work == "loader":
        return _loading(batches)
    return _training(given, tokenizer.vocab_size, Timed(batches))


def _loading(batches: Iterator[Batch]) -> rounds.Work:
    from mlxchat.runtime import machine

    def repeat(times: int) -> float:
        for _ in range(BATCHES_AHEAD):  # made between two rounds: these took no time
            next(batches)
        begun = time.perf_counter()
        for _ in range(times):
            next(batches)
        return time.perf_counter() - begun

    return rounds.Work(repeat, lambda: {"device": machine().device, "waits": []})


class Timed:
    """An iterator that adds up the seconds it was waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - begun
        return batch


def _training(given: argparse.Namespace, vocab_size: int, batches: Timed) -> rounds.Work:
    from mlxchat import runtime
    from mlxchat.config.pretrain import PretrainConfig
    from mlxchat.plan.plan import plan
    from mlxchat.runtime import mx
    from mlxchat.train.measure import resources, synthetic_step
    from mlxchat.train.step import compile_step

    settings = PretrainConfig(
        depth=given.depth,
        max_seq_len=given.max_seq_len,
        device_batch_size=given.device_batch_size,
        total_batch_size=given.device_batch_size * given.max_seq_len,
        num_iterations=1,
    )
    runtime.bound_buffer_cache()
    made = plan(settings, vocab_size, resources())
    step = replace(synthetic_step(made), batches=batches)
    launch, waits = compile_step(step), list[float]()

    def repeat(times: int) -> float:
        batches.seconds, begun, latest = 0.0, time.perf_counter(), mx.array(0.0)
        for number in range(1, times + 1):
            before, latest = latest, launch(number).metrics
            mx.eval(before)  # as the training loop reads a step's loss: while the next one runs
        mx.eval(latest, step.model.parameters(), step.optimizer.state)
        seconds = time.perf_counter() - begun
        waits.append(batches.seconds / seconds)
        return seconds

    return rounds.Work(repeat, lambda: {"device": runtime.machine().device, "waits": waits})


if __name__ == "__main__":
    rounds.explain(main)
