"""A picture of the main curves, to post, drawn by matplotlib: the extra ``report`` installs it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlxchat.counts import round_size
from mlxchat.disk import replacing, storing
from mlxchat.errors import ConfigError
from mlxchat.report.charts import AxisName, Chart, dashes
from mlxchat.report.curves import charts, run_curves
from mlxchat.report.facts import RunFacts
from mlxchat.report.words import bits_in_words, count_in_words, time_in_words

COLOURS_DRAWN = ("#0072b2", "#d55e00", "#00875f", "#b3508e", "#b98600", "#2c93c9")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 2)), "-.", (0, (10, 3)), (0, (3, 1.5)))
PNG_MARK = b"mlxchat report"  # tells a picture of a report from others
MAIN = ("pass_1", "bits", "reward", "loss", "entropy", "rate")  # the first two that a run has


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "Drawing a picture needs matplotlib, which is not installed.",
            'Install it: pip install "mlxchat[report]", or leave `png` out.',
        )


def draw_picture(runs: Sequence[RunFacts], path: Path) -> None:
    """Draw the two main charts of runs, and a line of figures, into a PNG file.

    Raises:
        DiskError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {chart.key: chart for chart in charts([run_curves(run, len(runs)) for run in runs])}
    main = [drawn[key] for key in MAIN if key in drawn][:2]
    canvas = FigureCanvasAgg(Figure(figsize=(12, 5.4), dpi=150, layout="constrained"))
    canvas.figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=15, fontweight="bold")
    for place, chart in enumerate(main):
        _draw(canvas.figure.add_subplot(1, len(main), place + 1), chart, len(runs) > 1)
    canvas.figure.supxlabel(_caption(runs), x=0.01, ha="left", fontsize=10, color="#5a616b")
    with storing(path), replacing(path) as partial:
        canvas.figure.savefig(partial, format="png", metadata={"Software": PNG_MARK.decode()})


def _draw(axes: Any, chart: Chart, several: bool) -> None:
    axis: AxisName = "flops" if several and "flops" in chart.lines[0].x else "step"
    for line in chart.lines:
        colour = COLOURS_DRAWN[line.colour % len(COLOURS_DRAWN)]
        axes.plot(
            line.x[axis],
            line.y,
            color=colour,
            alpha=0.3 if line.faint else 1,
            linewidth=0.8 if line.faint else 1.8,
            linestyle=DASHES[dashes(line.colour)] if several and not line.faint else "-",
            marker="o" if line.dotted else None,
            markersize=3,
            label=None if line.faint else line.label,
        )
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x[axis], line.low, line.high, color=colour, alpha=0.13, lw=0)
    for mark in chart.marks:
        if mark.y is None:
            axes.axvline(mark.x[axis], color="#5a616b", linewidth=0.8, linestyle=":")
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel("FLOPs" if axis == "flops" else "steps")
    axes.grid(color="#e9ebef")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.log_y:
        from matplotlib.ticker import FormatStrFormatter, LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
    if several:
        axes.legend(frameon=False)


def _title(runs: Sequence[RunFacts]) -> str:
    return " · ".join(run.name for run in runs).replace("$", r"\$")


def _caption(runs: Sequence[RunFacts]) -> str:
    parts = []
    for run in runs:
        known = [f"{run.name}:"] if len(runs) > 1 else []
        known += [f"{count_in_words(run.parameters)} parameters"] if run.parameters else []
        known += [f"{bits_in_words(run.final_bits)} bits per byte"] if run.final_bits else []
        known += [f"{count_in_words(run.tokens)} tokens"] if run.tokens else []
        known += [time_in_words(run.seconds)] if run.seconds else []
        known += [round_size(run.peak_memory)] if run.peak_memory else []
        known += [run.device] if run.device else []
        parts.append(", ".join(known).replace(":,", ":"))
    return "\n".join([*parts[:4], "mlxchat"]).replace("$", r"\$")
