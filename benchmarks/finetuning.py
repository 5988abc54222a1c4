"""What fine-tuning brings: quickstart's base model before and after, and whether it knows its name.

    python benchmarks/finetuning.py [--questions 200] [--json]

Pretrains quickstart's model, asks it held-out questions of the built-in corpus, fine-tunes it on
the corpus's conversations together with an identity, asks the same questions again, and asks for
its name in words that no conversation had. Takes three minutes on two cores, and leaves nothing
behind.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.quickstart import BASE_CONFIG, TUNED_CONFIG
from mlxchat.data.chats.asking import HELD_OUT_QUESTIONS
from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.evaluate.answers import write_answers
from mlxchat.evaluate.loss import LONGEST_REPLY, word_for_word
from mlxchat.evaluate.tasks import Exercise, user_prompt
from mlxchat.home import Home
from mlxchat.telemetry.events import Event
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.sft import run_fine_tuning

NAME = "Ada"
AT_ONCE = 16  # questions


def seconds(events: Iterator[Event]) -> float:
    """What a run takes."""
    begun = time.perf_counter()
    for _ in events:
        pass
    return time.perf_counter() - begun


def load(home: Home, tag: str) -> SavedModel:
    """A run's newest model."""
    saved = layout.read_model(catalog.find(home.stages, tag, None), runtime.machine().compute_dtype)
    saved.model.prepare_for_inference()
    return saved


def right(saved: SavedModel, questions: int) -> int:
    """How many held-out questions it answers word for word."""
    outcomes = write_answers(
        saved, word_for_word(held_out_questions(questions)), AT_ONCE, LONGEST_REPLY
    )
    return sum(outcome.right for outcome in outcomes)


def says_its_name(saved: SavedModel) -> int:
    """To how many of the questions for it that no conversation had."""
    exercises = [
        Exercise(user_prompt(text), lambda said: NAME in said) for text in HELD_OUT_QUESTIONS
    ]
    return sum(outcome.right for outcome in write_answers(saved, exercises, AT_ONCE, LONGEST_REPLY))


def measure(questions: int) -> dict[str, object]:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        pretraining = seconds(run_pretraining(BASE_CONFIG, home, lambda _: None))
        base = load(home, BASE_CONFIG.tag)
        named = TUNED_CONFIG.model_copy(update={"identity": f"name={NAME}, made by=Grace"})
        tuning = seconds(run_fine_tuning(named, home, lambda _: None))
        tuned = load(home, TUNED_CONFIG.tag)
        return {
            "questions": questions,
            "right_before": right(base, questions),
            "right_after": right(tuned, questions),
            "asked_for_its_name": len(HELD_OUT_QUESTIONS),
            "says_it_before": says_its_name(base),
            "says_it_after": says_its_name(tuned),
            "pretraining_seconds": round(pretraining, 1),
            "fine_tuning_seconds": round(tuning, 1),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Quickstart's model before and after fine-tuning.")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.questions)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):24} {value}")


if __name__ == "__main__":
    main()
