"""Runs all checks, one after the other, and yields their progress and findings as events."""

import platform
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from mlxchat import __version__
from mlxchat.doctor.arithmetic import ARITHMETIC_CHECKS
from mlxchat.doctor.check import Check, Finding, Health, Verdict, doubtful, wrong
from mlxchat.doctor.device import DEVICE_CHECKS
from mlxchat.doctor.host import Host, OutOfTime
from mlxchat.doctor.mac import MacAnswer, answers_of
from mlxchat.doctor.privacy import anonymous
from mlxchat.doctor.storage import STORAGE_CHECKS
from mlxchat.doctor.system import SYSTEM_CHECKS
from mlxchat.doctor.training import TRAINING_CHECKS
from mlxchat.errors import MlxchatError, reason_of
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Progressed

SECONDS = 110.0  # for the whole examination; measurements not begun by then are left out
ALL_CHECKS = "all checks"  # the task whose progress counts the checks

CHECKS: Mapping[str, Sequence[Check]] = {
    "System": SYSTEM_CHECKS,
    "Storage": STORAGE_CHECKS,
    "Device": DEVICE_CHECKS,
    "Arithmetic": ARITHMETIC_CHECKS,
    "Training": TRAINING_CHECKS,
}


class Examination(BaseModel):
    """The findings of all checks on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlxchat: str
    system: str
    seconds: float
    findings: tuple[Finding, ...]
    only_on_a_mac: tuple[MacAnswer, ...]  # empty elsewhere

    @classmethod
    def on(cls, host: Host, findings: Sequence[Finding], seconds: float) -> "Examination":
        """Return the examination of a machine.

        Args:
            host: the machine.
            findings: one for each check.
            seconds: how long all of them took.
        """
        return cls(
            mlxchat=__version__,
            system=platform.platform(),
            seconds=seconds,
            findings=tuple(findings),
            only_on_a_mac=answers_of(findings) if host.system() == "Darwin" else (),
        )

    def of(self, outcome: Health) -> list[Finding]:
        """Return the findings that have this outcome."""
        return [finding for finding in self.findings if finding.outcome == outcome]


def examine(
    host: Host,
    checks: Mapping[str, Sequence[Check]] = CHECKS,
    clock: Clock = SYSTEM_CLOCK,
) -> Iterator[Progressed | Finding]:
    """Make the checks, and yield each finding and the progress before and after it.

    Args:
        host: the machine, or what stands in for it.
        checks: the checks of each topic.
        clock: stamps the events, and times the checks.
    """
    total = sum(map(len, checks.values()))
    done = 0
    yield Progressed(clock(), ALL_CHECKS, done, total, "checks")
    for topic, of_topic in checks.items():
        for check in of_topic:
            yield Progressed(clock(), check.name, 0, 1, "checks")
            begun = clock.seconds()
            verdict = judge(check, host)
            yield finding_of(check, topic, verdict, clock.seconds() - begun)
            done += 1
            yield Progressed(clock(), check.name, 1, 1, "checks")
            yield Progressed(clock(), ALL_CHECKS, done, total, "checks")


def judge(check: Check, host: Host) -> Verdict:
    """Make a check and return its verdict, also where it cannot be made or finished."""
    try:
        if absent := check.absent(host):
            return Verdict(outcome="not here", value=absent)
        return check.examine(host)
    except OutOfTime as reason:
        return doubtful("not measured", str(reason), "Run the check again.")
    except MlxchatError as error:
        return wrong("no result", error.problem, error.remedy)
    except OSError as error:
        return wrong("no result", f"{reason_of(error)}.")


def finding_of(check: Check, topic: str, verdict: Verdict, seconds: float) -> Finding:
    """Return the finding of a check, from whose texts the user's name and folders are removed."""
    found = Finding(
        check=check.name,
        topic=topic,
        measures=check.measures,
        limit=check.limit,
        commands=(),
        seconds=seconds,
        outcome=verdict.outcome,
        value=anonymous(verdict.value),
        detail=anonymous(verdict.detail),
    )
    if not found.needs_action:
        return found
    remedy = anonymous(verdict.remedy) or check.remedy
    return found.model_copy(update={"remedy": remedy, "commands": check.commands})
