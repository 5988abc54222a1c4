"""The command `eval base`."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat import __version__
from mlxchat.checkpoint import catalog
from mlxchat.cli.options import (
    Checkpoint,
    DtypeOption,
    Json,
    ModelTag,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.cli.session import checksum_progress, exit_promptly
from mlxchat.config.inference import BaseEvalConfig
from mlxchat.config.units import to_bytes
from mlxchat.errors import MlxchatError
from mlxchat.home import Home, expanded
from mlxchat.telemetry.events import Evaluated, Evaluating, Noted, Progressed, Report
from mlxchat.ui.console import Screen, say, say_json, table
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.evaluate.core import CoreResult
    from mlxchat.evaluate.text import TextLoss

INTERRUPTED = "Interrupted. Repeat the command to resume CORE where it stopped."
NO_BUNDLE = (
    "CORE is not measured. To measure it, add `core`, which downloads its tasks (8 "
    "MB) and takes hours on a laptop."
)


@dataclass
class BaseResults:
    """The results of an evaluation; a part that was not measured, or not wholly, is empty."""

    validation: Evaluated | None = None
    texts: "list[TextLoss]" = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)
    core: "CoreResult | None" = None
    csv: Path | None = None
    complete: bool = False


def eval_base_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    dtype: DtypeOption = "auto",
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Discard earlier results of the CORE tasks being measured."),
    ] = False,
    json: Json = False,
    *,
    config: BaseEvalConfig,
) -> None:
    """Measure how good a base model is: CORE, bits per byte and samples.

    CORE is nanochat's benchmark: the mean of 22 tasks' centered accuracies, which are 0 for
    guessing and 1 if every answer is right. Prompts, rules and examples are nanochat's, and GPT-2's
    scores are shown for comparison. Results are kept in $MLXCHAT_HOME/base_eval, so an interrupted
    evaluation can resume; the scores are also written there in nanochat's format.

    By default it measures the validation text, shows samples, and evaluates on CORE if its tasks
    are on disk.

    Progress goes to standard error. Ctrl-C shows the results that are complete and exits with code
    130.
    """
    from mlxchat import runtime
    from mlxchat.checkpoint import layout
    from mlxchat.evaluate.core_batches import PEAK_SHARE
    from mlxchat.evaluate.core_tasks import core_labels
    from mlxchat.evaluate.text import require_texts

    require_one_place(model_tag, step, checkpoint)
    home = Home.from_environment()
    core_labels(config.tasks)
    require_texts(_text_paths(config))
    folder = catalog.locate(home.stages, model_tag, step, checkpoint)
    name = model_in_words(folder, checkpoint)
    runtime.bound_buffer_cache()
    if config.memory_limit:
        limit = to_bytes(config.memory_limit)
        runtime.hold_memory(limit, int(PEAK_SHARE * limit), None)
    saved = layout.read_model(folder, runtime.compute_dtype(dtype))
    results = BaseResults()
    with exit_promptly(), Screen(stream=sys.stderr) as screen:
        screen.show(Noted(time.time(), f"The model: {name}."))
        try:
            _measure(folder, saved, config, home, fresh, screen.show, results)
        except KeyboardInterrupt:
            screen.show(Noted(time.time(), INTERRUPTED))
    if json:
        say_json(_facts(name, results))
    else:
        _show(name, results)
    if not results.complete:
        raise typer.Exit(128 + signal.SIGINT)


def _text_paths(config: BaseEvalConfig) -> list[Path]:
    return [expanded(text) for text in config.text or ()]


def _measure(
    folder: Path,
    saved: "SavedModel",
    config: BaseEvalConfig,
    home: Home,
    fresh: bool,
    report: Report,
    results: BaseResults,
) -> None:
    """Measure what the settings ask for, what is quickest first.

    Args:
        results: filled in part by part, so that an interrupt leaves the complete parts.
    """
    from mlxchat.checkpoint import history
    from mlxchat.checkpoint.digests import model_digest
    from mlxchat.evaluate.core import evaluate_run
    from mlxchat.evaluate.text import text_loss

    everything = config.names_nothing
    with_core = config.wants_core or (
        everything and bool(config.bundle or home.eval_bundle.exists())
    )
    # Now, before another model may take the place of this one, as after `train --fresh`.
    model, name = None, ""
    if with_core:
        model = model_digest(folder, checksum_progress(report))
        tag, number = history.tag_and_step(folder)
        name = f"{tag}_{number:06d}"
    if config.validation or everything:
        try:
            results.validation = _validate(folder, saved, home, config.eval_tokens, report)
        except MlxchatError as error:
            if config.validation:
                raise
            skipped = f"The validation text is not measured. {error.problem}"
            report(Noted(time.time(), skipped))
    for path in _text_paths(config):
        results.texts.append(text_loss(saved, path, report))
    if config.samples or everything:
        results.samples += _samples(saved)
    if with_core:
        results.core, results.csv = evaluate_run(
            name, saved, config, home, report, fresh, model=model
        )
    elif everything:
        report(Noted(time.time(), NO_BUNDLE))
    results.complete = True


def _validate(
    folder: Path, saved: "SavedModel", home: Home, tokens: int, report: Report
) -> Evaluated:
    from mlxchat.quantize import evaluate
    from mlxchat.train.stage import validation_documents

    with closing(validation_documents(folder, home)) as documents:
        for event in evaluate(saved, documents, tokens):
            if isinstance(event, Evaluating):
                done = tokens * event.batch // event.batches
                report(Progressed(event.time, "validation", done, tokens, "tokens"))
    assert isinstance(event, Evaluated)
    report(Progressed(event.time, "validation", event.tokens, event.tokens, "tokens"))
    return event


def _samples(saved: "SavedModel") -> Iterable[tuple[str, str]]:
    from mlxchat.train.pretrain import PROMPTS
    from mlxchat.train.samples import samples

    tokenizer = saved.tokenizer
    prompts = ((prompt, [tokenizer.bos, *tokenizer.encode(prompt)]) for prompt in PROMPTS)
    return samples(saved.model, tokenizer, prompts, None)


# ==== Output ====


def _facts(model: str, results: BaseResults) -> dict[str, Any]:
    """Return all results, as plain values for JSON."""
    validation, core = results.validation, results.core
    return {
        "model": model,
        "complete": results.complete,
        "validation": validation
        and {
            "tokens": validation.tokens,
            "loss": validation.loss,
            "bits_per_byte": validation.bits_per_byte,
        },
        "texts": [{**asdict(text), "perplexity": text.perplexity} for text in results.texts],
        "samples": [{"prompt": prompt, "text": text} for prompt, text in results.samples],
        "core": core and _core_facts(core, results.csv),
    }


def _core_facts(core: "CoreResult", csv: Path | None) -> dict[str, Any]:
    from mlxchat.evaluate.core import centered_error
    from mlxchat.evaluate.core_tasks import CORE_TASKS, GPT2_CORE, GPT2_SIZES

    def gpt2(shares: Iterable[float]) -> dict[str, float]:
        return dict(zip(GPT2_SIZES, shares, strict=True))

    low, high = core.ends
    return {
        "core": core.core,
        "low": low,
        "high": high,
        "error": core.error,
        "all_tasks": core.has_all_tasks,
        "max_per_task": core.max_per_task,
        "gpt2": gpt2(GPT2_CORE),
        "tasks": [
            {
                **score.facts(),
                "centered_low": score.rescaled(score.interval.low),
                "centered_high": score.rescaled(score.interval.high),
                "centered_error": centered_error(score),
                "gpt2": gpt2(CORE_TASKS[score.task].gpt2),
            }
            for score in core.scores
        ],
        "csv": csv,
    }


def _show(model: str, results: BaseResults) -> None:
    if results.validation:
        loss = results.validation
        say(
            f"Validation text: {loss.bits_per_byte:.4f} bits per byte, loss {loss.loss:.4f}, on "
            f"{amount(loss.tokens, 'tokens')}"
        )
    for text in results.texts:
        say(
            f"{text.path}: {text.bits_per_byte:.4f} bits per byte, loss {text.loss:.4f}, "
            f"perplexity {text.perplexity:,.2f}, on {amount(text.tokens, 'tokens')}"
        )
    for prompt, continued in results.samples:
        say(f"> {prompt}{continued}")
    if results.core and results.csv:
        _show_core(model, results.core, results.csv)


def _show_core(model: str, core: "CoreResult", csv: Path) -> None:
    from mlxchat.evaluate.core_tasks import CORE_TASKS, GPT2_SIZES

    columns = ["task", "examples", "right (95% interval)", "centered"]
    columns += [f"GPT-2 {size}" for size in GPT2_SIZES]
    table(columns, _core_rows(core))
    tasks = f"all {len(CORE_TASKS)} tasks"
    if not core.has_all_tasks:
        tasks = f"only {len(core.scores)} of {len(CORE_TASKS)} tasks"
    limit = (
        ""
        if core.max_per_task is None
        else f", at most {amount(core.max_per_task, 'examples')} each"
    )
    measure = "CORE" if core.has_all_tasks else "Mean centered score"
    low, high = core.ends
    say(
        f"{model}: {measure} {core.core:.4f} (95% interval: {low:.4f} to {high:.4f}), {tasks}"
        f"{limit}; mlxchat {__version__}"
    )
    say(f"Scores: {csv}")


def _core_rows(core: "CoreResult") -> Iterator[list[str | int]]:
    from mlxchat.evaluate.core import CORE
    from mlxchat.evaluate.core_tasks import CORE_TASKS, GPT2_CORE

    for score in core.scores:
        yield [
            score.task,
            score.problems,
            str(score.interval),
            f"{score.centered:.4f}",
            *(f"{share:.1%}" for share in CORE_TASKS[score.task].gpt2),
        ]
    if core.has_all_tasks:
        total = sum(score.problems for score in core.scores)
        yield [CORE, total, "", f"{core.core:.4f}", *(f"{of_size:.4f}" for of_size in GPT2_CORE)]
