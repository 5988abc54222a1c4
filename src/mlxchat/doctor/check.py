"""A check of the machine, and what it finds. Nothing here or in a check's module loads MLX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlxchat.doctor.host import Host

Health = Literal["ok", "warning", "failed", "not here"]
"""A warning is something slow or risky; what failed does not work; the rest does not apply here."""

EVERYTHING = ("every command",)
COMPUTING = ("train", "mid", "sft", "chat", "eval chat", "quantize", "bench", "quickstart")
TRAINING = ("train", "mid", "sft", "quickstart")
DECODING = ("chat", "eval chat")
STORING = ("train", "mid", "sft", "data fetch", "quantize", "import", "export", "quickstart")


class Verdict(BaseModel):
    """The verdict of a check on the machine.

    Attributes:
        value: what was found, in a few words or a number.
        detail: what that means, where the value alone does not say it.
        remedy: what to do in this particular case, in place of the check's own remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Health
    value: str
    detail: str = ""
    remedy: str = ""


class Finding(Verdict):
    """A verdict, with what was checked and how long that took.

    The remedy and the commands that are affected are empty where nothing is wrong.
    """

    check: str
    topic: str
    measures: str
    limit: str
    commands: tuple[str, ...]
    seconds: float

    @property
    def needs_action(self) -> bool:
        """Whether there is something to do about it."""
        return self.outcome in ("warning", "failed")


# ==== Where a check can be made ====
#
# Each of these returns why it cannot be made on this machine, and "" if it can.


def here(host: Host) -> str:
    """Return no reason: the check can be made anywhere."""
    return ""


def on_a_mac(host: Host) -> str:
    """Return a reason unless this is a Mac."""
    return "" if host.system() == "Darwin" else "for Macs"


def with_mlx(host: Host) -> str:
    """Return a reason unless MLX loads."""
    return "" if host.device() else "MLX does not load"


def with_gpu(host: Host) -> str:
    """Return a reason unless MLX computes on a GPU."""
    return with_mlx(host) or ("" if _backend(host) != "cpu" else "MLX computes on CPUs")


def with_metal(host: Host) -> str:
    """Return a reason unless MLX computes on the GPU of a Mac."""
    return with_mlx(host) or ("" if _backend(host) == "metal" else "for Macs")


def with_cuda(host: Host) -> str:
    """Return a reason unless MLX computes on an NVIDIA GPU."""
    return with_mlx(host) or ("" if _backend(host) == "cuda" else "for NVIDIA GPUs")


def on_a_cpu(host: Host) -> str:
    """Return a reason unless MLX computes on a CPU."""
    return with_mlx(host) or ("" if _backend(host) == "cpu" else "MLX has a GPU here")


def _backend(host: Host) -> str:
    device = host.device()
    return device.backend if device else ""


# ==== Checks ====


@dataclass(frozen=True)
class Check:
    """A check: what it measures, when that is wrong, and what to do then.

    Attributes:
        name: a word or two; also identifies it.
        measures: what it measures, as a sentence.
        limit: what the value has to be, in words.
        remedy: what to do where it is not.
        commands: the commands that are affected then, without the program's name.
        examine: makes the check. A `MlxchatError` or OSError that it raises means that it failed.
        absent: returns why it cannot be made on this machine; "" if it can.
    """

    name: str
    measures: str
    limit: str
    remedy: str
    commands: tuple[str, ...]
    examine: Callable[[Host], Verdict]
    absent: Callable[[Host], str] = here


def good(value: str, detail: str = "") -> Verdict:
    """Return the verdict that all is well."""
    return Verdict(outcome="ok", value=value, detail=detail)


def doubtful(value: str, detail: str, remedy: str = "") -> Verdict:
    """Return the verdict that something is slow or risky."""
    return Verdict(outcome="warning", value=value, detail=detail, remedy=remedy)


def wrong(value: str, detail: str, remedy: str = "") -> Verdict:
    """Return the verdict that something does not work."""
    return Verdict(outcome="failed", value=value, detail=detail, remedy=remedy)
