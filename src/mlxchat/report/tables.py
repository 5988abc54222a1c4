"""The tables of a report: figures, settings, parameters, data, evaluations, where a run came from.

Everything that comes from a run, such as names, notes and samples, is escaped here.
"""

import math
import time
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from mlxchat.counts import counted
from mlxchat.evaluate.core_tasks import CORE_TASKS, GPT2_SIZES
from mlxchat.evaluate.pass_at_k import Interval, share_of, wilson
from mlxchat.harmless import harmless
from mlxchat.model.size import parameters
from mlxchat.report.facts import RunFacts, interruptions
from mlxchat.report.provenance import (
    SettingRow,
    command_of_run,
    plan_facts,
    setting_rows,
)
from mlxchat.report.scores import TaskScore, settings_in_words
from mlxchat.report.series import thinned
from mlxchat.report.words import (
    bits_in_words,
    count_in_words,
    figure,
    share_in_words,
    time_in_words,
)

MOST_EVALUATIONS = 150  # of a table of evaluations
RUNS_BESIDE = 5  # runs in a table, which is how many fit on paper
SMALL = 14  # rows of a table that is not divided among columns


class Html(str):
    """A text that is HTML already, and not escaped again."""


def html(value: object) -> str:
    """Return a value as HTML."""
    return value if isinstance(value, Html) else escape(harmless(str(value)))


def html_table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    texts: int = 1,
    caption: str = "",
) -> Html:
    """Return a table whose first ``texts`` columns are texts, and whose others are numbers.

    The first cell of a row names it.
    """
    drawn = []
    for row in rows:
        cells = [f'<th scope="row">{html(row[0])}</th>']
        for place, cell in enumerate(row[1:], 1):
            kind = "" if place < texts else ' class="n"'
            cells.append(f"<td{kind}>{html(cell)}</td>")
        drawn.append(f"<tr>{''.join(cells)}</tr>")
    if not drawn:
        return Html()
    named = "".join(
        f'<th scope="col"{"" if place < texts else " class=n"}>{html(name)}</th>'
        for place, name in enumerate(head)
    )
    above = f"<caption>{html(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{named}</tr></thead>" if any(head) else ""
    kind = "scroll small" if len(drawn) <= SMALL else "scroll"
    return Html(
        f'<div class="{kind}"><table>{above}{top}<tbody>{"".join(drawn)}</tbody></table></div>'
    )


def table_of_runs(head: Sequence[object], rows: Sequence[Sequence[object]], texts: int = 1) -> Html:
    """Return a table of a column for each run; of many runs, as several tables, which paper holds.

    Args:
        head: the name of the first column, and of each run.
        rows: a name, and a cell for each run.
        texts: as `html_table` has it.
    """
    parts = []
    for first in range(1, len(head), RUNS_BESIDE):
        runs = slice(first, first + RUNS_BESIDE)
        part = [(row[0], *row[runs]) for row in rows]
        parts.append(html_table((head[0], *head[runs]), part, texts))
    return Html(f'<div class="beside">{"".join(parts)}</div>') if any(parts) else Html()


def folded(title: str, content: str) -> Html:
    """Return something that is opened by its title; nothing if there is nothing in it."""
    if not content:
        return Html()
    return Html(f"<details><summary>{html(title)}</summary>{content}</details>")


def code(text: str) -> Html:
    """Return a text as code."""
    return Html(f"<code>{escape(text)}</code>")


def repeating_command(facts: RunFacts) -> str:
    """Return the command that repeats a run from scratch; empty if its settings are unknown."""
    if facts.trainer is None:
        return ""
    ranks = facts.log.started.ranks if facts.log.started else 1
    trainer = facts.trainer
    return command_of_run(trainer.stage, trainer.settings, facts.name, ranks, fresh=True)


def command_line(text: str) -> Html:
    """Return a command that is wrapped between its options only."""
    first, *options = text.split(" --")
    parts = [f"<span>--{escape(option)}</span>" for option in options]
    return Html(f"<pre>{' '.join([escape(first), *parts])}</pre>")


