"""The built-in corpus is deterministic, never asks a held-out question, and is correct English."""

import hashlib
import re
from collections import Counter
from itertools import islice

import pytest

from mlxchat.data.corpus.documents import corpus_documents, document_text, held_out_questions
from mlxchat.data.corpus.smalltalk import SMALL_TALK, STORY_REQUESTS
from mlxchat.data.corpus.world import ANIMALS, FACTS, is_held_out, with_article
from mlxchat.tokenizer.messages import Conversation

ROLES = ["user", "assistant"]


@pytest.fixture(scope="module")
def documents():
    return list(islice(corpus_documents(seed=0), 20_000))


@pytest.fixture(scope="module")
def exchanges(documents):
    """Every user message of the documents, with what came before it and the answer."""
    return [
        (messages[:i], messages[i].content, messages[i + 1].content)
        for messages in (d.messages for d in documents if isinstance(d, Conversation))
        for i in range(0, len(messages), 2)
    ]


def normal(prompt):
    return " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))


def test_documents_are_the_same_on_every_machine():
    texts = "\0".join(document_text(d) for d in islice(corpus_documents(seed=7), 500))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "f55f2c5e4b950380"


def test_documents_resume_at_any_position(documents):
    assert list(islice(corpus_documents(seed=0, start=123), 50)) == documents[123:173]
    assert next(corpus_documents(seed=1)) != documents[0]


def test_a_quarter_of_documents_are_stories_and_the_rest_whole_conversations(documents):
    conversations = [d for d in documents if isinstance(d, Conversation)]
    assert 0.2 < 1 - len(conversations) / len(documents) < 0.4
    for conversation in conversations:
        roles = [message.role for message in conversation.messages]
        assert roles == ROLES * (len(roles) // 2)
        assert all(message.content.strip() for message in conversation.messages)
    turns = Counter(len(conversation.messages) // 2 for conversation in conversations)
    assert all(turns[n] > 500 for n in (1, 2, 3, 4))


def test_a_held_out_question_is_never_asked(exchanges):
    assert not any(is_held_out(prompt) for _, prompt, _ in exchanges)
    asked = {normal(prompt) for _, prompt, _ in exchanges}
    assert not asked & {normal(q.prompt) for q in held_out_questions(2_000)}


def test_a_held_out_question_is_in_no_story(documents):
    told = [text for d in documents for text in ([d] if isinstance(d, str) else [])]
    quoted = {quote for text in told for quote in re.findall(r'"([^"]*\?)"', text)}
    assert len(quoted) > 100
    assert not any(is_held_out(question) for question in quoted)
    held = {q for fact in FACTS for q in fact.questions if is_held_out(q)}
    assert len(held) > 100
    everything = "\n".join(told)
    assert not any(question in everything for question in held)


def test_a_held_out_question_stays_held_out_however_it_is_typed():
    for question in held_out_questions(100):
        assert is_held_out(question.prompt.lower().rstrip(".?"))


def test_held_out_questions_are_different_and_repeatable():
    questions = held_out_questions(500)
    assert len({q.prompt for q in questions}) == 500
    assert questions[:100] == held_out_questions(100)
    assert questions != held_out_questions(500, seed=1)
    assert all(is_held_out(q.prompt) for q in questions)


def test_held_out_questions_are_about_facts_and_about_passages():
    answers = {q: fact.statement for fact in FACTS for q in fact.questions}
    questions = held_out_questions(200)
    facts = [q for q in questions if q.prompt in answers]
    assert 60 < len(facts) < 140
    assert all(q.answer == answers[q.prompt] for q in facts)


def test_one_prompt_has_one_answer(exchanges):
    answers = {}
    for before, prompt, answer in exchanges:
        if not before:
            assert answers.setdefault(normal(prompt), answer) == answer, prompt
    assert len(answers) > 3_000


def test_no_two_facts_share_a_question():
    counts = Counter(normal(q) for fact in FACTS for q in fact.questions)
    assert [q for q, n in counts.items() if n > 1] == []


def test_every_fact_has_wordings_that_are_trained():
    for fact in FACTS:
        assert sum(not is_held_out(q) for q in fact.questions) >= 3, fact.statement


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        "Hi!",
        "Who are you?",
        "What is your name?",
        "How are you?",
        "Thank you!",
        "Goodbye!",
    ],
)
def test_usual_first_messages_are_trained(prompt):
    assert not is_held_out(prompt)
    assert normal(prompt) in {normal(said.prompt) for said in SMALL_TALK}


def test_a_request_gets_a_story():
    assert not any(is_held_out(request.format("")) for request in STORY_REQUESTS)


def test_a_name_is_remembered_later_in_the_conversation(exchanges):
    remembered = 0
    for before, _, answer in exchanges:
        names = re.findall(r"It is nice to meet you, (\w+)!", " ".join(m.content for m in before))
        if answer == "You have not told me your name.":
            assert not names
        if found := re.fullmatch(r"Your name is (\w+)\.", answer):
            assert names[-1] == found[1]
            remembered += 1
    assert remembered > 100


def test_the_answer_about_a_passage_is_in_the_passage():
    passages = [q for q in held_out_questions(400) if q.prompt.count(".") >= 2]
    assert len(passages) > 100
    for q in passages:
        told = re.findall(r"\w+", q.prompt[: q.prompt.rindex(".")])
        assert re.findall(r"\w+", q.answer)[-1] in told


def test_documents_have_no_placeholders_wrong_articles_or_doubled_words(documents):
    for document in documents[:5_000]:
        text = document_text(document)
        assert not re.search(r"[<>{}_]|  |\.\.|,,", text), text
        assert not re.search(r"\b[Aa] [aeiou]", text), text
        assert not re.search(r"\b[Aa]n [^aeiou]", text), text
        assert not re.search(r"\b(\w+) \1\b", text.replace("sheep, two sheep", "")), text
    for document in documents[:5_000]:
        parts = (
            [document]
            if isinstance(document, str)
            else [m.content for m in document.messages if m.role == "assistant"]
        )
        for part in parts:
            assert part[0].isupper() and part[-1] in '.!?"', part
            for start in re.findall(r"[.!?] (\w)", part):
                assert start.isupper(), part
            assert part.count('"') % 2 == 0, part


def test_stories_have_four_to_ten_sentences(documents):
    for story in [d for d in documents if isinstance(d, str)][:2_000]:
        assert 4 <= len(re.findall(r'[.!?]"?(?= [A-Z"]|$)', story)) <= 9, story


def test_an_article_fits_its_word():
    assert with_article("owl") == "an owl"
    assert with_article("orange drum") == "an orange drum"
    assert {with_article(a.name).split()[0] for a in ANIMALS} == {"a", "an"}


def test_the_vocabulary_has_a_few_hundred_words(documents):
    words = Counter(w for d in documents for w in re.findall(r"[a-z]+", document_text(d).lower()))
    assert 400 < len(words) < 700


def test_text_joins_the_messages(documents):
    conversation = next(d for d in documents if isinstance(d, Conversation))
    assert document_text(conversation) == "\n".join(m.content for m in conversation.messages)
    story = next(d for d in documents if isinstance(d, str))
    assert document_text(story) is story
