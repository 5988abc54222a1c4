"""The figures of a report: those of one run, large, and those of several beside each other."""

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from mlxchat.counts import ends_of, round_size, score_within
from mlxchat.evaluate.pass_at_k import Interval
from mlxchat.report.charts import line_style
from mlxchat.report.compare import compute_multiplier, same_validation
from mlxchat.report.facts import RunFacts
from mlxchat.report.scores import beside_each_other
from mlxchat.report.tables import (
    Html,
    table_of_runs,
)
from mlxchat.report.words import (
    bits_in_words,
    count_in_words,
    figure,
    power_of_ten_or_zero,
    share_in_words,
    time_in_words,
)
from mlxchat.telemetry.events import CoreMeasured


def run_tiles(facts: RunFacts) -> Html:
    """Return the figures of one run, large."""
    best = facts.best
    lowest = ""
    if best and facts.final_bits is not None and best[1] < facts.final_bits:
        lowest = f"lowest {bits_in_words(best[1])} at step {best[0]:,}"
    ratio = facts.tokens / facts.parameters if facts.tokens and facts.parameters else None
    judged = facts.log.judged[-1] if facts.log.judged else None
    share = "MFU" if facts.mfu is not None else "of a matrix product’s speed"
    core = facts.log.core[-1] if facts.log.core else None
    of_steps = f"of {facts.total_steps:,}" if facts.total_steps else ""
    reward = facts.average_reward
    tiles = [
        (
            "pass@1, held-out questions",
            share_in_words(judged.pass_1) if judged else None,
            f"95%: {judged.pass_1_low:.1%} to {judged.pass_1_high:.1%}" if judged else "",
        ),
        ("reward", None if reward is None else figure(reward, 3), "average at the end"),
        ("bits per byte", bits_in_words(facts.final_bits) if facts.final_bits else None, lowest),
        (
            "CORE",
            f"{core.core:.4f}" if core else None,
            _core_ends(core) if core else "",
        ),
        ("steps", f"{facts.step:,}" if facts.step else None, of_steps),
        ("training time", time_in_words(facts.seconds) if facts.seconds else None, ""),
        (
            "tokens",
            count_in_words(facts.tokens) if facts.tokens else None,
            f"{figure(ratio, 3)} per parameter" if ratio else "",
        ),
        (
            "tokens per second",
            f"{facts.tokens_per_second:,.0f}" if facts.tokens_per_second else None,
            "",
        ),
        (share, _speed_in_words(facts) if facts.matmul_share or facts.mfu else None, ""),
        ("peak memory", _memory_in_words(facts), ""),
        (
            "FLOPs",
            power_of_ten_or_zero(facts.flops) if facts.flops else None,
            "of training, by the model’s formula" if facts.flops else "",
        ),
    ]
    drawn = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}"
        f"{f'<small>{escape(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in tiles
        if value is not None
    ]
    return Html(f'<dl class="tiles">{"".join(drawn)}</dl>') if drawn else Html()


def _core_in_words(facts: RunFacts) -> str | None:
    """Return the last CORE of a run with its interval of 95%; None without one."""
    if not facts.log.core:
        return None
    last = facts.log.core[-1]
    return score_within(last.core, last.error)


def _core_ends(measured: CoreMeasured) -> str:
    low, high = ends_of(measured.core, measured.error)
    return f"95%: {low:.4f} to {high:.4f}, at most {measured.max_per_task:,} per task"


def _speed_in_words(facts: RunFacts) -> str:
    """Return the share of the chip's speed, or that of a matrix product on it."""
    if facts.mfu is not None:
        return share_in_words(facts.mfu)
    return share_in_words(facts.matmul_share)


def _flops_in_words(facts: RunFacts) -> str:
    """Return the FLOPs of a run."""
    return power_of_ten_or_zero(facts.flops) if facts.flops is not None else "—"


def _pass_1_in_words(facts: RunFacts) -> str | None:
    """Return the last pass@1 of a run with its interval; None without one."""
    if not facts.log.judged:
        return None
    last = facts.log.judged[-1]
    return str(Interval(last.pass_1, last.pass_1_low, last.pass_1_high))


def _memory_in_words(facts: RunFacts) -> str | None:
    """Return the peak of MLX's memory; None if it is unknown."""
    return round_size(facts.peak_memory) if facts.peak_memory else None


class _Row(NamedTuple):
    """A row of the figures of several runs; the best of them is bold if that is known."""

    name: str
    text: Callable[[RunFacts], str | None]
    value: Callable[[RunFacts], float | None] = lambda facts: None
    best: Callable[..., float] | None = None
    of_text: bool = False  # whether the values are comparable on the same validation text only


