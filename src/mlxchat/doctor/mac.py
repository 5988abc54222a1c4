"""Questions that only a Mac can answer; mlxchat's authors had none to measure them on."""

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.doctor.check import Finding


class OpenQuestion(NamedTuple):
    """A question that only a Mac answers.

    Attributes:
        text: the question.
        check: the check that answers it; "" if only use does.
        how: how to find out by hand, where no check answers it.
    """

    text: str
    check: str = ""
    how: str = ""


QUESTIONS = (
    OpenQuestion(
        "How fast is bfloat16 compared with float16 and float32? (M1 and M2 lack it.)", "products"
    ),
    OpenQuestion(
        "Are products right, and are float32 ones rounded to TF32? (M5 does that.)", "rounding"
    ),
    OpenQuestion(
        "Is the rotary embedding right, whose compiled kernel reads backwards?", "rotation"
    ),
    OpenQuestion("Do Metal's compiled kernels give the same gradients as the CPU?", "gradients"),
    OpenQuestion(
        "Is the fused backward pass of attention faster, and how exact is it?", "attention"
    ),
    OpenQuestion(
        "Is decoding right beyond 1,024 keys, where another kernel takes over?", "decoding"
    ),
    OpenQuestion(
        "How long does Metal take to compile before the first training step?", "first step"
    ),
    OpenQuestion(
        "What does limiting memory to the plan cost, as buffers are freed and reallocated?",
        "memory limit",
    ),
    OpenQuestion("What is gained by wiring that memory?", "wired memory"),
    OpenQuestion("Does macOS let the GPU work while its display is on?", "watchdog"),
    OpenQuestion("Does caffeinate keep the Mac awake?", "awake"),
    OpenQuestion("Which wheel did pip choose, and is Python native?", "MLX"),
    OpenQuestion("Does the drive of MLXCHAT_HOME support F_FULLFSYNC?", "sync"),
    OpenQuestion("Does that drive treat names that differ only in case as the same?", "rename"),
    OpenQuestion(
        "Does an hour of training with the display on pass without the error `Impacting "
        "Interactivity`?",
        how="Train for an hour, then look at the run's log.",
    ),
    OpenQuestion(
        "How much slower is the Mac when it is hot? (Laptops without a fan.)",
        how="In the monitor, compare the tokens per second of the first and the last minutes.",
    ),
    OpenQuestion(
        "Does the Mac stay awake with its lid closed?",
        how="It does not: leave it open. pmset -g assertions lists what keeps it awake.",
    ),
)


class MacAnswer(BaseModel):
    """A question, with what a check found or how to find out by hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str


def answers_of(findings: Iterable[Finding]) -> tuple[MacAnswer, ...]:
    """Return each of the `QUESTIONS` with the answer that the findings on a Mac give it."""
    found = {finding.check: finding for finding in findings}
    answers = []
    for question in QUESTIONS:
        if question.check in found:
            finding = found[question.check]
            said = f"{finding.check}, {finding.outcome}: {finding.value}"
            answers.append(MacAnswer(question=question.text, answer=said))
        else:
            answers.append(MacAnswer(question=question.text, answer=f"By hand: {question.how}"))
    return tuple(answers)
