"""The conversations that a run trains on: a weighted mixture, resumable at a cursor."""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from mlxchat.data.chats import spelling
from mlxchat.data.chats.identity import Identity, identity_conversations, is_asked
from mlxchat.data.chats.reading import SourceReport, read_source
from mlxchat.data.chats.sources import BUILTIN, VALIDATION_SHARE, Source, listing
from mlxchat.data.corpus.documents import corpus_documents
from mlxchat.data.documents import Cursor, Read
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.preparation import ANSWERS, Preparation
from mlxchat.data.questions.tasks import solved_conversations
from mlxchat.errors import DataError
from mlxchat.tokenizer.messages import Conversation

BUILTIN_CONVERSATIONS = 16_384
IDENTITY_CONVERSATIONS = 1_000  # as many as nanochat
CONVERSATIONS = "conversations"  # names their fingerprint among those of the files


class ChatDocuments:
    """Conversations from files, the built-in corpus, tasks and generators, all kept in memory.

    Which conversations are held out for validation depends only on their content: those whose hash
    is in the lowest ``validation_share`` of all possible hashes, or, if a source has none, its
    lowest. So seeds, weights and the order of files never move a conversation between validation
    and training, and copies of a conversation stay together.

    Args:
        sources: where conversations come from. Each conversation of a source is repeated
            ``weight`` times per epoch; a fractional part adds a random sample, drawn per epoch.
        seed: the seed of the order and of generated conversations.
        validation_share: the share of conversations to hold out, 0 to 1.
        preparation: how they are turned into rows.
        identity: who the model is; adds `IDENTITY_CONVERSATIONS` about it, replacing those of the
            built-in corpus.
        spelling_conversations: how many conversations about spelling and letters to generate.

    Attributes:
        reports: one report per source and generator, which counts its rows.
        names: the files, in order and without duplicates.
        fingerprints: the fingerprint of each file, taken before it was read; and, as
            `CONVERSATIONS`, one of the conversations to train on, on which their order depends.
        epoch_size: the number of conversations in an epoch.
        held_out: the conversations for validation, without duplicates, in order of their hashes.

    Raises:
        MlxchatError: a source cannot be read or has nothing to train on, or there are fewer than
            two conversations.
    """

    shards = 1
    conversational = True

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        validation_share: float = VALIDATION_SHARE,
        preparation: Preparation = ANSWERS,
        identity: Identity | None = None,
        spelling_conversations: int = 0,
    ) -> None:
        self._seed = seed
        self.preparation = preparation
        paths = dict.fromkeys(path for source in sources for path in listing(source).files)
        self.names = tuple(map(str, paths))
        self.fingerprints = {str(path): fingerprint(path) for path in paths}
        parts = [_read(source, seed, identity) for source in sources]
        if identity:
            parts.append(
                _generated(
                    "identity", identity_conversations(identity, seed, IDENTITY_CONVERSATIONS)
                )
            )
        if spelling_conversations:
            parts.append(
                _generated(
                    "spelling", spelling.spelling_conversations(seed, spelling_conversations)
                )
            )
        held_out: dict[str, Conversation] = {}
        for part in parts:
            held_out |= part.for_validation(validation_share)
        self.held_out = [held_out[key] for key in sorted(held_out)]
        self._parts = [part.without(held_out.keys()) for part in parts]
        self.epoch_size = sum(part.count for part in self._parts)
        if not (self.epoch_size and self.held_out):
            raise DataError(
                "Training needs at least two conversations, one to train on and one for "
                "validation.",
                f"Give more conversations, or add the built-in corpus: {BUILTIN}.",
            )
        self.reports = tuple(part.report for part in self._parts)
        keys = "\n".join(" ".join(part.keys) for part in self._parts)
        self.fingerprints[CONVERSATIONS] = hashlib.sha256(keys.encode()).hexdigest()

    def training(self, start: Cursor) -> Iterator[Read]:
        """Yield conversations one by one from a cursor on, endlessly, each epoch in its own order.

        One by one, so that the buffer of `BestFit` is topped up as nanochat's is, and the same rows
        are packed.

        Raises:
            MlxchatError: the cursor is beyond the end of an epoch.
        """
        epoch, _, row = start
        if row > self.epoch_size:
            raise DataError(
                f"The run resumes at conversation {row:,}, but an epoch has {self.epoch_size:,}.",
                "Resume with the data that the run started with.",
            )
        while True:
            order = self._order(epoch)
            for number, conversation in enumerate(order[row:], start=row + 1):
                yield [conversation], Cursor(epoch, 0, number)
            epoch, row = epoch + 1, 0

    def validation(self) -> Iterator[Read]:
        """Yield the held-out conversations once, one by one."""
        for number, conversation in enumerate(self.held_out, start=1):
            yield [conversation], Cursor(1, 0, number)

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _order(self, epoch: int) -> list[Conversation]:
        rng = Random(f"chats/{self._seed}/{epoch}")
        order = [conversation for part in self._parts for conversation in part.epoch(rng)]
        rng.shuffle(order)
        return order


