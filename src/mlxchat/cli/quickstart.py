"""What `mlxchat quickstart` does."""

import json as json_format
import sys
import time
from itertools import islice

from mlxchat.cli import chatting
from mlxchat.cli.running import watch
from mlxchat.data import corpus
from mlxchat.engine.options import Sampling
from mlxchat.evaluate.questions import Answered, ask
from mlxchat.home import Home
from mlxchat.telemetry import Progressed
from mlxchat.train.pretrain import pretrain
from mlxchat.train.quickstart import PRETRAINING, TUNING
from mlxchat.train.sft import fine_tune
from mlxchat.ui.console import Screen, answers, say

SHOWN_ANSWERS = 6


def quickstart(questions: int, fresh: bool, json: bool) -> None:
    """Pretrain and fine-tune on the built-in corpus, ask held-out questions, offer the chat."""
    home = Home.from_environment()
    tokenizer = home.root / "tokenizer_quickstart"
    base = PRETRAINING.model_copy(update={"tokenizer_dir": tokenizer})
    watch(lambda show, meter, stop: pretrain(base, home, show, meter, stop, fresh), json)
    watch(lambda show, meter, stop: fine_tune(TUNING, home, show, meter, stop, fresh), json)
    saved, name = chatting.load(TUNING.tag, None, None)
    answered = []
    with Screen(json) as screen:
        for asked in ask(saved, corpus.held_out(questions)):
            answered.append(asked)
            screen.show(Progressed(time.time(), "questions", len(answered), questions, "questions"))
    _show_score(answered, json)
    if json:
        return
    say("Go on with:")
    say("  mlxchat chat                                          talk to it")
    say("  mlxchat data fetch --num-shards 8                     get real text")
    say("  mlxchat train --depth 4                               train on it")
    say("  mlxchat sft --source d4 --data chats.jsonl            teach it to answer")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say()
        chatting.talk(saved, name, Sampling(), seed=42, max_tokens=128, prompt=None)


def _show_score(answered: list[Answered], json: bool) -> None:
    right = sum(asked.correct for asked in answered)
    if json:
        say(
            json_format.dumps(
                {
                    "event": "score",
                    "questions": len(answered),
                    "right": right,
                    "answers": [
                        {
                            "question": asked.question.prompt,
                            "expected": asked.question.answer,
                            "answer": asked.answer,
                        }
                        for asked in answered
                    ],
                }
            )
        )
        return
    say()
    say("Questions that it never saw in training, and its answers:")
    answers(
        (asked.question.prompt, asked.answer + ("" if asked.correct else "  (wrong)"))
        for asked in islice(answered, SHOWN_ANSWERS)
    )
    say(f"{right} of {len(answered)} answered exactly right ({right / len(answered):.1%}).")
    say()
