"""What only a Mac can tell: nothing of it was measured by those who wrote mlxchat."""

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.doctor.check import Finding


class OpenQuestion(NamedTuple):
    """A question that only a Mac answers.

    Attributes:
        text: the question.
        check: the check that answers it; "" if nothing but use does.
        how: what to do to find out, where no check does.
    """

    text: str
    check: str = ""
    how: str = ""


QUESTIONS = (
    OpenQuestion(
        "How fast is bfloat16, beside float16 and float32? (M1 and M2 lack it.)", "products"
    ),
    OpenQuestion("Are products right, and float32 ones rounded as TF32? (M5 does.)", "rounding"),
    OpenQuestion("Is the rotation right, which reads backwards in a compiled kernel?", "rotation"),
    OpenQuestion("Do the kernels that Metal compiles give the CPU's gradients?", "gradients"),
    OpenQuestion(
        "Is the fused backward pass of attention faster, and how exact is it?", "attention"
    ),
    OpenQuestion(
        "Is decoding right beyond 1,024 keys, where another kernel takes over?", "decoding"
    ),
    OpenQuestion("How long does Metal compile before the first training step?", "first step"),
    OpenQuestion(
        "What does holding memory to a plan cost, when buffers come and go?", "memory limit"
    ),
    OpenQuestion("What does wiring that memory gain?", "wired memory"),
    OpenQuestion("Does macOS let the GPU work while its display is on?", "watchdog"),
    OpenQuestion("Does caffeinate keep it awake?", "awake"),
    OpenQuestion("Which wheel did pip choose, and is Python native?", "MLX"),
    OpenQuestion("Does the drive of MLXCHAT_HOME take F_FULLFSYNC?", "sync"),
    OpenQuestion("Are two names that differ in capitals one there?", "rename"),
    OpenQuestion(
        "Does an hour of training with the display on pass without `Impacting Interactivity`?",
        how="Train for an hour and look at the run's log.",
    ),
    OpenQuestion(
        "How much slower is it when it is hot? (Laptops without a fan.)",
        how="Compare the first and the last minutes' tokens a second in the monitor.",
    ),
    OpenQuestion(
        "Does the Mac stay awake with its lid closed?",
        how="It does not: leave it open. pmset -g assertions tells what holds it awake.",
    ),
)


class MacAnswer(BaseModel):
    """A question, and what a check found of it or what to do to find out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str


def answers_of(findings: Iterable[Finding]) -> tuple[MacAnswer, ...]:
    """Return the questions with what was found on this Mac."""
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