@dataclass(frozen=True)
class _MixturePart:
    """The part of one source in a mixture: conversations with their hashes, weight and report."""

    conversations: list[Conversation]
    keys: list[str]
    weight: float
    report: SourceReport

    @property
    def count(self) -> int:
        """The number of conversations in an epoch."""
        return self._repeats * len(self.conversations) + self._extra

    @property
    def _repeats(self) -> int:
        return int(self.weight)

    @property
    def _extra(self) -> int:
        """The number of those drawn once more per epoch; at least 1 if the weight is below 1."""
        rows = len(self.conversations)
        return round((self.weight - self._repeats) * rows) or int(rows > 0 and self._repeats == 0)

    def epoch(self, rng: Random) -> list[Conversation]:
        """Return the conversations of one epoch, not shuffled."""
        return self.conversations * self._repeats + rng.sample(self.conversations, self._extra)

    def for_validation(self, share: float) -> dict[str, Conversation]:
        """Return the conversations to hold out, by key: at least one of several, but never all."""
        found = dict(zip(self.keys, self.conversations, strict=True))
        keys = sorted(found)
        chosen = [key for key in keys if int(key, 16) < share * 16 ** len(key)] or keys[:1]
        return {key: found[key] for key in chosen[: len(keys) - 1]}

    def without(self, held_out: Container[str]) -> "_MixturePart":
        """Return the conversations left for training."""
        pairs = zip(self.keys, self.conversations, strict=True)
        left = [(key, found) for key, found in pairs if key not in held_out]
        report = replace(self.report, held_out=len(self.keys) - len(left))
        return _MixturePart(
            [found for _, found in left], [key for key, _ in left], self.weight, report
        )


def _read(source: Source, seed: int, identity: Identity | None) -> _MixturePart:
    if source.task:
        return _generated(str(source), solved_conversations(source.task, seed), source.weight)
    if source.is_corpus:
        return _generated(
            BUILTIN, islice(_builtin(seed, identity), BUILTIN_CONVERSATIONS), source.weight
        )
    conversations, report = read_source(source)
    return _MixturePart(conversations, list(map(_key, conversations)), source.weight, report)


def _generated(name: str, conversations: Iterable[Conversation], weight: float = 1) -> _MixturePart:
    made = list(conversations)
    return _MixturePart(
        made, list(map(_key, made)), weight, SourceReport(name, len(made), len(made))
    )


def _builtin(seed: int, identity: Identity | None) -> Iterator[Conversation]:
    """Yield the built-in conversations; with an identity, without those about who the model is."""
    for document in corpus_documents(seed):
        if isinstance(document, str):
            continue
        prompts = (message.text for message in document.messages if message.role == "user")
        if identity is None or not any(is_asked(identity, prompt) for prompt in prompts):
            yield document


def _key(conversation: Conversation) -> str:
    """Return a hash of the messages of a conversation, in hexadecimal."""
    content = [
        (message.role, [(part.type, part.text) for part in message.parts])
        for message in conversation.messages
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
