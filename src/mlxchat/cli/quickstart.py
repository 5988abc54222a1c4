"""What `mlxchat quickstart` does."""

import json as json_format
import sys
import time
from itertools import islice

from mlxchat.cli import chat
from mlxchat.cli.session import watch
from mlxchat.config.inference import Sampling
from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.data.corpus.world import Question
from mlxchat.evaluate.answers import Outcome, write
from mlxchat.evaluate.loss import LONGEST_REPLY, word_for_word
from mlxchat.home import Home
from mlxchat.telemetry.events import Progressed
from mlxchat.train.pretrain import pretrain
from mlxchat.train.quickstart import PRETRAINING, TUNING
from mlxchat.train.sft import fine_tune
from mlxchat.ui.console import Screen, answers, say

SHOWN_ANSWERS = 6
AT_ONCE = 16  # questions


def quickstart(questions: int, fresh: bool, json: bool) -> None:
    """Pretrain and fine-tune on the built-in corpus, ask held-out questions, offer the chat."""
    home = Home.from_environment()
    tokenizer = home.root / "tokenizer_quickstart"
    base = PRETRAINING.model_copy(update={"tokenizer_dir": tokenizer})
    watch(lambda show, meter, stop: pretrain(base, home, show, meter, stop, fresh), json)
    watch(lambda show, meter, stop: fine_tune(TUNING, home, show, meter, stop, fresh), json)
    saved, name = chat.load(TUNING.tag, None, None)
    asked, answered = held_out_questions(questions), dict[str, Outcome]()
    with Screen(json) as screen:
        for outcome in write(saved, word_for_word(asked), AT_ONCE, LONGEST_REPLY):
            answered[outcome.problem.prompt.messages[0].text] = outcome
            screen.show(Progressed(time.time(), "questions", len(answered), questions, "questions"))
    _show_score(asked, answered, json)
    if json:
        return
    say("Go on with:")
    say("  mlxchat chat                                          talk to it")
    say("  mlxchat data fetch --num-shards 8                     get real text")
    say("  mlxchat train --depth 4                               train on it")
    say("  mlxchat sft --source d4 --data chats.jsonl            teach it to answer")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say()
        chat.talk(saved, name, Sampling(), seed=42, max_tokens=128, prompt=None)


def _show_score(asked: list[Question], answered: dict[str, Outcome], json: bool) -> None:
    outcomes = [answered[question.prompt] for question in asked]
    right = sum(outcome.right for outcome in outcomes)
    if json:
        told = [
            {"question": question.prompt, "expected": question.answer, "answer": outcome.answer}
            for question, outcome in zip(asked, outcomes, strict=True)
        ]
        score = {"event": "score", "questions": len(asked), "right": right, "answers": told}
        say(json_format.dumps(score))
        return
    say()
    say("Questions that it never saw in training, and its answers:")
    answers(
        (question.prompt, outcome.answer.strip() + ("" if outcome.right else "  (wrong)"))
        for question, outcome in islice(zip(asked, outcomes, strict=True), SHOWN_ANSWERS)
    )
    say(f"{right} of {len(asked)} answered exactly right ({right / len(asked):.1%}).")
    say()
