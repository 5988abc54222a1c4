"""The conversation for programs: a JSON object for each line of JSON.

A line is a message, ``{"content": "Hello"}``, or a command, ``{"command": "/clear"}``. An answer is

    {"content": "It is 24.", "calculations": [{"expression": "48/2", "result": "24.0"}],
     "truncated": false, "dropped": 0}

A command that gives no answer says what it did, ``{"notes": ["Started a new conversation."]}``,
and a line that cannot be taken is answered by ``{"error": {"problem": ..., "remedy": ...}}``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlxchat.errors import DataError, MlxchatError
from mlxchat.json_text import parse_json
from mlxchat.ui.chat_commands import CommandResult, Pieces, Responder, run_slash_command
from mlxchat.ui.text import as_options

_FORM = 'Send {"content": "Hello"}, or {"command": "/clear"}, each on one line.'


def answer_lines(chat: Responder, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield an object for each line that is not blank, until one holds the command /exit."""
    for line in lines:
        if not line.strip():
            continue
        try:
            kind, text = _parsed(line)
            result = (
                run_slash_command(chat, text)
                if kind == "command"
                else CommandResult(answer=chat.reply(text))
            )
            if result.ends:
                return
            yield answer_object(chat, result.answer) if result.answer else _result_object(result)
        except MlxchatError as error:
            yield error_object(error, "/")


def error_object(error: MlxchatError, mark: str = "--") -> dict[str, Any]:
    """Return the line for an error, in which ``mark`` comes before the names of settings."""
    fault = {"problem": error.problem, "remedy": error.remedy}
    return {"error": {name: as_options(text, mark) for name, text in fault.items()}}


def answer_object(chat: Responder, pieces: Pieces) -> dict[str, Any]:
    """Return the whole of an answer."""
    for _ in pieces:
        pass
    answer = chat.messages[-1]
    calculations = []
    for part, following in zip(answer.parts, [*answer.parts[1:], None], strict=True):
        if part.type == "python":
            result = following.text if following and following.type == "python_output" else None
            calculations.append({"expression": part.text, "result": result})
    return {
        "content": answer.spoken,
        "calculations": calculations,
        "truncated": chat.truncated,
        "dropped": chat.dropped,
    }


def _result_object(result: CommandResult) -> dict[str, Any]:
    """Return what a command has led to that is no answer."""
    return {"notes": [*result.notes, *(f"{what}: {about}" for what, about in result.rows)]}


def _parsed(line: bytes) -> tuple[str, str]:
    """Return whether a line is ``content`` or a ``command``, and its text.

    Raises:
        DataError: it is neither.
    """
    try:
        sent = parse_json(line)
    except ValueError as error:
        raise DataError(f"The line is not valid JSON: {error}.", _FORM) from error
    if not isinstance(sent, dict) or len(sent) != 1:
        raise DataError("The line is not an object with exactly one entry.", _FORM)
    [(kind, text)] = sent.items()
    if kind not in ("content", "command") or not isinstance(text, str):
        raise DataError(
            "The entry is neither content nor command with a string as its value.", _FORM
        )
    if kind == "command" and not text.startswith("/"):
        raise DataError("A command starts with a slash.", _FORM)
    return kind, text
