"""The examples of CORE's tasks for one tokenizer, encoded on demand."""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.evaluate.core_prompts import CoreExample, CoreRow, encode_examples
from mlxchat.evaluate.core_tasks import CORE_TASKS, CoreItem, core_items
from mlxchat.tokenizer.bpe import Tokenizer

ENCODED_AHEAD = 256  # examples, while as many are judged


def read_items(
    bundle: Bundle, labels: Sequence[str], max_per_task: int | None
) -> dict[str, list[CoreItem]]:
    """Return the examples of tasks, by label.

    Args:
        bundle: has them.
        labels: the tasks' labels.
        max_per_task: the most examples of each; None for all.

    Raises:
        MlxchatError: those of a task are missing or damaged, or too few.
    """
    contents = bundle.read(labels)
    return {label: core_items(label, contents[label], max_per_task) for label in labels}


class CoreExamples:
    """The examples of tasks as token ids.

    Args:
        items: the examples of each task, by label.
        tokenizer: encodes them.
        keep: keep the ids for the next evaluation, 30 MB for 500 examples of each task.
    """

    def __init__(
        self, items: Mapping[str, Sequence[CoreItem]], tokenizer: Tokenizer, keep: bool = False
    ) -> None:
        self.items, self.tokenizer = items, tokenizer
        self._packed: dict[tuple[str, int], _Packed] | None = {} if keep else None

    def encoded(self, label: str, indices: Sequence[int]) -> Generator[CoreExample, None, None]:
        """Yield examples of a task, in any order.

        Raises:
            DataError: as `encode_examples`.
        """
        packed = self._packed
        if packed is None:
            yield from encode_examples(
                CORE_TASKS[label], self.items[label], indices, self.tokenizer
            )
            return
        yield from (packed[label, i].example(i) for i in indices if (label, i) in packed)
        new = [index for index in indices if (label, index) not in packed]
        for example in encode_examples(CORE_TASKS[label], self.items[label], new, self.tokenizer):
            packed[label, example.index] = _Packed.of(example)
            yield example

    def batches(self, label: str, indices: Sequence[int]) -> Iterator[list[CoreExample]]:
        """Yield examples of a task in batches: while the caller has one, the next is encoded.

        Raises:
            DataError: as `encode_examples`.
        """
        ended = threading.Event()

        def encode(piece: Sequence[int]) -> list[CoreExample]:
            found: list[CoreExample] = []
            with closing(self.encoded(label, piece)) as examples:
                for example in examples:
                    if ended.is_set():  # nobody waits for the rest
                        break
                    found.append(example)
            return found

        starts = range(0, len(indices), ENCODED_AHEAD)
        pieces = [indices[start : start + ENCODED_AHEAD] for start in starts]
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            following = [pool.submit(encode, piece) for piece in pieces[:1]]
            try:
                for number in range(len(pieces)):
                    examples = following.pop().result()
                    following = [pool.submit(encode, each) for each in pieces[number + 1 :][:1]]
                    yield examples
            finally:
                ended.set()


class _Packed(NamedTuple):
    """An example in a compact form that takes a tenth of the memory."""

    prefix: npt.NDArray[np.int32]
    tails: tuple[npt.NDArray[np.int32], ...]
    spans: tuple[tuple[int, int], ...]
    gold: int | None

    @classmethod
    def of(cls, example: CoreExample) -> "_Packed":
        rows, prefix = example.rows, example.prefix
        return cls(
            np.array(rows[0].ids[:prefix], np.int32),
            tuple(np.array(row.ids[prefix:], np.int32) for row in rows),
            tuple((row.start, row.end) for row in rows),
            example.gold,
        )

    def example(self, index: int) -> CoreExample:
        before = self.prefix.tolist()
        rows = tuple(
            CoreRow((*before, *tail.tolist()), *span)
            for tail, span in zip(self.tails, self.spans, strict=True)
        )
        return CoreExample(index, rows, self.gold, len(before))
