"""What `recipes.py` found: the compute multiplier, and the table of all candidates. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, NamedTuple

import rounds

PACKAGES = ("mlxchat", "mlx")  # whose versions the results depend on

Result = dict[str, Any]  # of one run: what it was, took and learnt
Summary = dict[str, Any]  # of one candidate, over its seeds

MEANING = (
    "The compute multiplier is how many times a candidate's FLOPs the first one needs for the same "
    "bits per byte."
)
FACTS = {  # the rows of the table: what a result calls it, and its form
    "vocabulary": ("vocab_size", "{:,}"),
    "depth": ("depth", "{}"),
    "width": ("width", "{:,}"),
    "context": ("context", "{:,}"),
    "parameters": ("parameters", "{:,}"),
    "tokens per step": ("tokens_per_step", "{:,}"),
    "steps": ("steps", "{:,}"),
    "tokens": ("tokens", "{:,}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "FLOPs": ("flops", "{:.3g}"),
    "training text seen, times": ("times_seen", "{:.3g}"),
    "seconds of the whole process": ("seconds", "{:.1f}"),
    "of the budget": ("budget_share", "{:.1%}"),
}


class Multiplier(NamedTuple):
    """The baseline's FLOPs for the same result over a candidate's: this, or more or less."""

    relation: str  # "", "more than" or "less than"
    value: float

    def __str__(self) -> str:
        return f"{self.relation} {self.value:.2f}".strip()


def multiplier(curve: Iterable[tuple[float, float]], flops: float, bits: float) -> Multiplier:
    """Return the FLOPs that the baseline needs for as few bits per byte, over a candidate's.

    Between two runs of the baseline, bits per byte are taken to be linear in log FLOPs; beyond them
    only a bound is known.

    Args:
        curve: FLOPs and bits per byte of the baseline's runs. Where noise has it rise again, the
            fewest FLOPs that get so low count.
        flops: what the candidate spent.
        bits: the candidate's bits per byte.

    >>> multiplier([(1e9, 3.0), (4e9, 2.0)], 1e9, 2.5)
    Multiplier(relation='', value=2.0)
    """
    (spent, reached), *longer = sorted(curve)
    if bits > reached:
        return Multiplier("less than", spent / flops)
    if bits == reached:
        return Multiplier("", spent / flops)
    for more, lower in longer:
        if lower <= bits:
            part = (reached - bits) / (reached - lower)
            return Multiplier("", spent * (more / spent) ** part / flops)
        spent, reached = more, lower
    return Multiplier("more than", spent / flops)


def summarised(names: Sequence[str], results: Iterable[Result]) -> list[Summary]:
    """Return what came out for the candidates that have results, over their seeds.

    The multiplier is that of the means, and there only if the baseline has several lengths. The
    baseline also has its ``curve``: share of its length, FLOPs and bits per byte.

    Args:
        names: of the candidates, the baseline's first.
        results: of all runs that finished.
    """
    curve = []
    of_baseline = [result for result in results if result["name"] == names[0]]
    for share in sorted({result["share"] for result in of_baseline}):
        runs = runs_of(of_baseline, names[0], share)
        curve.append((share, mean(runs, "flops"), mean(runs, "bits_per_byte")))
    summaries = []
    for name in names:
        runs = runs_of(results, name)
        if not runs:
            continue
        summary: Summary = {
            "name": name,
            "options": runs[0]["identity"]["options"],
            "seeds": [run["seed"] for run in runs],
            "bits_per_byte": mean(runs, "bits_per_byte"),
            "lowest": min(run["bits_per_byte"] for run in runs),
            "highest": max(run["bits_per_byte"] for run in runs),
        }
        if len(curve) > 1:
            points = [point[1:] for point in curve]
            found = multiplier(points, mean(runs, "flops"), summary["bits_per_byte"])
            summary["multiplier"] = found._asdict()
            if name == names[0]:
                summary["curve"] = curve
        summaries.append(summary)
    return summaries


def runs_of(results: Iterable[Result], name: str, share: float = 1) -> list[Result]:
    """Return the results of a candidate at a share of its length."""
    return [result for result in results if (result["name"], result["share"]) == (name, share)]


def mean(runs: Iterable[Result], name: str) -> float:
    """Return the mean of a number over runs."""
    return statistics.fmean(run[name] for run in runs)


def report(
    data: dict[str, Any],
    summaries: Sequence[Summary],
    results: Sequence[Result],
    failed: Sequence[str],
) -> str:
    """Write what came out in Markdown, a column for each candidate."""
    device = ", ".join(sorted({result["device"] for result in results}))
    lines = [
        f"{device}; {rounds.listed(*PACKAGES)}; {date.today():%d %B %Y}. "
        f"{data['training_bytes']:,} bytes of training text; measured on "
        f"{data['validation_bytes']:,} bytes of validation text in "
        f"{data['validation_documents']:,} documents. Lower bits per byte are better; "
        "what differs between seeds is given from lowest to highest.",
        *([MEANING] if "multiplier" in summaries[0] else []),
        "",
        rounds.table(rows(summaries, results)),
        "",
        *(
            f"- {each['name']}: `{' '.join(each['options'])}`, seeds "
            f"{', '.join(map(str, each['seeds']))}"
            for each in summaries
        ),
    ]
    for each in summaries:
        if curve := each.get("curve"):
            shown = (f"{share:g}: {flops:.3g} FLOPs, {bits:.4f}" for share, flops, bits in curve)
            lines.append(f"- {each['name']} by multiples of its length: {'; '.join(shown)}")
    if failed:
        lines.append(f"- left out because they failed: {'; '.join(failed)}")
    return "\n".join(lines)


def rows(summaries: Sequence[Summary], results: Sequence[Result]) -> list[dict[str, str]]:
    """Return the rows of the table."""
    runs = {each["name"]: runs_of(results, each["name"]) for each in summaries}
    found = []
    for title, (fact, form) in FACTS.items():
        if any(run[fact] is not None for several in runs.values() for run in several):
            cells = {name: span(several, fact, form) for name, several in runs.items()}
            found.append({"": title, **cells})
    bits = {each["name"]: f"**{each['bits_per_byte']:.4f}**" for each in summaries}
    found.append({"": "bits per byte, mean", **bits})
    spans = {name: span(several, "bits_per_byte", "{:.4f}") for name, several in runs.items()}
    found.append({"": "lowest to highest", **spans})
    if "multiplier" in summaries[0]:
        cells = {each["name"]: str(Multiplier(**each["multiplier"])) for each in summaries}
        found.append({"": "compute multiplier", **cells})
    return found


def span(runs: Iterable[Result], fact: str, form: str) -> str:
    """Write a number from its lowest to its highest over runs; once if they look the same."""
    values = [run[fact] for run in runs if run[fact] is not None]
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def samples(summaries: Sequence[Summary], results: Iterable[Result]) -> str:
    """Write what the best seed of each candidate writes, in Markdown."""
    lines = []
    for each in summaries:
        best = min(runs_of(results, each["name"]), key=lambda run: run["bits_per_byte"])
        lines += ["", f"{each['name']}, seed {best['seed']}:"]
        for prompt, text in best["samples"].items():
            lines += ["", f"> **{prompt}**{' '.join(text.splitlines())}"]
    return "\n".join(lines)
