"""What `mlxchat train`, `tokenizer train` and `quickstart` do."""

import json as json_format
import sys
import time
from contextlib import ExitStack, closing
from itertools import islice

import typer

from mlxchat.cli import chatting
from mlxchat.cli.interrupts import Interrupts, ending_soon
from mlxchat.data import corpus
from mlxchat.engine.options import Sampling
from mlxchat.evaluate.questions import Answered, ask
from mlxchat.home import Home
from mlxchat.meter import Meter
from mlxchat.telemetry import Noted, Progressed, Started
from mlxchat.train import inputs
from mlxchat.train.pretrain import pretrain
from mlxchat.train.quickstart import QUICKSTART
from mlxchat.train.settings import DataConfig, PretrainConfig
from mlxchat.ui.console import Screen, answers, say

INTERRUPTED = "Saving, then ending. Ctrl-C again ends at once, without saving."
SHOWN_ANSWERS = 6


def train_tokenizer(config: DataConfig, max_chars: int, json: bool) -> None:
    """Train a tokenizer on a dataset."""
    home = Home.from_environment()
    folder = inputs.tokenizer_folder(config, home)
    with (
        ending_soon(),
        Screen(json) as screen,
        closing(inputs.open_documents(config, home, screen.show)) as documents,
    ):
        tokenizer = inputs.train_tokenizer(
            documents, folder, config.vocab_size, screen.show, max_chars
        )
    if json:
        say(json_format.dumps({"vocab_size": tokenizer.vocab_size, "folder": str(folder)}))
    else:
        say(f"A tokenizer of {tokenizer.vocab_size:,} tokens is in {folder}.")


def train(config: PretrainConfig, fresh: bool, json: bool) -> None:
    """Pretrain a model, showing how it goes."""
    _run(config, fresh, json)
    if not json:
        say(f"Talk to it: mlxchat chat --model-tag {config.tag}")


def quickstart(questions: int, fresh: bool, json: bool) -> None:
    """Train on the built-in corpus, ask held-out questions, offer the chat."""
    tokenizer = Home.from_environment().root / "tokenizer_quickstart"
    _run(QUICKSTART.model_copy(update={"tokenizer_dir": tokenizer}), fresh, json)
    saved, name = chatting.load(QUICKSTART.tag, None, None)
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
    if sys.stdin.isatty() and sys.stdout.isatty():
        say()
        chatting.talk(saved, name, Sampling(), seed=42, max_tokens=128, prompt=None)


def _run(config: PretrainConfig, fresh: bool, json: bool) -> None:
    """Train, showing events; once the run has started, Ctrl-C saves before it ends the program."""
    home, meter = Home.from_environment(), Meter()
    with Screen(json) as screen, ExitStack() as stack, ExitStack() as before:
        screen.follow(meter)
        before.enter_context(ending_soon())
        interrupts = Interrupts(lambda: screen.show(Noted(time.time(), INTERRUPTED)))
        for event in pretrain(config, home, screen.show, meter, interrupts.requested, fresh):
            if isinstance(event, Started):
                before.close()
                stack.enter_context(interrupts)
            screen.show(event)
    if interrupts.requested():
        raise typer.Exit(interrupts.exit_code)


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