_ROWS = (
    _Row("stage", lambda f: f.stage if f.state else None),
    _Row("state", lambda f: f.state or "model"),
    _Row("machine", lambda f: f.device),
    _Row("parameters", lambda f: count_in_words(f.parameters)),
    _Row("steps", lambda f: f"{f.step:,} of {f.total_steps:,}" if f.total_steps else None),
    _Row("tokens", lambda f: count_in_words(f.tokens)),
    _Row("FLOPs", _flops_in_words),
    _Row("training time", lambda f: time_in_words(f.seconds) if f.seconds else None),
    _Row("tokens per second", lambda f: count_in_words(f.tokens_per_second)),
    _Row("MFU, or share of a matrix product", _speed_in_words),
    _Row("peak memory", _memory_in_words),
    _Row(
        "final bits per byte",
        lambda f: bits_in_words(f.final_bits),
        lambda f: f.final_bits,
        min,
        of_text=True,
    ),
    _Row(
        "lowest bits per byte",
        lambda f: f"{bits_in_words(f.best[1])} at step {f.best[0]:,}" if f.best else None,
        lambda f: f.best[1] if f.best else None,
        min,
        of_text=True,
    ),
    _Row("CORE", _core_in_words, lambda f: f.log.core[-1].core if f.log.core else None, max),
    _Row(
        "pass@1",
        _pass_1_in_words,
        lambda f: f.log.judged[-1].pass_1 if f.log.judged else None,
        max,
    ),
)


def compared_figures(runs: Sequence[RunFacts]) -> Html:
    """Return the figures of several runs beside each other, and the compute multipliers."""
    rows = list[Sequence[object]]()
    for row in _ROWS:
        texts = [row.text(facts) or "—" for facts in runs]
        if all(text == "—" for text in texts):
            continue
        values = [row.value(facts) for facts in runs]
        rule = row.best if _are_comparable(row, runs) else None
        rows.append((row.name, *_best_in_bold(texts, values, rule)))
    for task, results in beside_each_other([facts.tasks for facts in runs]).items():
        texts = ["—" if of is None else f"{of.interval} of {of.asked:,}" for of in results]
        alike = len({of.settings for of in results if of is not None}) == 1
        shares = [None if of is None else of.share for of in results]
        rows.append((task, *_best_in_bold(texts, shares, max if alike else None)))
    multipliers, explained = _multipliers(runs), ""
    if any(text != "—" for text in multipliers[1:]):
        rows.append(("compute multiplier", *multipliers))
        explained = (
            f"Compute multiplier: the FLOPs after which {runs[0].name} was as good, in bits per "
            "byte, as the other run at its last evaluation, divided by those of the other run. 2× "
            "means the same result with half the compute. Between evaluations it is interpolated "
            "on logarithmic axes. In the middle of a run, before its learning rate has fallen, a "
            "model is worse than one whose training was planned to end there: against a longer "
            "baseline, multipliers are too high."
        )
    if same_validation([facts for facts in runs if facts.best]) is False:
        explained = (
            "Not all bits per byte were measured on the same text; only those on the same text can "
            f"be compared. {explained}"
        )
    if any(f.history and f.history.trainings and f.history.trainings[-1].began_with for f in runs):
        explained = f"FLOPs count each run alone, without the model it started from. {explained}"
    head = ("", *(Html(f"{swatch(n)} {escape(f.name)}") for n, f in enumerate(runs)))
    below = f'<p class="remark">{escape(explained)}</p>' if explained else ""
    return Html(f'<section class="figures">{table_of_runs(head, rows)}{below}</section>')


def _are_comparable(row: _Row, runs: Sequence[RunFacts]) -> bool:
    """Return whether the values of a row may be told apart by their size."""
    known = [facts for facts in runs if row.value(facts) is not None]
    return not row.of_text or same_validation(known) is not False


def _best_in_bold(
    texts: Sequence[str],
    values: Sequence[float | None],
    best: Callable[..., float] | None,
) -> list[str]:
    """Return cells of a row, those with the best value in bold if there are others."""
    known = [value for value in values if value is not None]
    chosen = best(known) if best and len(set(known)) > 1 else None
    return [
        Html(f"<strong>{escape(text)}</strong>") if chosen is not None and value == chosen else text
        for text, value in zip(texts, values, strict=True)
    ]


def _multipliers(runs: Sequence[RunFacts]) -> list[str]:
    texts = ["1× (baseline)"]
    for facts in runs[1:]:
        found = compute_multiplier(runs[0], facts)
        sign = {"exactly": "", "at least": "at least ", "at most": "at most "}
        texts.append("—" if found is None else f"{sign[found.bound]}{figure(found.value, 3)}×")
    return texts


def swatch(number: int) -> str:
    """Return a short piece of a run's line."""
    return (
        f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
        f'<path class="line {line_style(number)}" d="M1 4H25"/></svg>'
    )
