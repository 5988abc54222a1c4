"""The questions of a run as its dataset, with held-out questions and what resuming compares."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random

from mlxchat.data.documents import BATCH, Cursor, Read
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.preparation import ANSWERS
from mlxchat.data.questions.question import QuestionSource, TaskQuestion
from mlxchat.tokenizer.messages import Document

ASKED_QUESTIONS = "questions"  # the name of their fingerprint among those of files
FINGERPRINTED = 256  # questions of each part: enough to notice a version that makes others


class QuestionDocuments:
    """The questions of a task as `mlxchat.data.documents.Documents`: conversations with replies.

    Args:
        source: the questions.
        files: fingerprints, by path, of other files that the run depends on, such as rewards.
        seed: determines the order of all epochs after the first.
    """

    conversational = True
    preparation = ANSWERS
    shards = 1

    def __init__(self, source: QuestionSource, files: dict[str, str], seed: int) -> None:
        self.source = source
        self._files, self._seed = files, seed
        self._latest: tuple[int, Sequence[int]] = 0, ()  # an epoch and its order

    @property
    def names(self) -> tuple[str, ...]:
        """Nothing: what a run needs is compared by `fingerprints`."""
        return ()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the files that the run depends on, and of the questions."""
        digest = hashlib.sha256()
        first = islice(self.source.train, FINGERPRINTED)
        for question in (*first, *self.source.held_out[:FINGERPRINTED]):
            digest.update(f"{question.prompt}\0{question.answer}\0".encode())
        return {**self._files, ASKED_QUESTIONS: digest.hexdigest()}

    def following(self, cursor: Cursor, count: int) -> tuple[list[TaskQuestion], Cursor]:
        """Return so many questions from a cursor on, and the cursor after them.

        The first epoch has the order of the source, each later one an order of its own.
        """
        found: list[TaskQuestion] = []
        while len(found) < count:
            order = self._order(cursor.epoch)
            taken = order[cursor.row : cursor.row + count - len(found)]
            found += [self.source.train[index] for index in taken]
            row = cursor.row + len(taken)
            whole = row >= len(order)
            cursor = Cursor(cursor.epoch + whole, 0, 0 if whole else row)
        return found, cursor

    def _order(self, epoch: int) -> Sequence[int]:
        """Return the indices of an epoch; those of the latest one are kept."""
        if self._latest[0] != epoch:
            order: Sequence[int] = range(len(self.source.train))
            if epoch > 1:
                order = Random(f"{self._seed}/{epoch}").sample(order, len(order))
            self._latest = epoch, order
        return self._latest[1]

    def training(self, start: Cursor) -> Iterator[Read]:
        """Yield the questions to train on with their replies, without end."""
        while True:
            questions, start = self.following(start, BATCH)
            yield [question.solved for question in questions], start

    def validation(self) -> Iterator[Read]:
        """Yield the held-out questions with their replies."""
        solved: list[Document] = [question.solved for question in self.source.held_out]
        yield solved, Cursor()

    def close(self) -> None:
        """Do nothing."""


def files_of(task: str, rewards: dict[str, str]) -> dict[str, str]:
    """Return the fingerprints of a task's own file, if it has one, and of the files of rewards."""
    path = Path(task).expanduser()
    return {**rewards, **({str(path.absolute()): fingerprint(path)} if path.is_file() else {})}
