"""Recognises the errors that MLX raises when its device fails, and says what helps.

MLX raises RuntimeError and MemoryError with messages of Metal, CUDA or its own allocators. Python
and this program raise both as well, for reasons of their own, so only the message can tell.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mlxchat.errors import DeviceError, MemoryLimitError, MlxchatError

RUN_KEPT = (
    "Everything a run has saved is kept. Repeat its command to resume, or let `supervise` do that."
)
CHAT_KEPT = "The conversation so far is kept. Ask again."
START_OVER = "If it fails again, save the conversation and load it in a new process."


class Failure(NamedTuple):
    """A way in which a device fails."""

    text: re.Pattern[str]  # found in the error message of MLX
    problem: str
    remedy: str  # of a run, or whatever else computes
    in_chat: str  # the remedy where it was an answer in a chat


FAILURES = (  # the first whose text matches counts
    Failure(
        re.compile(r"ImpactingInteractivity|Impacting Interactivity"),
        "macOS stopped the GPU's work because it delayed the display",
        "Let the display sleep, or use the Mac over SSH, while it computes, so that macOS's "
        "watchdog leaves the GPU alone. Setting AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the "
        f"environment can also help, but makes the display less smooth. {RUN_KEPT}",
        f"Close programs that draw a lot on the display, or use the Mac over SSH. {CHAT_KEPT}",
    ),
    Failure(
        re.compile(r"CallbackError(Timeout|Hang)|GPU Timeout|GPU Hang"),
        "macOS stopped the GPU's work because a part of it waited or ran for seconds",
        "Close other programs that use the GPU, let the display sleep, or use a smaller "
        f"`device_batch_size`. {RUN_KEPT}",
        f"Close other programs that use the GPU. {CHAT_KEPT}",
    ),
    Failure(
        re.compile(r"CallbackError(InnocentVictim|SubmissionsIgnored)"),
        "macOS stopped the GPU's work because of an earlier error or one in another program",
        f"Close other programs that use the GPU. {RUN_KEPT}",
        f"Close other programs that use the GPU. {CHAT_KEPT} {START_OVER}",
    ),
    Failure(
        re.compile(r"\[metal::malloc\] Resource limit"),
        "The GPU holds as many arrays as macOS allows a program",
        f"A new process starts without any. {RUN_KEPT}",
        "A new process starts without any: save the conversation and load it there.",
    ),
    Failure(
        re.compile(r"malloc\] Attempting to allocate .* maximum allowed buffer size"),
        "An array is larger than the GPU's largest buffer",
        f"Use a smaller `device_batch_size`, `max_seq_len` or `vocab_size`. {RUN_KEPT}",
        "Shorten the message, or start a new conversation.",
    ),
    Failure(
        re.compile(
            r"CallbackErrorOutOfMemory|Insufficient Memory|malloc\] |std::bad_alloc"
            r"|(?i:cu\w+\W.*out of memory)"
        ),
        "MLX's device is out of memory",
        "Close other programs, or use less memory: a smaller `memory_limit`, `device_batch_size` "
        f"or `depth`. {RUN_KEPT}",
        f"Close other programs, or start a new conversation, which takes less memory. {CHAT_KEPT}",
    ),
    Failure(
        re.compile(
            r"(?i:\[(metal|cuda|event|fence))"
            r"|\b(cuda|cublas|cudnn|nvrtc|cu[A-Z])\w*\W.*\bfailed"
        ),
        "MLX's device failed",
        RUN_KEPT,
        f"{CHAT_KEPT} {START_OVER}",
    ),
)


def explain(text: str) -> DeviceError | None:
    """Return the error for a message of MLX; None if it is not about a device that failed.

    >>> explain("[METAL] Command buffer execution failed: Impacting Interactivity").problem
    "macOS stopped the GPU's work because it delayed the display ([METAL] Command buffer \
execution failed: Impacting Interactivity)."
    >>> explain("Could not determine home directory.") is None
    True
    """
    failure = _failure(text)
    return DeviceError(_problem(failure, text), failure.remedy) if failure else None


def device_error(error: BaseException) -> DeviceError | None:
    """Return an exception of MLX as a `DeviceError`; None if its device did not fail."""
    return explain(str(error)) if _may_be_of_device(error) else None


def answer_error(error: Exception) -> MlxchatError | None:
    """Return an exception during an answer in a chat as one with a remedy there.

    It is None if neither the device failed nor memory ran out.
    """
    text = str(error)
    if _may_be_of_device(error) and (failure := _failure(text)):
        return DeviceError(_problem(failure, text), failure.in_chat)
    if isinstance(error, MemoryError):
        return out_of_memory(error, f"Close other programs. {CHAT_KEPT}")
    return None


def out_of_memory(error: MemoryError, remedy: str) -> MemoryLimitError:
    """Return the error for a lack of memory that is not the device's."""
    said = f": {error}" if str(error) else ""
    return MemoryLimitError(f"This machine is out of memory{said}.", remedy)


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


def _may_be_of_device(error: BaseException) -> bool:
    return type(error) in (RuntimeError, MemoryError)


def _failure(text: str) -> Failure | None:
    return next((failure for failure in FAILURES if failure.text.search(text)), None)


def _problem(failure: Failure, text: str) -> str:
    words = " ".join(text.split()).rstrip(".")
    return f"{failure.problem} ({words})."
