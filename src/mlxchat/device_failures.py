"""Recognises the errors that MLX raises when its device fails, and says what helps.

MLX raises RuntimeError and MemoryError with messages of Metal, CUDA or its own allocators. Python
and this program raise both as well, for reasons of their own, so only the message can tell.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mlxchat.errors import DeviceError

KEPT = "What a run has saved is kept: repeat its command to resume, or let `supervise` do that."


class Failure(NamedTuple):
    """A way in which a device fails."""

    text: re.Pattern[str]  # found in the error message of MLX
    problem: str
    remedy: str


FAILURES = (  # the first whose text matches counts
    Failure(
        re.compile(r"ImpactingInteractivity|Impacting Interactivity"),
        "macOS stopped the GPU's work, because the display had to wait for it",
        "Let the display sleep, or use the Mac over SSH, while it computes: its watchdog then "
        "leaves the GPU alone. "
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment can help too, and makes the display "
        f"less smooth. {KEPT}",
    ),
    Failure(
        re.compile(r"CallbackError(Timeout|Hang)|GPU Timeout|GPU Hang"),
        "macOS stopped the GPU's work, because a part of it waited or ran for seconds",
        "Close other programs that use the GPU, let the display sleep, or use a smaller "
        f"`device_batch_size`. {KEPT}",
    ),
    Failure(
        re.compile(r"CallbackError(InnocentVictim|SubmissionsIgnored)"),
        "macOS stopped the GPU's work, because of an error before it or in another program",
        f"Close other programs that use the GPU. {KEPT}",
    ),
    Failure(
        re.compile(r"\[metal::malloc\] Resource limit"),
        "The GPU holds as many arrays as macOS lets a program have",
        f"A new process starts with none. {KEPT}",
    ),
    Failure(
        re.compile(r"malloc\] Attempting to allocate .* maximum allowed buffer size"),
        "An array is larger than the GPU takes in one piece",
        f"Use a smaller `device_batch_size`, `max_seq_len` or `vocab_size`. {KEPT}",
    ),
    Failure(
        re.compile(
            r"CallbackErrorOutOfMemory|Insufficient Memory|malloc\] |std::bad_alloc"
            r"|(?i:cu\w+\W.*out of memory)"
        ),
        "MLX's device has no memory left",
        "Close other programs, or use less of it: a smaller `memory_limit`, `device_batch_size` "
        f"or `depth`. {KEPT}",
    ),
    Failure(
        re.compile(
            r"(?i:\[(metal|cuda|event|fence))"
            r"|\b(cuda|cublas|cudnn|nvrtc|cu[A-Z])\w*\W.*\bfailed"
        ),
        "MLX's device failed",
        KEPT,
    ),
)


def explain(text: str) -> DeviceError | None:
    """Return the error for a message of MLX; None if it is not about a device that failed.

    >>> explain("[METAL] Command buffer execution failed: Impacting Interactivity").problem
    "macOS stopped the GPU's work, because the display had to wait for it ([METAL] Command buffer \
execution failed: Impacting Interactivity)."
    >>> explain("Could not determine home directory.") is None
    True
    """
    for failure in FAILURES:
        if failure.text.search(text):
            words = " ".join(text.split()).rstrip(".")
            return DeviceError(f"{failure.problem} ({words}).", failure.remedy)
    return None


def device_error(error: BaseException) -> DeviceError | None:
    """Return an exception of MLX as a `DeviceError`; None if its device did not fail."""
    return explain(str(error)) if type(error) in (RuntimeError, MemoryError) else None


@contextmanager
def explained() -> Iterator[None]:
    """Within the context, turn an exception of MLX whose device failed into a `DeviceError`.

    Code that takes a RuntimeError for the fault of a file or a disk does the work of MLX in it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if failed := device_error(error):
            raise failed from error
        raise
