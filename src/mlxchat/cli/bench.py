"""The command `bench`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mlxchat.cli.options import Json
from mlxchat.config.inference import BenchConfig
from mlxchat.counts import flops_per_second, round_size
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.ui.console import Screen, say_json, say_whole
from mlxchat.ui.tables import Row, Section, markdown, show
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.bench import Bench


def bench_command(
    config: BenchConfig,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print a Markdown table that you can paste into an issue."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains and generates. Takes about a minute.

    It uses random weights and tokens, so it needs no data, and stores only which implementations
    are fastest on this machine. Progress goes to standard error.
    """
    started_at = SYSTEM_CLOCK.seconds()
    if json and as_markdown:
        raise typer.BadParameter("--json cannot be combined with --markdown.")
    from mlxchat.bench import measure

    with Screen(stream=sys.stderr) as screen:
        facts = measure(config, screen.show, SYSTEM_CLOCK, started_at)
    if json:
        say_json(facts.model_dump(mode="json"))
    elif as_markdown:
        say_whole(markdown(bench_heading(facts), bench_sections(facts)))
    else:
        show(bench_heading(facts), bench_sections(facts))


def bench_heading(facts: "Bench") -> list[str]:
    """Return the line that names the model and the shapes."""
    config = facts.config
    return [
        f"{config.arch} d{config.depth}: {facts.parameters:,} parameters, vocabulary "
        f"{config.vocab_size:,}; {amount(config.device_batch_size, 'rows')} of "
        f"{config.max_seq_len:,} tokens"
    ]


def bench_sections(facts: "Bench") -> list[Section]:
    """Return the numbers, section by section."""
    return [
        Section("Training", _training(facts)),
        Section("Generation", _generation(facts)),
        Section("Machine", _machine(facts)),
        *([Section("Fastest implementations", _ways(facts))] if facts.ways else []),
    ]


def _training(facts: "Bench") -> list[Row]:
    training, environment = facts.training, facts.environment
    seconds = training.step_seconds
    first = training.startup_seconds + training.first_step_seconds
    start_up = _seconds(training.startup_seconds)
    compiled = _seconds(training.first_step_seconds)
    product = flops_per_second(environment.matmul_flops)
    mfu = Row("MFU", "", "unknown: no peak is on record for this chip")
    if training.mfu is not None and environment.peak_flops is not None:
        peak = flops_per_second(environment.peak_flops)
        more = ", counting only its ALUs" if training.mfu > 1 else ""
        mfu = Row("MFU", f"{training.mfu:.1%}", f"of the chip's {peak}{more}")
    return [
        Row(
            "tokens/s",
            _rate(training.tokens_per_second),
            f"(median of {amount(len(seconds), 'steps')})",
        ),
        Row(
            "step time",
            _seconds(training.tokens_per_step / training.tokens_per_second),
            f"({_seconds(min(seconds))} to {_seconds(max(seconds))})",
        ),
        Row(
            "achieved",
            flops_per_second(training.flops_per_second),
            f"({training.matmul_share:.1%} of a matrix product's {product} here)",
        ),
        mfu,
        Row("peak memory", round_size(training.peak_memory)),
        Row(
            "first step",
            _seconds(first),
            f"({start_up} start-up, {compiled} including compilation)",
        ),
    ]


def _generation(facts: "Bench") -> list[Row]:
    generation = facts.generation
    prompt = amount(generation.prompt_tokens, "tokens")
    return [
        Row("tokens/s", _rate(generation.tokens_per_second), f"(greedy, after {prompt})"),
        Row(
            "prefill tokens/s",
            _rate(generation.prefill_tokens_per_second),
            f"(a prompt of {amount(generation.prefill_tokens, 'tokens')})",
        ),
    ]


def _machine(facts: "Bench") -> list[Row]:
    environment = facts.environment
    return [
        Row("device", "", environment.device),
        Row("backend", "", f"{environment.backend}, {environment.compute_dtype}"),
        Row("memory", "", round_size(environment.memory)),
        Row("mlxchat", "", environment.mlxchat),
        Row("mlx", "", environment.mlx),
        Row("python", "", environment.python),
        Row("system", "", environment.system),
    ]


def _ways(facts: "Bench") -> list[Row]:
    """Return what was chosen for each question, and the times of all ways."""
    from mlxchat.autotune import shown_question

    return [
        Row(way.chosen, shown_question(asked), f"({way.comparison()})")
        for asked, way in facts.ways.items()
    ]


def _rate(tokens_per_second: float) -> str:
    """Format a rate with at least three digits."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"


def _seconds(seconds: float) -> str:
    """Format a time as ``2.31 s`` or ``84.2 ms``."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
