"""What reinforcement learning brings: right answers to held-out questions, before and after.

    python benchmarks/rl.py --home FOLDER [--seeds 3] [--steps 200] [--json]
    python benchmarks/rl.py --home FOLDER --gpu [--depth 8] [--steps 400] [--minutes 9]

Without `--gpu`: quickstart's model, made there if it is missing, is fine-tuned on a generated task
for so long that it gets a fifth of the questions right. From there it is trained by rewards, and,
beside that, fine-tuned on worked-out answers to questions of the same task, for the same time and
at half of the rates of sft. Both answer the same held-out questions 8 times each, at temperature 1.
Intervals are of 95%, over the questions.

With `--gpu`: a deeper model is pretrained on the built-in corpus, fine-tuned on the task and
trained by rewards. Each call stops after so many minutes; the next one resumes, and prints the
curve until then: pass@1 and pass@8, samples a second, and the share of the time that drawing takes.
"""

import argparse
import json
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxchat import runtime
from mlxchat.checkpoint import layout, store
from mlxchat.cli.quickstart import BASE_CONFIG
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.sft import SftConfig
from mlxchat.counts import share_within
from mlxchat.data.questions.tasks import questions_of
from mlxchat.home import Home
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Event, Judged, Rewarded, Stepped, event_from_json
from mlxchat.train.answer_sampler import AnswerSampler
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.question_evaluation import QuestionEvaluation
from mlxchat.train.rewards import rewards_of
from mlxchat.train.rl import run_reinforcement
from mlxchat.train.rl_documents import QuestionDocuments
from mlxchat.train.sft import run_fine_tuning
from mlxchat.train.world import ALONE

BEGINNING = 0.2  # of the questions right, to begin with
TUNED_EVERY = 10  # steps between two saved ones, among which the model to begin with is found
SFT_RATES = 0.4  # of pretraining's, in the comparison
Log = Callable[[Event], None]


@dataclass(frozen=True)
class Sizes:
    """What differs between two cores and a GPU."""

    base: PretrainConfig
    tuned: SftConfig
    rewarded: RlConfig


def on_cpu(level: int, steps: int) -> Sizes:
    """Quickstart's model and a task that it learns in a minute."""
    task = f"arithmetic-{level}-calculator"
    tuned = SftConfig(
        source=BASE_CONFIG.tag,
        data=[task],
        device_batch_size=16,
        total_batch_size=16 * 128,
        num_iterations=215,
        eval_every=0,
        sample_every=0,
        save_every=TUNED_EVERY,
        keep=100,
    )
    rewarded = RlConfig(
        task="arithmetic",
        level=level,
        calculator=True,
        max_tokens=48,
        num_iterations=steps,
        eval_every=steps // 4,
        eval_questions=400,
        sample_every=0,
        save_every=steps // 4,
    )
    return Sizes(BASE_CONFIG, tuned, rewarded)