def moment(seconds: float | None) -> str:
    """Return a time of day, by this machine's clock."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "—"


# ==== Settings ===================================================================================


def settings_table(facts: RunFacts) -> Html:
    """Return all settings of a run in their groups, those that were derived marked."""
    if facts.trainer is None:
        return Html()
    groups: dict[str, list[SettingRow]] = {}
    for setting in setting_rows(facts.trainer.settings, facts.trainer.plan):
        groups.setdefault(setting.group, []).append(setting)
    parts = []
    for group, settings in groups.items():
        rows = [(code(s.name), s.value, _origin(s.origin)) for s in settings]
        parts.append(html_table(("", "", ""), rows, texts=3, caption=group))
    plan = html_table(("", ""), plan_facts(facts.trainer.plan), texts=2, caption="What follows")
    return Html(f'<div class="columns">{"".join(parts)}{plan}</div>')


def _origin(origin: str) -> Html:
    return Html() if origin == "default" else Html(f'<span class="tag {origin}">{origin}</span>')


def compared_settings(runs: Sequence[RunFacts], only_different: bool) -> Html:
    """Return the settings of several runs beside each other."""
    columns: dict[str, dict[str, SettingRow]] = {}
    for facts in runs:
        if facts.trainer is not None:
            shown = setting_rows(facts.trainer.settings, facts.trainer.plan)
            columns[facts.name] = {setting.name: setting for setting in shown}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    names.pop("model_tag", None)
    rows = []
    for name in names:
        settings = [column.get(name) for column in columns.values()]
        values = [setting.value if setting else "—" for setting in settings]
        if (len(set(values)) > 1) == only_different:
            rows.append((code(name), *values))
    return table_of_runs(("setting", *columns), rows, texts=1 + len(columns))


# ==== The model and its data =====================================================================


def parameters_table(facts: RunFacts) -> Html:
    """Return the parameters of a run's model by group."""
    if facts.trainer is None:
        return Html()
    plan = facts.trainer.plan
    counts = parameters(plan.model)
    total = sum(counts.values())
    if not total:
        return Html()
    named = {
        "wte": "token embedding",
        "lm_head": "head",
        "matrices": f"matrices of {counted(plan.model.n_layer, 'layers')}",
        "value_embeds": "value embeddings",
        "scalars": "scalars",
    }
    rows: list[tuple[object, ...]] = [
        (named.get(group, group), f"{count:,}", share_in_words(count / total))
        for group, count in counts.items()
    ]
    rows.append((Html("<strong>all</strong>"), Html(f"<strong>{total:,}</strong>"), "100.0%"))
    if plan.adapter is not None:
        trained = plan.adapter.parameters
        rows.append(("in the adapter, trained", f"{trained:,}", share_in_words(trained / total)))
    model = plan.model
    shape = [
        ("architecture", model.arch),
        ("layers", f"{model.n_layer}"),
        ("width", f"{model.n_embd:,}"),
        ("heads", f"{model.n_head}, {model.n_kv_head} of keys and values"),
        ("context", counted(model.sequence_len, "tokens")),
        ("vocabulary", counted(model.vocab_size, "tokens")),
        ("attention windows", model.window_pattern),
    ]
    counts_table = html_table(("parameters", "count", "share"), rows)
    return Html(f'<div class="columns">{counts_table}{html_table(("shape", ""), shape, 2)}</div>')


