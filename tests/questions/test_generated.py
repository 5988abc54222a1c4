"""Generated questions: right answers, levels, what is held out, and the same in every process."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from mlxchat.data.chats import spelling
from mlxchat.data.questions.arithmetic import (
    ARITHMETIC_LEVELS,
    WITH_CALCULATOR,
    Expression,
    arithmetic_question,
)
from mlxchat.data.questions.choice import GENERATED, TaskChoice
from mlxchat.data.questions.letters import COUNTING_LEVELS, SPELLING_LEVELS
from mlxchat.data.questions.question import (
    LazySequence,
    TaskQuestion,
    final_number,
    is_question_held_out,
    is_right,
)
from mlxchat.data.questions.tasks import (
    MOST_HELD_OUT,
    generated_questions,
    levels_of,
    solved_conversations,
)
from mlxchat.engine.tools import calculate
from mlxchat.errors import ConfigError

SHOWN = 300  # questions of a sequence that the tests look at
CHOICES = [
    TaskChoice(name, level)
    for name in GENERATED
    for level in (None, *range(1, levels_of(name) + 1))
]


def expression(question: TaskQuestion) -> str:
    """The expression in a question of arithmetic, with signs for words."""
    text = question.prompt.removesuffix(WITH_CALCULATOR)
    for word, sign in (("plus", "+"), ("minus", "-"), ("times", "*")):
        text = text.replace(f" {word} ", sign)
    [found] = re.findall(r"[0-9][0-9+*\- ]*", text)
    return found.replace(" ", "")


def what_is_asked(name: str, question: TaskQuestion) -> str:
    """What identifies a question, found in its words and its reply."""
    if name == "arithmetic":
        terms = re.findall(r"[+-]?[0-9*]+", expression(question))
        signed = (term if term[0] in "+-" else f"+{term}" for term in terms)
        return " ".join(
            sorted(term[0] + "*".join(sorted(term[1:].split("*"), key=int)) for term in signed)
        )
    if name == "spelling":
        return question.answer.partition(":")[0]
    counted = re.search(r"'(\w+)'\.count\('(\w)'\)", question.reply.text)
    assert counted
    return " ".join(counted.groups())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_replies_are_right_and_questions_apart(choice: TaskChoice) -> None:
    source = generated_questions(choice, seed=42)
    train, held_out = source.train[:SHOWN], source.held_out
    assert len(source.train) == 8192 and len(held_out) == MOST_HELD_OUT
    assert len({question.prompt for question in held_out}) == len(held_out)
    for question in (*train, *held_out):
        assert source.is_right(question, question.reply.text)
        assert not source.is_right(question, question.reply.text[:-1])
        assert question.solved.turns()[0].text == question.prompt
    trained = {what_is_asked(choice.name, question) for question in train}
    assert not trained & {what_is_asked(choice.name, question) for question in held_out}


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_questions_know_what_others_ask_in_other_words(choice: TaskChoice) -> None:
    held_out = generated_questions(choice, seed=42).held_out

    def same(one: TaskQuestion) -> str:
        if choice.name == "spelling":  # a word backwards is another question
            return one.answer
        return what_is_asked(choice.name, one)

    pairs = {(question.asked, same(question)) for question in held_out}
    assert len(pairs) == len({own for own, _ in pairs}) == len({found for _, found in pairs})


@pytest.mark.parametrize(
    ("choice", "different"),
    [
        (TaskChoice("arithmetic", 1), 31),
        (TaskChoice("arithmetic", 1, calculator=True), 31),
        (TaskChoice("arithmetic", 5), MOST_HELD_OUT),
        (TaskChoice("spelling", 2), 13),
    ],
    ids=str,
)
def test_the_easiest_levels_ask_few_different_questions(choice: TaskChoice, different: int) -> None:
    held_out = generated_questions(choice, seed=42).held_out
    assert len({question.asked for question in held_out}) == different


@pytest.mark.parametrize("level", range(1, levels_of("arithmetic") + 1))
@pytest.mark.parametrize("calculator", [False, True])
def test_answers_are_what_the_calculator_says(level: int, calculator: bool) -> None:
    source = generated_questions(TaskChoice("arithmetic", level, calculator), seed=1)
    digits, operations, numbers = ARITHMETIC_LEVELS[level - 1]
    seen = set()
    for question in source.train[:SHOWN]:
        asked = expression(question)
        assert question.answer == calculate(asked) == final_number(question.reply.text)
        assert question.prompt.endswith(WITH_CALCULATOR) == calculator
        if calculator:
            parts = [(part.type, part.text) for part in question.reply.parts]
            assert parts[1:3] == [("python", asked), ("python_output", question.answer)]
        else:
            steps, end = question.reply.text.split("\n")
            assert steps.startswith(f"{asked}=") and end == f"#### {question.answer}"
            assert {calculate(step) for step in steps.split("=")} == {question.answer}
        found = re.findall(r"\d+", asked)
        assert len(found) == numbers and max(map(len, found)) <= digits
        seen |= set(re.findall(r"[-+*]", asked))
    assert seen == set(operations)


@pytest.mark.parametrize(
    ("text", "numbers", "signs", "steps"),
    [
        ("7", (7,), "", "7"),
        ("3-8", (3, 8), "-", "3-8=-5"),
        ("3-8+2", (3, 8, 2), "-+", "3-8+2=-5+2=-3"),
        ("2+3*4", (2, 3, 4), "+*", "2+3*4=2+12=14"),
        ("2*3*4", (2, 3, 4), "**", "2*3*4=6*4=24"),
        ("2*3-4*5", (2, 3, 4, 5), "*-*", "2*3-4*5=6-4*5=6-20=-14"),
    ],
)
def test_one_operation_after_the_other(
    text: str, numbers: tuple[int, ...], signs: str, steps: str
) -> None:
    expression = Expression(numbers, signs)
    assert str(expression) == text
    assert "=".join(map(str, expression.steps())) == steps


def test_another_order_asks_the_same() -> None:
    def same(*written: tuple[tuple[int, ...], str]) -> bool:
        return len({Expression(*each).asked for each in written}) == 1

    assert same(((3, 5), "+"), ((5, 3), "+"))
    assert same(((3, 5), "*"), ((5, 3), "*"))
    assert not same(((3, 5), "-"), ((5, 3), "-"))
    assert same(((1, 2, 10), "+*"), ((10, 2, 1), "*+"), ((2, 10, 1), "*+"))
    assert not same(((1, 2, 10), "+*"), ((1, 2, 10), "*+"))


def test_no_step_towards_an_answer_is_held_out() -> None:
    rng = Random(0)
    for _ in range(SHOWN):
        question = arithmetic_question(rng, ARITHMETIC_LEVELS[2], held_out=False, calculator=False)
        for step in question.reply.text.split("\n")[0].split("=")[:-1]:
            found = re.findall(r"(?:(?<=^)-)?\d+|[-+*]", step)
            asked = Expression(tuple(map(int, found[::2])), "".join(found[1::2])).asked
            assert not is_question_held_out(asked)


def test_letters_of_every_level() -> None:
    for level, (words, joined, backwards, _) in enumerate(SPELLING_LEVELS, start=1):
        source = generated_questions(TaskChoice("spelling", level), seed=3)
        for question in source.train[:50]:
            word, _, letters = question.answer.partition(":")
            assert word in question.prompt and len(word) <= max(map(len, words)) * joined
            assert letters.split(",") == list(reversed(word) if backwards else word)
            wording = question.prompt.replace(word, "")
            assert any(said in wording for said in ("backwards", "end", "last")) == backwards
    for level, (words, joined, _, _) in enumerate(COUNTING_LEVELS, start=1):
        source = generated_questions(TaskChoice("counting", level), seed=3)
        for question in source.train[:50]:
            word, letter = what_is_asked("counting", question).split()
            assert (
                question.answer == str(word.count(letter))
                and len(word) <= max(map(len, words)) * joined
            )


@pytest.mark.parametrize("level", [1, 3, 5])
def test_no_count_is_worth_guessing(level: int) -> None:
    counts = range(COUNTING_LEVELS[level - 1].most + 1)
    source = generated_questions(TaskChoice("counting", level), seed=3)
    for questions in (source.train[:SHOWN], source.held_out):
        found = Counter(int(question.answer) for question in questions)
        assert found.keys() == set(counts)
        assert max(found.values()) < 1.3 * len(questions) / len(counts)


def test_counting_keeps_out_what_the_conversations_of_sft_do() -> None:
    trained = {
        what_is_asked("counting", TaskQuestion(chat, "", chat.messages[1], ""))
        for chat in spelling.spelling_conversations(seed=0, count=500)
        if "count" in chat.messages[1].text
    }
    held_out = generated_questions(TaskChoice("counting", 3), seed=0).held_out
    assert not trained & {what_is_asked("counting", question) for question in held_out}


def shown(questions: Sequence[TaskQuestion]) -> str:
    return repr([(question.prompt, question.answer) for question in questions[:3]])


@pytest.mark.slow
def test_a_seed_gives_the_same_questions_in_every_process() -> None:
    choices = [TaskChoice("arithmetic", 4), TaskChoice("spelling"), TaskChoice("counting", 2)]
    script = (
        "from mlxchat.data.questions.choice import TaskChoice\n"
        "from mlxchat.data.questions.tasks import generated_questions\n"
        f"for choice in {choices}:\n"
        "    source = generated_questions(choice, 7)\n"
        "    for of in (source.train[5000:], source.held_out):\n"
        "        print([(question.prompt, question.answer) for question in of[:3]])\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, env=environment
    )
    here = [generated_questions(choice, 7) for choice in choices]
    expected = [text for it in here for text in (shown(it.train[5000:]), shown(it.held_out))]
    assert printed.stdout.decode().splitlines() == expected


def test_a_seed_changes_what_is_trained_on_and_not_what_is_measured() -> None:
    one, other = (generated_questions(TaskChoice("arithmetic", 4), seed) for seed in (1, 2))
    assert one.train[:20] != other.train[:20]
    assert one.held_out == other.held_out


def test_the_calculator_changes_how_and_not_what_is_asked() -> None:
    head, calculator = (
        generated_questions(TaskChoice("arithmetic", 5, calculator), 1)
        for calculator in (False, True)
    )
    for sequence in ("train", "held_out"):
        pairs = zip(getattr(head, sequence)[:20], getattr(calculator, sequence)[:20], strict=True)
        assert all(
            b.prompt == a.prompt + WITH_CALCULATOR and a.answer == b.answer for a, b in pairs
        )


def test_without_a_level_all_take_turns() -> None:
    train = generated_questions(TaskChoice("arithmetic"), seed=1).train
    for index, question in enumerate(train[:SHOWN]):
        digits, operations, numbers = ARITHMETIC_LEVELS[index % len(ARITHMETIC_LEVELS)]
        found = re.findall(r"\d+", expression(question))
        assert len(found) == numbers and max(map(len, found)) <= digits
        assert set(re.findall(r"[-+*]", expression(question))) <= set(operations)


def test_conversations_to_learn_from_are_the_questions_solved() -> None:
    choice = TaskChoice("arithmetic", 2)
    first = next(solved_conversations(choice, 5))
    assert first == generated_questions(choice, 5).train[0].solved


def test_a_sequence_of_made_items_is_one() -> None:
    made = LazySequence(5, lambda index: index * 10)
    assert list(made) == [0, 10, 20, 30, 40] and made[-1] == 40 and made[3:] == [30, 40]
    assert 30 in made and len(made) == 5 and next(reversed(made)) == 40
    for index in (5, -6):
        with pytest.raises(IndexError):
            made[index]


@pytest.mark.parametrize("level", [0, 10])
def test_a_level_that_is_none_is_said(level: int) -> None:
    with pytest.raises(ConfigError) as caught:
        generated_questions(TaskChoice("arithmetic", level), 1)
    assert "1 to 9" in caught.value.remedy


@pytest.mark.parametrize("choice", [*CHOICES, TaskChoice("arithmetic", 3, True)], ids=str)
def test_a_choice_is_read_as_it_is_written(choice: TaskChoice) -> None:
    assert TaskChoice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    "text", ["", "arithmetics", "arithmetic-", "arithmetic-x", "Arithmetic", "gsm8k", "./spelling"]
)
def test_other_texts_name_no_generated_task(text: str) -> None:
    assert TaskChoice.parse(text) is None


def test_only_arithmetic_is_asked_in_two_ways() -> None:
    with pytest.raises(ConfigError):
        TaskChoice.parse("spelling-2-calculator")


@pytest.mark.parametrize(
    ("completion", "number", "exact"),
    [
        ("#### 12", True, False),
        ("6*2=12\n#### 12\n", True, False),
        ("#### 1,2", True, False),
        ("#### 12.0", False, False),
        ("#### 13\n#### 12", False, False),
        ("12", False, True),
        (" 12\n", False, True),
        ("12.", False, False),
        ("", False, False),
    ],
)
def test_what_counts_as_right(completion: str, number: bool, exact: bool) -> None:
    assert is_right("number", completion, "12") == number
    assert is_right("exact", completion, "12") == exact
