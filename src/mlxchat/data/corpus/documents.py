"""The built-in corpus: stories and conversations of a small world, made by a grammar, without end.

Document ``i`` of a seed depends on nothing but the two, so a position is all that a loader must
remember. One question in ten is never shown (`is_held_out`); a model that answers those has learned
the facts behind the others, or to read.
"""

from collections.abc import Iterator
from itertools import count as count_from
from random import Random

from mlxchat.data.corpus.smalltalk import (
    INTRODUCTIONS,
    NAME_QUESTIONS,
    NAMELESS,
    SMALL_TALK,
    STORY_REQUESTS,
)
from mlxchat.data.corpus.stories import CHILD_NAMES, passage, story
from mlxchat.data.corpus.world import FACTS, Fact, Question, is_held_out
from mlxchat.tokenizer.messages import Conversation, Document, Message

STORIES = 0.25  # share of documents that are stories
PASSAGES = 0.5  # share of questions that are about a passage; the others are about facts
CARELESS_CONVERSATIONS = 1 / 8  # share of conversations in which the user types carelessly
MOST_TURNS = 4  # questions in a conversation
FOLLOWED_UP = ("sound", "home", "food", "legs", "colour")  # kinds of facts asked as "And a cow?"


def corpus_documents(seed: int, start: int = 0) -> Iterator[Document]:
    """Yield the documents of ``seed`` from number ``start`` on, without end."""
    for i in count_from(start):
        rng = Random(f"{seed}/{i}")
        yield story(rng, rng.choice(CHILD_NAMES)) if rng.random() < STORIES else _conversation(rng)


def held_out_questions(count: int, seed: int = 0) -> list[Question]:
    """Return ``count`` different questions that no document asks.

    They are drawn as the documents draw theirs: half about facts, half about passages.
    """
    rng = Random(f"held out/{seed}")
    questions: dict[str, Question] = {}
    while len(questions) < count:
        question = _asked(rng)[0]
        if is_held_out(question.prompt):
            questions.setdefault(question.prompt, question)
    return list(questions.values())


def document_text(document: Document) -> str:
    """Return a document's text, its messages joined by line breaks, for training a tokenizer."""
    if isinstance(document, str):
        return document
    return "\n".join(message.text for message in document.messages)


def _of_fact(rng: Random, fact: Fact) -> Question:
    return Question(rng.choice(fact.questions), fact.statement)


def _asked(rng: Random) -> list[Question]:
    """The user asks about the world, or about a passage that the first question contains."""
    if rng.random() < PASSAGES:
        return passage(rng)
    return [_of_fact(rng, rng.choice(FACTS))]


def _followed_up(rng: Random) -> list[Question]:
    """A question about one of a kind, then the same about another in two or three words."""
    kind = rng.choice(FOLLOWED_UP)
    first, second = rng.sample([fact for fact in FACTS if fact.kind == kind], 2)
    return [_of_fact(rng, first), Question(f"And {second.subject}?", second.statement)]


def _chatted(rng: Random) -> list[Question]:
    return [rng.choice(SMALL_TALK)]


def _introduced(rng: Random) -> list[Question]:
    """The user gives a name and, at once or after another exchange, asks for it."""
    name = rng.choice(CHILD_NAMES)
    told = Question(rng.choice(INTRODUCTIONS).format(name), f"It is nice to meet you, {name}!")
    asked = Question(rng.choice(NAME_QUESTIONS), f"Your name is {name}.")
    return [told, *rng.choice(((), _asked(rng))), asked]


def _told_a_story(rng: Random) -> list[Question]:
    """The user asks for a story; the same request always gets the same story."""
    request = rng.choice(STORY_REQUESTS).format("")
    hero = Random(request).choice(CHILD_NAMES)
    if rng.random() < 0.5:
        hero = rng.choice(CHILD_NAMES)
        request = rng.choice(STORY_REQUESTS).format(f" about {hero}")
    return [Question(request, story(Random(request), hero))]


# The exchanges that continue a conversation, each entry equally likely.
_EXCHANGES = (*[_asked] * 14, *[_chatted] * 3, _followed_up, _introduced, _told_a_story)


def _conversation(rng: Random) -> Conversation:
    turns: list[Question] = []
    wanted = rng.randrange(1, MOST_TURNS + 1)
    while len(turns) < wanted:
        exchange = rng.choice(_EXCHANGES)(rng)
        if _may_follow(turns, exchange):
            turns += exchange
    is_careless = rng.random() < CARELESS_CONVERSATIONS
    messages = []
    for turn in turns:
        prompt = _careless(turn.prompt) if is_careless else turn.prompt
        messages += [Message("user", prompt), Message("assistant", turn.answer)]
    return Conversation(tuple(messages))


def _may_follow(turns: list[Question], exchange: list[Question]) -> bool:
    """Return whether an exchange fits, asks nothing held out, and forgets no name given before."""
    is_named = any(turn.answer.startswith("Your name is") for turn in turns)
    return (
        len(turns) + len(exchange) <= MOST_TURNS
        and not any(is_held_out(turn.prompt) for turn in exchange)
        and not (is_named and any(turn.answer == NAMELESS for turn in exchange))
    )


def _careless(prompt: str) -> str:
    """Write a prompt as people type: no capital at the start, no mark at the end."""
    return prompt[0].lower() + prompt[1:].rstrip(".!?")