def data_table(facts: RunFacts) -> Html:
    """Return what a run has learned from: in words, its tokens, and its files."""
    trainer, rows = facts.trainer, list[tuple[object, ...]]()
    for training in facts.history.trainings if facts.history else ():
        words = "; ".join(training.data) or "unknown"
        tokens = f", {training.tokens:,} tokens" if training.tokens else ""
        rows.append((f"{training.stage} ({training.run})", f"{words}{tokens}"))
    if facts.history and facts.history.origin:
        rows.append(("imported from", facts.history.origin.program))
    if facts.tokens and facts.parameters:
        ratio = facts.tokens / facts.parameters
        rows.append(("tokens per parameter", figure(ratio, 3)))
    if (size := bytes_per_token(facts)) is not None:
        rows.append(("bytes per token of the validation text", figure(size, 3)))
    if trainer is not None and trainer.revision:
        rows.append(("commit on the hub", code(trainer.revision)))
    files: list[tuple[object, ...]] = []
    if trainer is not None:
        shown = trainer.data[:20] + trainer.data[-1:] if len(trainer.data) > 21 else trainer.data
        files = [(code(n), code(trainer.fingerprints.get(n, "")[:16] or "—")) for n in shown]
        if len(trainer.data) > len(shown):
            files.insert(20, (f"{len(trainer.data) - 21:,} more", ""))
    listed = html_table(("file", "fingerprint"), files, texts=2)
    count = len(trainer.data) if trainer else 0
    return Html(html_table(("", ""), rows, 2) + folded(counted(count, "files"), listed))


def bytes_per_token(facts: RunFacts) -> float | None:
    """Return the bytes in a token of the validation text, which its two losses tell."""
    evaluations = facts.log.evaluations
    if not len(evaluations):
        return None
    bits, loss = evaluations["bits_per_byte"][-1], evaluations["loss"][-1]
    size = loss / (math.log(2) * bits) if bits > 0 else math.nan
    return float(size) if math.isfinite(size) and size > 0 else None


# ==== Evaluations ================================================================================


def evaluations_table(facts: RunFacts) -> Html:
    """Return the evaluations of a run; of many, those from which its curve is drawn."""
    found = facts.log.evaluations
    kept = thinned(found["bits_per_byte"], MOST_EVALUATIONS)
    best = facts.best[0] if facts.best else None
    seconds = facts.log.seconds_at(found.step[kept])
    rows = []
    for place, after in zip(kept.tolist(), seconds.tolist(), strict=True):
        step = int(found.step[place])
        mark = Html(' <span class="tag given">lowest</span>') if step == best else ""
        bits = found["bits_per_byte"][place]
        tokens = step * facts.tokens_per_step if facts.tokens_per_step else None
        rows.append(
            (
                f"{step:,}",
                count_in_words(tokens),
                time_in_words(after),
                bits_in_words(found["loss"][place]),
                Html(html(bits_in_words(bits)) + mark),
            )
        )
    return html_table(("step", "tokens", "training time", "loss", "bits per byte"), rows)


def judged_table(facts: RunFacts) -> Html:
    """Return what was measured on held-out questions, with intervals."""
    events = facts.log.judged
    kept = thinned(np.array([event.pass_1 for event in events]), MOST_EVALUATIONS).tolist()
    rows = []
    for event in (events[place] for place in kept):
        first = Interval(event.pass_1, event.pass_1_low, event.pass_1_high)
        several = Interval(event.pass_k, event.pass_k_low, event.pass_k_high)
        rows.append(
            (
                f"{event.step:,}",
                f"{event.questions:,}",
                str(first),
                str(several),
                figure(event.reward, 3),
                figure(event.length, 3),
            )
        )
    ks = sorted({event.samples for event in events})
    of_k = f"pass@{'/'.join(map(str, ks))}"
    head = ("step", "questions", "pass@1", of_k, "reward", "tokens per answer")
    return html_table(head, rows)


