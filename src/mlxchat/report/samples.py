"""Samples in a report: over time side by side, and the last ones of several runs."""

from collections.abc import Sequence
from html import escape

from mlxchat.report.facts import RunFacts
from mlxchat.report.words import figure, without_controls
from mlxchat.telemetry.events import Sampled

STEPS_SHOWN = 5
PROMPTS_SHOWN = 12
LONGEST_SAMPLE = 1200  # characters


def samples_over_time(facts: RunFacts) -> str:
    """Return what a run wrote after the same prompts at several steps; empty without samples."""
    by_step: dict[int, dict[str, Sampled]] = {}
    for sample in facts.log.samples:
        by_step.setdefault(sample.step, {})[sample.prompt] = sample
    shown = _spread(sorted(by_step), STEPS_SHOWN)
    heads = [f"step {step:,}" for step in shown]
    return _grid(heads, [by_step[step] for step in shown])


def last_samples(runs: Sequence[RunFacts]) -> str:
    """Return the last samples of several runs side by side; empty without samples."""
    columns = []
    for facts in runs:
        last = facts.log.samples[-1].step if facts.log.samples else None
        columns.append({s.prompt: s for s in facts.log.samples if s.step == last})
    return _grid([facts.name for facts in runs], columns) if any(columns) else ""


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """Return the first and the last of some steps, and others evenly between them."""
    if len(steps) <= most:
        return list(steps)
    places = [round(place * (len(steps) - 1) / (most - 1)) for place in range(most)]
    return [steps[place] for place in places]


def _grid(heads: Sequence[str], columns: Sequence[dict[str, Sampled]]) -> str:
    """Return a row for each prompt, with a cell for each column; a list on a narrow screen."""
    prompts = dict.fromkeys(prompt for column in reversed(columns) for prompt in column)
    if not prompts:
        return ""
    rows = []
    for prompt in list(prompts)[:PROMPTS_SHOWN]:
        cells = []
        for head, column in zip(heads, columns, strict=True):
            sample = column.get(prompt)
            cells.append(f"<div><h4>{escape(head)}</h4>{_text(sample)}</div>")
        rows.append(
            f'<div class="sample"><p class="prompt">{escape(_short(prompt.strip()))}</p>'
            f'<div class="answers">{"".join(cells)}</div></div>'
        )
    return f'<div class="samples">{"".join(rows)}</div>'


def _text(sample: Sampled | None) -> str:
    if sample is None:
        return '<p class="none">—</p>'
    reward = "" if sample.reward is None else f"<small>reward {figure(sample.reward, 3)}</small>"
    return f"<p>{escape(_short(sample.text.strip())) or '<em>nothing</em>'}{reward}</p>"


def _short(text: str) -> str:
    text = without_controls(text)
    return text if len(text) <= LONGEST_SAMPLE else f"{text[:LONGEST_SAMPLE]}…"
