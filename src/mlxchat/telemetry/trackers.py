"""The trackers that people follow their runs with: wandb, trackio and TensorBoard.

Their libraries are extras. They are imported in the process that `mlxchat.telemetry.tracker_child`
runs in, never in the one that trains.
"""

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mlxchat.errors import ConfigError
from mlxchat.telemetry.tracked import TrackedRun, TrackedSample, TrackedStep, TrackerName

TRACKER_LIBRARIES: dict[TrackerName, str] = {
    "wandb": "wandb",
    "trackio": "trackio",
    "tensorboard": "tensorboardX",
}
FINISH_SECONDS = 30.0  # in which a tracker sends what is left when the run has ended

_PROJECT = "mlxchat"  # unless the tracker's own variable names another
_OURS = ".mlxchat"  # ends the names of TensorBoard's files
_FLUSH_SECONDS = 10
# What the libraries would report about themselves and their users, unless a variable asks for it.
_SILENT = {
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Tracker(Protocol):
    """A tracker that follows a run."""

    def where(self) -> str:
        """Return where the run can be looked at, as a sentence."""

    def log(self, step: TrackedStep) -> None:
        """Record a step."""

    def finish(self, failed: bool) -> None:
        """Send what is left; ``failed`` tells whether the run ended by an error."""


def require_tracker(name: TrackerName | None, setting: str = "track") -> None:
    """Check that a tracker's library is installed; it is not imported.

    Args:
        name: the tracker; None if there is none.
        setting: the setting that names it.

    Raises:
        ConfigError: it is not.
    """
    if name is None:
        return
    found = find_spec(TRACKER_LIBRARIES[name])
    if found is None or found.origin is None:  # a folder of that name is no library
        raise ConfigError(
            f"The library {TRACKER_LIBRARIES[name]}, which `{setting}={name}` needs, is not "
            "installed.",
            f'Install the extra {name}: pip install "mlxchat[{name}]"',
        )


def begin_tracking(run: TrackedRun, key: str, known: bool) -> Tracker:
    """Import a tracker's library, and have it start or continue a run.

    Args:
        run: the run.
        key: what tells it from all other runs, also of the same name.
        known: whether the tracker has been told of it before.

    Raises:
        Exception: whatever the library raises.
    """
    for variable, value in _SILENT.items():
        os.environ.setdefault(variable, value)
    kinds: dict[TrackerName, Callable[[TrackedRun, str, bool], Tracker]] = {
        "wandb": _Wandb,
        "trackio": _Trackio,
        "tensorboard": _TensorBoard,
    }
    return kinds[run.tracker](run, key, known)


class _Wandb:
    """Weights & Biases: online or, as ``WANDB_MODE`` or ``wandb offline`` say, in files."""

    def __init__(self, run: TrackedRun, key: str, known: bool) -> None:
        import wandb

        self._wandb, self._key = wandb, key
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=key,
            resume="allow" if known else None,
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=run.settings,
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                host="",
                program="mlxchat",
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,  # the user, the machine, the paths, the command line
                x_disable_stats=True,
                x_save_requirements=False,
                finish_timeout=FINISH_SECONDS,
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def where(self) -> str:
        if self._run.offline:
            parts = Path(self._run.dir).parents[1]  # one of them for each time that it was resumed
            found = f"{shlex.quote(str(parts))}/offline-run-*-{self._key}"
            return f"wandb is offline. To send the run later: wandb sync {found}"
        return f"wandb: {self._run.url}"

    def log(self, step: TrackedStep) -> None:
        values: dict[str, Any] = dict(step.values)
        if step.samples:
            # A table would be an artifact, of which wandb asks the server before it goes on.
            page = _as_html(step.samples)
            values["samples"] = self._wandb.Html(page, inject=False, data_is_not_path=True)
        # A resumed run may not return to a step that it has left; the x axis is ours.
        self._run.log({**values, "step": step.step}, step=max(step.step, self._run.step))

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """trackio: a database on this machine, or where its own variables say."""

    def __init__(self, run: TrackedRun, key: str, known: bool) -> None:
        import trackio

        self._trackio = trackio
        self._project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        self._run = trackio.init(
            project=self._project,
            name=run.name,
            resume="allow" if known else "never",
            config=run.settings,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def where(self) -> str:
        return f"To look at the run: trackio show --project {self._project}"

    def log(self, step: TrackedStep) -> None:
        values: dict[str, Any] = dict(step.values)
        if step.samples:
            values["samples"] = self._trackio.Markdown(_as_markdown(step.samples))
        self._run.log(values, step=step.step)

    def finish(self, failed: bool) -> None:
        self._run.finish()


class _TensorBoard:
    """TensorBoard's event files, beside the log of the run.

    Each value is written at once. The library's own `SummaryWriter` leaves that to a thread, which
    ends when the disk is full, and then whoever writes waits for it forever.
    """

    def __init__(self, run: TrackedRun, key: str, known: bool) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        self._folder, self._event = Path(run.folder), Event
        self._scalar, self._text = summary.scalar, summary.text
        if not run.step:
            for path in self._folder.glob(f"events.out.tfevents.*{_OURS}"):
                path.unlink()
        self._writer = EventsWriter(str(self._folder / "events"), _OURS)
        self._flushed = 0.0
        if not known:
            self._write(self._text("settings", _as_table(run.settings)), run.step)

    def where(self) -> str:
        return f"To look at the run: tensorboard --logdir {self._folder.parent}"

    def log(self, step: TrackedStep) -> None:
        for name, value in step.values.items():
            self._write(self._scalar(name, value), step.step, step.time)
        if step.samples:
            self._write(self._text("samples", _as_markdown(step.samples)), step.step, step.time)
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _write(self, summary: Any, step: int, at: float | None = None) -> None:
        at = time.time() if at is None else at
        self._writer.write_event(self._event(wall_time=at, step=step, summary=summary))

    def finish(self, failed: bool) -> None:
        self._writer.close()


def _as_markdown(samples: Sequence[TrackedSample]) -> str:
    """Write samples so that nothing in them counts as markup: indented by four."""
    blocks = []
    for one in samples:
        worth = "" if one.reward is None else f" (reward {one.reward:g})"
        blocks.append(
            f"Prompt:\n\n{_indented(one.prompt)}\n\nText{worth}:\n\n{_indented(one.text)}"
        )
    return "\n\n---\n\n".join(blocks)


def _as_html(samples: Sequence[TrackedSample]) -> str:
    return f"<pre style='white-space: pre-wrap'>{escape(_as_markdown(samples))}</pre>"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _as_table(settings: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])