def core_table(facts: RunFacts, kept: Sequence[TaskScore]) -> Html:
    """Return CORE by task: guessing, what was right, its interval, and GPT-2.

    Args:
        facts: the run, whose last measurement is shown if there are no verdicts.
        kept: the scores of ``mlxchat eval base`` on its newest step, which know their examples.
    """
    head = ("task", "guessing", "right", "of", "centered", *(f"GPT-2 {s}" for s in GPT2_SIZES))
    rows: list[tuple[object, ...]] = []
    if kept:
        for score in kept:
            task = CORE_TASKS[score.task]
            centered = (score.share - task.baseline / 100) / (1 - task.baseline / 100)
            right = str(share_of(score.right, score.examples))
            rows.append(_core_row(score.task, right, f"{score.examples:,}", centered))
    elif facts.log.core:
        last = facts.log.core[-1]
        for name, centered in last.centered.items():
            baseline = CORE_TASKS[name].baseline / 100 if name in CORE_TASKS else 0.0
            share = min(1.0, max(0.0, centered * (1 - baseline) + baseline))
            right = f"{wilson(share, max(1, last.max_per_task))} or wider"
            rows.append(_core_row(name, right, f"≤ {last.max_per_task:,}", centered))
    return html_table(head, rows)


def _core_row(name: str, right: str, count: str, centered: float) -> tuple[object, ...]:
    task = CORE_TASKS.get(name)
    if task is None:
        return (name, "—", right, count, figure(centered, 3), *("—" for _ in GPT2_SIZES))
    gpt2 = [share_in_words(share) for share in task.gpt2]
    return (name, f"{task.baseline:g}%", right, count, f"{centered:.3f}", *gpt2)


def tasks_table(facts: RunFacts) -> Html:
    """Return what the model of a run got right of tasks: of the newest step that was asked first.

    Of a step and a task there is a row for each settings that it was asked with.
    """
    rows = [
        (
            result.task,
            result.interval,
            f"{result.asked:,}",
            share_in_words(result.random),
            f"{result.centered:.3f}",
            f"{judged.step:,}",
            settings_in_words(result),
            moment(result.time),
        )
        for judged in reversed(facts.tasks)
        for result in judged.results
    ]
    head = ("task", "right", "of", "guessing", "centered", "step", "asked with", "on")
    return html_table(head, rows)


# ==== Where it came from =========================================================================


def provenance_table(facts: RunFacts, generator: str) -> Html:
    """Return versions, machine, times, seed, checksums, resumes and the command that repeats it."""
    trainer, rows = facts.trainer, list[tuple[object, ...]]()
    if trainer is not None:
        again = command_line(repeating_command(facts))
        rows.append(("command that repeats it", again))
        rows.append(("trained with", f"mlxchat {trainer.mlxchat}, MLX {trainer.mlx}"))
        seed = getattr(trainer.settings, "seed", None)
        rows.append(("seed", "—" if seed is None else f"{seed}"))
    if facts.state is not None:
        rows.append(("machine", facts.device or "unknown"))
    if facts.software:
        rows.append(("Python and system", "; ".join(facts.software)))
    if facts.log.first is not None:
        rows.append(("from", f"{moment(facts.log.first)} to {moment(facts.log.last)}"))
    training = facts.history.trainings[-1] if facts.history and facts.history.trainings else None
    if training and training.began_with:
        rows.append(("began with", training.began_with))
    if facts.folder is not None:
        rows.append(("newest checkpoint", f"{facts.folder.parent.name}/{facts.folder.name}"))
        rows += [(f"sha256 of {name}", code(digest)) for name, digest in facts.checksums.items()]
    if len(facts.saved) > 1:
        rows.append(("checkpoints", ", ".join(f"{step:,}" for step in facts.saved[-50:])))
    resumes = "; ".join(f"{text}" for _, text in interruptions(facts))
    if facts.log.starts:
        rows.append(("resumes", resumes or "none: one process trained it"))
    for replan in facts.log.replans[-20:]:
        words = f"from {replan.before:,} to {replan.total_steps:,}, to keep {replan.budget}"
        rows.append((f"steps changed at step {replan.step:,}", words))
    rows.append(("this report", generator))
    return html_table(("", ""), rows, texts=2)


def notes_list(facts: RunFacts) -> Html:
    """Return the notes in a run's log."""
    rows = [(moment(note.time), note.text[:2000]) for note in facts.log.notes]
    return html_table(("", ""), rows, texts=2)