def on_gpu(depth: int, level: int, steps: int) -> Sizes:
    """A deeper model, and larger numbers."""
    task = f"arithmetic-{level}-calculator"
    base = PretrainConfig(
        dataset="builtin",
        model_tag=f"d{depth}",
        depth=depth,
        vocab_size=1024,  # the most that the built-in corpus supports is 1,528
        max_seq_len=256,
        total_batch_size=64 * 256,
        num_iterations=600,
        eval_every=200,
        sample_every=0,
        save_every=200,
        keep=1,
    )
    tuned = SftConfig(
        source=base.model_tag,
        data=[task],
        total_batch_size=32 * 256,
        num_iterations=200,
        eval_every=0,
        sample_every=0,
        save_every=TUNED_EVERY,
        keep=100,
    )
    rewarded = RlConfig(
        task="arithmetic",
        level=level,
        calculator=True,
        max_tokens=64,
        num_iterations=steps,
        eval_every=max(1, steps // 20),
        eval_questions=400,
        sample_every=0,
        save_every=max(1, steps // 20),
    )
    return Sizes(base, tuned, rewarded)


def judged(home: Home, folder: Path, config: RlConfig, questions: int = 0) -> Judged:
    """How well a saved model answers held-out questions, as a run's own evaluations measure it."""
    saved = layout.read_model(folder, runtime.machine().compute_dtype)
    source = questions_of(
        config.task,
        level=config.level,
        calculator=config.calculator,
        seed=config.seed,
        task_data=home.task_data,
    )
    if questions:
        config = config.model_copy(update={"eval_questions": questions})
    reward = rewards_of(None, source.check)
    together = 256
    sampler = AnswerSampler(
        saved.model, saved.tokenizer, source, reward, config.sampling, config.max_tokens, together
    )
    documents = QuestionDocuments(source, {}, config.seed)
    measure = QuestionEvaluation(config, documents, sampler, together, ALONE, SYSTEM_CLOCK)
    *_, last = measure.events(0)
    assert isinstance(last, Judged)
    return last


def seconds(events: Iterator[Event], until: float = float("inf")) -> float:
    """The seconds that a run's steps take, drawing included, without evaluations and saving."""
    taken = 0.0
    for event in events:
        if isinstance(event, Stepped):
            taken += event.seconds
            print(f"\r{event.step:>6}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return taken


def begin(home: Home, sizes: Sizes, seed: int, stop: Callable[[], bool]) -> int:
    """Make the model to begin with; returns the first checkpoint that gets a fifth right."""
    if store.latest(home.runs / sizes.base.tag) is None or stop_needed(home, sizes.base):
        seconds(run_pretraining(sizes.base, home, lambda _: None, stop=stop))
    config = sizes.tuned.model_copy(update={"seed": seed, "model_tag": f"tuned-{seed}"})
    seconds(run_fine_tuning(config, home, lambda _: None, stop=stop))
    run = home.finetuned / config.tag

    def share(step: int) -> float:
        found = judged(home, store.directory(run, step), sizes.rewarded, questions=40)
        print(f"step {step} gets {found.pass_1:.0%} right", file=sys.stderr)
        return found.pass_1

    # More training, more right answers: the first step that gets enough of them.
    steps = store.steps(run)
    return steps[min(bisect_left(steps, BEGINNING, key=share), len(steps) - 1)]


def stop_needed(home: Home, config: PretrainConfig) -> bool:
    """Whether a pretraining run has steps left."""
    steps = store.steps(home.runs / config.tag)
    return not steps or steps[-1] < (config.num_iterations or 0)


def compare(home: Home, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Train one model by rewards and by worked-out answers."""
    step = begin(home, sizes, seed, lambda: False)
    source = home.finetuned / f"tuned-{seed}"
    own = {"seed": seed, "source": f"tuned-{seed}", "step": step, "model_tag": f"rl-{seed}"}
    rewarded = sizes.rewarded.model_copy(update=own)
    before = judged(home, store.directory(source, step), rewarded)
    taken = seconds(run_reinforcement(rewarded, home, lambda _: None, fresh=True))
    after = judged(home, newest(home, rewarded.tag), rewarded)

    trial = sizes.tuned.model_copy(
        update={
            "source": source.name,
            "step": step,
            "seed": seed + 1000,
            "init_lr_frac": SFT_RATES,
            "save_every": 0,
            "num_iterations": 10,
            "model_tag": f"sft-{seed}",
        }
    )
    of_step = seconds(run_fine_tuning(trial, home, lambda _: None, fresh=True)) / 10
    longer = trial.model_copy(update={"num_iterations": max(10, round(taken / of_step))})
    taken_by_sft = seconds(run_fine_tuning(longer, home, lambda _: None, fresh=True))
    return {
        "seed": seed,
        "before": asdict(before),
        "rl": asdict(after) | {"training_seconds": taken, "steps": rewarded.num_iterations},
        "sft": asdict(judged(home, newest(home, longer.tag), rewarded))
        | {"training_seconds": taken_by_sft, "steps": longer.num_iterations},
    }


def newest(home: Home, tag: str) -> Path:
    """The newest step of a run."""
    folder = store.latest(home.run(tag))
    assert folder is not None
    return folder


def curve(home: Home, tag: str) -> dict[str, Any]:
    """What the log of a run tells, whenever it was interrupted."""
    points, drawing, training, answers = [], 0.0, 0.0, 0
    for line in home.log(tag).read_text("utf-8").splitlines():
        with suppress(ValueError):
            match event_from_json(line):
                case Rewarded() as rewarded:
                    drawing += rewarded.seconds
                    answers += round(rewarded.tokens / rewarded.length) if rewarded.length else 0
                case Stepped() as step:
                    training += step.seconds
                case Judged() as found:
                    points.append({**asdict(found), "training_seconds": training})
    return {
        "points": points,
        "training_seconds": training,
        "share_of_drawing": drawing / training if training else None,
        "samples_per_second": answers / training if training else None,
        "samples_per_second_of_drawing": answers / drawing if drawing else None,
    }


def follow(home: Home, sizes: Sizes, minutes: float) -> dict[str, Any]:
    """Train by rewards for so many minutes more, or to the end."""
    began = time.monotonic()

    def stop() -> bool:
        return time.monotonic() - began > 60 * minutes

    chosen = home.root / "begin.txt"
    if not chosen.exists():
        step = begin(home, sizes, sizes.rewarded.seed, stop)
        if stop():
            return {"points": [], "note": "not yet trained: call it again"}
        chosen.write_text(str(step), "utf-8")
    source = f"tuned-{sizes.rewarded.seed}"
    own = {"source": source, "step": int(chosen.read_text("utf-8")), "model_tag": "rl"}
    rewarded = sizes.rewarded.model_copy(update=own)
    seconds(run_reinforcement(rewarded, home, lambda _: None, stop=stop))
    return curve(home, rewarded.tag)


def show(found: dict[str, Any]) -> None:
    """Print a comparison, or a curve."""
    if "before" in found:
        for name in ("before", "rl", "sft"):
            one = found[name]
            took = (
                f", {one['steps']} steps in {one['training_seconds']:.0f} s"
                if "steps" in one
                else ""
            )
            print(f"seed {found['seed']} {name:>6}: {interval(one, 'pass_1')}, "
                  f"pass@{one['samples']} {interval(one, 'pass_k')}{took}", flush=True)  # fmt: skip
        return
    for point in found["points"]:
        print(f"step {point['step']:>5}, {point['training_seconds'] / 60:5.1f} min: pass@1 "
              f"{interval(point, 'pass_1')}, pass@{point['samples']} "
              f"{interval(point, 'pass_k')}, {point['length']:.0f} tokens an answer")  # fmt: skip
    print({name: value for name, value in found.items() if name != "points"})


def interval(point: dict[str, Any], name: str) -> str:
    """A share with its interval."""
    return share_within(point[name], (point[f"{name}_low"], point[f"{name}_high"]))


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--level", type=int)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    home = Home(given.home.absolute())
    runtime.bound_buffer_cache()
    if given.gpu:
        sizes = on_gpu(given.depth, given.level or 9, given.steps or 400)
        results = iter([follow(home, sizes, given.minutes)])
    else:
        sizes = on_cpu(given.level or 5, given.steps or 200)
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        results = map(partial(compare, home, sizes), seeds)
    for found in results:
        if given.json:
            print(json.dumps(found), flush=True)
        else:
            show(found)


if __name__ == "__main__":
    main()
