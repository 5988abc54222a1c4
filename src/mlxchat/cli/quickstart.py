"""The command `quickstart`: a small model, from scratch to answers, on the built-in corpus."""

import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.cli.chat import load_chosen, talk
from mlxchat.cli.options import Fresh, Json, StayAwake
from mlxchat.cli.session import staying_awake, watch_run
from mlxchat.config.inference import ChatSettings
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Progressed
from mlxchat.ui.console import Screen, answers, say, say_json, warning

if TYPE_CHECKING:
    from mlxchat.data.corpus.world import Question
    from mlxchat.evaluate.answers import Outcome

BASE_CONFIG = PretrainConfig(
    dataset=BUILTIN,
    model_tag="quickstart",
    depth=2,
    head_dim=64,  # two heads: with one, the model hardly learns to read
    max_seq_len=128,
    device_batch_size=16,
    total_batch_size=16 * 128,
    num_iterations=750,
    matrix_lr=0.01,
    embedding_lr=0.04,
    unembedding_lr=0.0033,
    warmdown_ratio=0.5,
    eval_every=375,
    eval_tokens=16 * 128 * 16,
    sample_every=0,
    save_every=375,
    keep=1,
)
TUNED_CONFIG = SftConfig(
    source=BASE_CONFIG.tag,
    data=[BUILTIN],
    device_batch_size=16,
    total_batch_size=16 * 128,
    num_iterations=100,
    eval_every=0,
    sample_every=0,
    save_every=50,
    keep=1,
)
SHOWN_ANSWERS = 6
ANSWERED_TOGETHER = 16  # questions in a batch


def quickstart_command(
    questions: Annotated[
        int, typer.Option(min=1, max=1000, help="Held-out questions to ask the model.")
    ] = 200,
    fresh: Fresh = False,
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a small model on the built-in corpus, fine-tune it to answer, and talk to it.

    Needs no network and takes a few minutes. The model is scored on questions
    that it never saw in training.
    """
    from mlxchat.data.corpus.documents import held_out_questions
    from mlxchat.evaluate.answers import write_answers
    from mlxchat.evaluate.loss import LONGEST_REPLY, word_for_word
    from mlxchat.train.pretrain import run_pretraining
    from mlxchat.train.sft import run_fine_tuning

    home = Home.from_environment()
    base = BASE_CONFIG.model_copy(update={"tokenizer_dir": home.root / "tokenizer_quickstart"})
    with staying_awake(stay_awake, json):
        watch_run(
            lambda show, meter, stop: run_pretraining(base, home, show, meter, stop, fresh), json
        )
        watch_run(
            lambda show, meter, stop: run_fine_tuning(TUNED_CONFIG, home, show, meter, stop, fresh),
            json,
        )
    saved, name = load_chosen(TUNED_CONFIG.tag, None, None)
    asked, answered = held_out_questions(questions), dict[str, Any]()
    with Screen(json) as screen:
        exercises = word_for_word(asked)
        for outcome in write_answers(saved, exercises, ANSWERED_TOGETHER, LONGEST_REPLY):
            answered[outcome.problem.prompt.messages[0].text] = outcome
            screen.show(Progressed(time.time(), "questions", len(answered), questions, "questions"))
    _show_score(asked, [answered[question.prompt] for question in asked], json)
    _write_reports(home, json)
    if json:
        return
    say("Next:")
    say("  mlxchat chat                                          talk to it")
    say("  mlxchat data fetch --num-shards 8                     get real text")
    say("  mlxchat train --depth 4                               train on it")
    say("  mlxchat sft --source d4 --data chats.jsonl            teach it to answer")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say()
        talk(saved, name, ChatSettings(max_tokens=128), prompt=None, history=True)


def _write_reports(home: Home, json: bool) -> None:
    """Write a report of each of the two runs, and say where; that it fails is only a warning."""
    from mlxchat.report.write import write_report

    try:
        paths = [write_report(home, [tag]).path for tag in (BASE_CONFIG.tag, TUNED_CONFIG.tag)]
    except MlxchatError as error:
        warning(f"{error.problem} {error.remedy}")
        return
    if json:
        say_json({"event": "reports", "paths": paths})
        return
    say("How the training went, as pages for your browser:")
    for path in paths:
        say(f"  {path}")
    say()


def _show_score(asked: "list[Question]", outcomes: "list[Outcome]", json: bool) -> None:
    right = sum(outcome.right for outcome in outcomes)
    if json:
        each = [
            {"question": question.prompt, "expected": question.answer, "answer": outcome.answer}
            for question, outcome in zip(asked, outcomes, strict=True)
        ]
        score = {"event": "score", "questions": len(asked), "right": right, "answers": each}
        say_json(score)
        return
    say()
    say("Questions that it never saw in training, and its answers:")
    answers(
        (question.prompt, outcome.answer.strip() + ("" if outcome.right else "  (wrong)"))
        for question, outcome in islice(zip(asked, outcomes, strict=True), SHOWN_ANSWERS)
    )
    say(f"{right} of {len(asked)} answered exactly right ({right / len(asked):.1%}).")
    say()
