"""Error messages and exit codes of the commands. docs/files.md has a table of the codes.

An error that the user can fix is two lines: the problem and the remedy. An unforeseen one is a
mistake of the program: two lines as well, with the traceback in a file.
"""

import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import cast

import typer

from mlxchat.device_failures import device_error, out_of_memory
from mlxchat.errors import DeviceError, LockedError, MlxchatError, reason_of
from mlxchat.errors import command as mlxchat
from mlxchat.ui import console
from mlxchat.ui.output import Output

# typer exports no name for usage errors of all kinds, but this is one of them.
USAGE_ERRORS = cast(tuple[type[Exception], ...], typer.BadParameter.__bases__)
TRAINS_ON_TEXT = ("mlxchat train", "mlxchat info", "mlxchat scaling")
OF_TEXT = ("--from", "--data", "--file", "--text", "--input")  # options that these have not
UNEXPECTED = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)")
NO_TRACEBACK_YET = "Repeat the command with MLXCHAT_DEBUG=1, and report it with what that prints."


def exit_code(command: Callable[[], int | None], program: object = None) -> int:
    """Run a command, print an error message if it fails, and return the exit code.

    With ``MLXCHAT_DEBUG=1`` the traceback of a failure is printed first; nothing else changes.

    Args:
        command: what to run.
        program: all commands, as typer makes them, to name the one that was given.
    """
    try:
        return command() or 0
    except SystemExit as ended:  # typer ends so after it has shown or installed the completion
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except USAGE_ERRORS as error:
        return _report_usage(error, _given(program))
    except (MlxchatError, OSError, RuntimeError, MemoryError) as error:
        known = _known_error(error)
        if known is None:
            raise  # to `report_unforeseen`
        if _debugging():
            console.say_whole(traceback.format_exc(), sys.stderr)
        console.error(known.problem, known.remedy)
        return code_of(known)


def code_of(error: MlxchatError) -> int:
    """Return the exit code of a command that an error ends."""
    if isinstance(error, LockedError):
        return os.EX_TEMPFAIL
    return os.EX_SOFTWARE if isinstance(error, DeviceError) else 1


def lost_output(out: Output, err: Output) -> int:
    """Return 1 and say why if output could not be written; 0 if all of it was, or has no reader."""
    lost = 0
    for name, stream in (("Standard output", out), ("Standard error", err)):
        stream.flush()
        if stream.failure is not None:
            lost = 1
            console.error(
                f"{name} could not be written: {reason_of(stream.failure)}.",
                "What was printed since then is lost. Make room there, or send it elsewhere.",
            )
    return lost


def report_unforeseen(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Report an exception that nothing has caught, in place of Python's `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        return
    if _debugging():
        console.say_whole("".join(traceback.format_exception(kind, error, trace)), sys.stderr)
        remedy = "Please report it with the traceback above."
    else:
        stored = _stored_traceback(kind, error, trace)
        remedy = f"Please report it with its traceback: {stored}" if stored else NO_TRACEBACK_YET
    what = f"{kind.__name__}: {error}" if str(error) else kind.__name__
    console.error(f"This is a bug in mlxchat. {what.rstrip('.')}.", remedy)


def _report_usage(error: Exception, given: str) -> int:
    """Report wrong usage, unless it was the lack of arguments, which has printed the help.

    Args:
        error: of typer.
        given: the command that was given.
    """
    context: typer.Context | None = getattr(error, "ctx", None)
    if message := error.format_message():  # type: ignore[attr-defined]
        given = context.command_path if context else given
        message = message.replace(": Value error, ", ": ", 1)  # pydantic's words, by way of typer
        console.error(message, f"{_suggestion(error, given, context)}See: {given} --help")
    return 2


def _given(program: object) -> str:
    """Return the command that was given: the words that name commands and their groups."""
    named = "mlxchat"
    for word in sys.argv[1:]:
        program = getattr(program, "commands", {}).get(word)
        if program is None:
            break
        named = f"{named} {word}"
    return named


def _suggestion(error: Exception, given: str, context: typer.Context | None) -> str:
    """Return what the user may have meant, as the beginning of a remedy; "" if that is unclear."""
    if getattr(error, "option_name", None) in OF_TEXT and given in TRAINS_ON_TEXT:
        return f"Make a dataset of your own text first: {mlxchat('data fetch', from_='PATH')}. "
    extra = UNEXPECTED.fullmatch(error.message) if hasattr(error, "message") else None
    if extra is None or context is None:
        return ""
    flags = {flag for parameter in context.command.params for flag in parameter.opts}
    word = extra[1].split()[0]
    named = ("--from", "--data" if "." in word else "--source", "--model-tag")
    flag = next((flag for flag in named if flag in flags), None)
    if flag is None or given in TRAINS_ON_TEXT:
        return ""
    return f"Did you mean: {given} {flag} {shlex.quote(word)}? "


def _known_error(error: Exception) -> MlxchatError | None:
    """Return an error as one that says what to do; None if it is unforeseen."""
    if isinstance(error, MlxchatError):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return MlxchatError(
            f"{where}{reason_of(error)}.",
            "Check that the disk has room and that you may write there. MLXCHAT_HOME sets the "
            "folder.",
        )
    if failed := device_error(error):
        return failed
    if isinstance(error, MemoryError):
        return out_of_memory(error, "Close other programs, or give it less to do at a time.")
    return None


def _debugging() -> bool:
    return os.environ.get("MLXCHAT_DEBUG") == "1"


def _stored_traceback(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> Path | None:
    """Write a traceback into a new file; None if the disk does not take it."""
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="mlxchat-", suffix=".txt", encoding="utf-8", errors="replace", delete=False
        ) as file,
    ):
        file.write("".join(traceback.format_exception(kind, error, trace)))
        return Path(file.name)
    return None
