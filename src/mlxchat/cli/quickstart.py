"""The command `quickstart`: a small model, from scratch to answers, on the built-in corpus."""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.cli.chat import load_chosen, talk
from mlxchat.cli.options import Fresh, Json, StayAwake
from mlxchat.cli.session import Show, Stop, staying_awake, watch_run
from mlxchat.config.inference import ChatSettings
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Event, Noted, Progressed, Started
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.console import Screen, answers, say, say_json, say_paragraphs, say_whole, warning
from mlxchat.ui.tables import about
from mlxchat.ui.text import amount

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
    sample_every=375,
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
INTRODUCTION = (
    "This trains a small language model from scratch, on this machine, and then lets you chat with "
    "it. It takes one to three minutes on an idle laptop and needs no network. Press Ctrl-C to "
    "stop; the same command picks up where you left off."
)
TO_WRITE = (
    "Part 1 of 3: learning to write. The model reads short stories and keeps guessing the next "
    "token: a word, or a piece of one. (The list of all tokens, the tokenizer, is made first.) "
    f"After every {BASE_CONFIG.total_batch_size:,} guesses it is corrected a little. That is one "
    f"step; {BASE_CONFIG.num_iterations} steps make up this part. After the first few you see how "
    "much time is left. Halfway through and at the end, samples show what the model writes."
)
TO_ANSWER = (
    "Part 2 of 3: learning to answer. The same model now learns from questions with answers, for "
    f"{TUNED_CONFIG.num_iterations} steps"
)
NEXT = (
    ("mlxchat chat", "Chat with it again."),
    ("mlxchat data fetch --num-shards 2", "Download real text: 0.3 GB of web pages."),
    ("mlxchat data fetch --from novels.txt", "Or use your own text."),
    (
        "mlxchat train --budget 1h",
        "Train on it for an hour, or 10m, or 8h. Your own text: --dataset novels.",
    ),
    ('mlxchat sft --identity "name=Ada"', "Teach that model to answer, and to say who it is."),
)


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
    if not json:
        say_paragraphs(INTRODUCTION, TO_WRITE)
    from mlxchat.data.corpus.documents import held_out_questions
    from mlxchat.evaluate.answers import write_answers
    from mlxchat.evaluate.loss import LONGEST_REPLY, word_for_word
    from mlxchat.train.pretrain import run_pretraining
    from mlxchat.train.sft import run_fine_tuning

    home = Home.from_environment()
    base = BASE_CONFIG.model_copy(update={"tokenizer_dir": home.root / "tokenizer_quickstart"})
    with staying_awake(stay_awake, json):
        written = _train(run_pretraining, base, home, fresh, json)
        if not json:
            say_paragraphs(*_what_was_learned(written), _answering(written))
        _train(run_fine_tuning, TUNED_CONFIG, home, fresh, json)
    saved, name = load_chosen(TUNED_CONFIG.tag, None, None)
    asked, answered = held_out_questions(questions), dict[str, Any]()
    if not json:
        say_paragraphs(
            f"Part 3 of 3: a test. The model answers {amount(questions, 'questions')} that it has "
            "never seen. This takes a few seconds."
        )
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
    for command, purpose in NEXT:
        say_whole(f"  {command}")
        say(f"      {purpose}")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say()
        talk(saved, name, ChatSettings(max_tokens=128), prompt=None, history=True)


def _train(
    start: Callable[..., Iterator[Event]], config: RunConfig, home: Home, fresh: bool, json: bool
) -> Meter:
    """Train in this terminal, without what only people want to know who chose the settings."""

    def begin(show: Show, meter: Meter, stop: Stop) -> Iterator[Event]:
        events = start(config, home, show, meter, stop, fresh)
        return events if json else _without_plan(events)

    try:
        return watch_run(begin, json)
    except LockedError as error:  # its remedy is another name, which quickstart does not take
        raise LockedError(
            error.problem, "Wait for it to finish, or stop it with Ctrl-C: it saves its progress."
        ) from error


def _without_plan(events: Iterator[Event]) -> Iterator[Event]:
    """Leave out what is noted before the run starts and when it does, if it starts at all."""
    noted: list[Event] = []
    planning = True
    for event in events:
        if planning and isinstance(event, Noted):
            noted.append(event)
            continue
        planning = planning and isinstance(event, Started | Progressed)
        noted.clear()
        yield event
    yield from noted  # such as that the run is finished


def _what_was_learned(meter: Meter) -> Iterator[str]:
    """Say what training has changed, and what its figures mean."""
    if not meter.evaluations:
        return
    (first, before), (last, after) = meter.evaluations[0], meter.evaluations[-1]
    yield (
        f"On stories it has never seen, the model went from {before:.2f} bits per byte at step "
        f"{first:,} to {after:.2f} at step {last:,}. That is how much each letter still surprises "
        "it, so lower is better."
    )


def _answering(meter: Meter) -> str:
    """Say what comes second, and how long it takes at the speed of the first run."""
    seconds = meter.seconds_per_step
    if seconds is None:  # the first run was finished before
        return f"{TO_ANSWER}. Parts that are finished are skipped; --fresh starts over."
    return f"{TO_ANSWER}: {about((TUNED_CONFIG.num_iterations or 0) * seconds)}."


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
    say("How it learned, with curves and samples, as pages for your browser:")
    for path in paths:
        say_whole(f"  {path}")
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
    say("Some of the questions, with its answers:")
    answers(
        (question.prompt, outcome.answer.strip() + ("" if outcome.right else "  (wrong)"))
        for question, outcome in islice(zip(asked, outcomes, strict=True), SHOWN_ANSWERS)
    )
    say(f"It answered {right} of {len(asked)} exactly right ({right / len(asked):.1%}).")
    say()
