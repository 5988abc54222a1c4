"""Conversations as the trainer sees them: all of them, each epoch in another order, resumable."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pytest
from support.places import SHARED, needs_shared

from mlxchat.data.chats import mixture as module
from mlxchat.data.chats import spelling
from mlxchat.data.chats.identity import Identity
from mlxchat.data.chats.mixture import CONVERSATIONS, IDENTITY_CONVERSATIONS, ChatDocuments
from mlxchat.data.chats.sources import Source, parse
from mlxchat.data.corpus.documents import document_text
from mlxchat.data.documents import Cursor, Documents
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.tasks import TRAIN_QUESTIONS, generated_questions
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.messages import Conversation

BUILTIN = Source(None)


def write(path: Path, prompts: list[str]) -> Path:
    rows = (
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{prompt}!"}]
        for prompt in prompts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write(tmp_path / "first.jsonl", [f"first {number}" for number in range(300)])


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write(tmp_path / "second.jsonl", [f"second {number}" for number in range(100)])


def asked(conversations: list) -> list[str]:
    return [conversation.messages[0].text for conversation in conversations]


def epoch(documents: ChatDocuments, number: int = 1) -> list[str]:
    batches: list[str] = []
    for batch, cursor in documents.training(Cursor(number)):
        if cursor.epoch != number:
            break
        batches += asked(batch)
        if cursor.row == documents.epoch_size:
            break
    return batches


def held_out(documents: ChatDocuments) -> list[str]:
    batches = list(documents.validation())
    assert [found for batch, _ in batches for found in batch] == documents.held_out
    return asked(documents.held_out)


def test_a_task_gives_its_questions_to_train_on_answered(first: Path) -> None:
    documents = ChatDocuments([parse("spelling-2:0.5"), Source(first)], seed=3)
    questions = generated_questions(TaskChoice("spelling", 2), seed=3)
    task, file = documents.reports
    assert (task.source, task.used, file.used) == ("spelling-2", TRAIN_QUESTIONS, 300)
    assert documents.epoch_size == round((TRAIN_QUESTIONS - task.held_out) / 2) + (
        300 - file.held_out
    )
    solved = {(question.prompt, question.reply.text) for question in questions.train}
    used = [
        (conversation.messages[0].text, conversation.messages[1].text)
        for [conversation], _ in islice(documents.training(Cursor(1)), documents.epoch_size)
    ]
    assert sum(pair in solved for pair in used) == documents.epoch_size - 300 + file.held_out
    assert not {prompt for prompt, _ in used} & {each.prompt for each in questions.held_out}


def test_conversations_are_documents(first: Path) -> None:
    documents: Documents = ChatDocuments([Source(first)], seed=0)
    assert documents.conversational
    assert documents.shards == 1
    assert documents.names == (str(first),)
    documents.close()


def test_an_epoch_has_every_conversation_once(first: Path, second: Path) -> None:
    documents = ChatDocuments([Source(first), Source(second)], seed=0)
    one, two = epoch(documents), epoch(documents, 2)
    assert len(one) == documents.epoch_size == len(set(one))
    assert sorted(one) == sorted(two)
    assert one != two
    assert one != sorted(one)
    assert len(one) + len(held_out(documents)) == 400
    assert one != epoch(ChatDocuments([Source(first), Source(second)], seed=1))


def test_conversations_come_one_by_one_and_resume_at_any_cursor(first: Path) -> None:
    documents = ChatDocuments([Source(first)], seed=0)
    size = documents.epoch_size
    reads = list(islice(documents.training(Cursor()), 2 * size + 9))
    assert [cursor for _, cursor in reads[:2]] == [Cursor(1, 0, 1), Cursor(1, 0, 2)]
    assert {len(batch) for batch, _ in reads} == {1}
    assert {cursor.epoch for _, cursor in reads} == {1, 2, 3}
    again = ChatDocuments([Source(first)], seed=0)
    for number in (0, 5, size - 1, size, 2 * size - 2):
        rest = list(islice(again.training(reads[number][1]), len(reads) - number - 1))
        assert rest == reads[number + 1 :]


def test_a_cursor_of_other_data_is_refused(first: Path) -> None:
    documents = ChatDocuments([Source(first)], seed=0)
    with pytest.raises(MlxchatError, match="resumes at conversation 301, but an epoch has"):
        next(documents.training(Cursor(1, 0, 301)))


@pytest.mark.parametrize("weight, whole, more", [(3, 3, 0), (0.5, 0, 0.5), (2.25, 2, 0.25)])
def test_a_weight_sets_the_repetitions_per_epoch(
    first: Path, second: Path, weight: float, whole: int, more: float
) -> None:
    documents = ChatDocuments([Source(first, weight), Source(second)], seed=0)
    counts = [Counter(epoch(documents, number)) for number in (1, 2)]
    of_first = {prompt for prompt in asked(list(all_rows(first))) if "first" in prompt}
    training = of_first - set(held_out(documents))
    for count in counts:
        assert sum(count.values()) == documents.epoch_size
        times = Counter(count[prompt] for prompt in training)
        assert times[whole + 1] == round(more * len(training))
        assert times[whole] == len(training) - times[whole + 1]
    assert (counts[0] == counts[1]) == (more == 0)


def all_rows(path: Path) -> Iterator[Conversation]:
    documents = ChatDocuments([Source(path)], seed=0)
    for batch, _ in documents.validation():
        yield from batch
    for batch, cursor in documents.training(Cursor()):
        yield from batch
        if cursor.row == documents.epoch_size:
            return


def test_at_least_one_conversation_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "few.jsonl", ["a", "b", "c"])
    assert ChatDocuments([Source(path, 0.1)], seed=0).epoch_size == 1


def test_holding_out_depends_on_the_conversation_alone(first: Path, second: Path) -> None:
    here = ChatDocuments([Source(first), Source(second)], seed=0, validation_share=0.1)
    there = ChatDocuments([Source(second, 5), Source(first, 0.5)], seed=9, validation_share=0.1)
    alone = ChatDocuments([Source(second)], seed=1, validation_share=0.1)
    assert held_out(here) == held_out(there)
    assert set(held_out(alone)) == {p for p in held_out(here) if p.startswith("second")}
    assert 20 <= len(held_out(here)) <= 60
    for documents in (here, there, alone):
        assert not set(held_out(documents)) & set(epoch(documents) + epoch(documents, 2))


def test_copies_are_held_out_together(tmp_path: Path, first: Path) -> None:
    copy = write(tmp_path / "copy.jsonl", [f"first {number}" for number in range(300)] * 2)
    documents = ChatDocuments([Source(first), Source(copy)], seed=0)
    validation = held_out(documents)
    assert len(validation) == len(set(validation))
    assert not set(validation) & set(epoch(documents))
    assert documents.reports[1].held_out == 2 * len(validation)
    assert documents.epoch_size == 900 - 3 * len(validation)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_training_and_validation_each_get_some(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "few.jsonl", [f"prompt {number}" for number in range(count)])
    for share in (0, 0.5, 1):
        documents = ChatDocuments([Source(path)], seed=0, validation_share=share)
        assert len(held_out(documents)) >= 1 <= documents.epoch_size
        assert len(held_out(documents)) + documents.epoch_size == count


def test_a_single_conversation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", ["same", "same"])
    with pytest.raises(MlxchatError, match="at least two"):
        ChatDocuments([Source(path)], seed=0)
    with pytest.raises(MlxchatError, match="at least two"):
        ChatDocuments([], seed=0)


def test_files_have_fingerprints(first: Path, second: Path) -> None:
    before = ChatDocuments([Source(first), Source(second), Source(first)], seed=0)
    assert before.names == (str(first), str(second))
    assert before.fingerprints.keys() == {*before.names, CONVERSATIONS}
    write(second, [f"other! {number}" for number in range(100)])
    after = ChatDocuments([Source(first), Source(second)], seed=0)
    assert after.fingerprints[str(first)] == before.fingerprints[str(first)]
    assert after.fingerprints[str(second)] != before.fingerprints[str(second)]


def test_the_conversations_have_a_fingerprint_of_their_own(first: Path, second: Path) -> None:
    def found(*sources: Source) -> str:
        return ChatDocuments(sources, seed=0).fingerprints[CONVERSATIONS]

    before = found(Source(first), Source(second))
    assert before == found(Source(first), Source(second))
    assert before != found(Source(second), Source(first))
    write(second, [f"second {number}" for number in range(99)])
    assert before != found(Source(first), Source(second))


def test_every_held_out_conversation_is_in_validation(tmp_path: Path) -> None:
    path = write(tmp_path / "many.jsonl", [str(number) for number in range(6000)])
    documents = ChatDocuments([Source(path)], seed=0, validation_share=0.5)
    assert documents.reports[0].held_out == len(held_out(documents)) > 2500
    assert documents.epoch_size + len(documents.held_out) == 6000


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUILTIN_CONVERSATIONS", 2000)


@pytest.mark.usefixtures("short")
def test_the_built_in_corpus_is_a_source() -> None:
    documents = ChatDocuments([parse("builtin:0.25")], seed=0)
    assert documents.names == ()
    assert documents.reports[0].source == "builtin"
    assert documents.epoch_size == round(
        0.25 * (documents.reports[0].used - documents.reports[0].held_out)
    )
    read = islice(documents.training(Cursor()), 128)
    assert all(isinstance(found, Conversation) for batch, _ in read for found in batch)


@pytest.mark.usefixtures("short")
def test_the_built_in_corpus_does_not_deny_the_name() -> None:
    def denials(identity: Identity | None) -> int:
        documents = ChatDocuments([BUILTIN], seed=0, identity=identity)
        read = (batch for batch, _ in documents.training(Cursor()))
        epoch = islice(chain.from_iterable(read), documents.epoch_size)
        return sum("I have no name" in document_text(conversation) for conversation in epoch)

    assert denials(None) > 10
    assert denials(Identity("Ada")) == 0


def test_made_up_conversations_are_mixed_in(first: Path) -> None:
    documents = ChatDocuments(
        [Source(first)], seed=0, identity=Identity("Ada"), spelling_conversations=200
    )
    by_name = {report.source: report for report in documents.reports}
    assert by_name["identity"].used == IDENTITY_CONVERSATIONS
    assert by_name["spelling"].used == 200
    conversations = [c for batch, _ in islice(documents.training(Cursor()), 640) for c in batch]
    assert any("Ada" in c.messages[-1].text for c in conversations)
    assert any(spelling.ANSWER in c.messages[-1].text for c in conversations)


@pytest.mark.slow
@needs_shared
def test_every_row_of_the_real_files_is_used_or_accounted_for() -> None:
    documents = ChatDocuments([Source(SHARED / "data" / "sft")], seed=0)
    (report,) = documents.reports
    assert report.rows == report.used + sum(report.skipped.values()) == 10_529
    assert documents.epoch_size == report.used - report.held_out
    assert len(documents.names) == 8
