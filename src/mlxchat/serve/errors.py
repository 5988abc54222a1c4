"""Errors in OpenAI's format: a status, and a body with the parameter and a code.

Clients act on the status: 400 to 404 are the request's fault, and 429 and 503 are retried after
``retry-after`` seconds. openai-python would also retry a 500, and is told not to: the model is
likely to fail again for the same reason, such as a prompt that is too long for the memory.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from starlette.responses import JSONResponse

RETRY_AFTER = 1  # clients double it by themselves


class ApiError(Exception):
    """An error in a request, reported to the client.

    Args:
        status: the HTTP status.
        message: what is wrong, and what to do.
        param: the parameter at fault, such as ``messages[0].content``; None for none in particular.
        code: OpenAI's code for programs, such as ``model_not_found``.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, object]:
        """The error as OpenAI writes it."""
        error = {
            "message": self.message,
            "type": _type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the error as a response, with ``retry-after`` where a retry can work."""
        more = dict(headers or {})
        if self.status in (429, 503):
            more["retry-after"] = str(RETRY_AFTER)
        if self.status == 500:
            more["x-should-retry"] = "false"
        if self.status == 401:
            more["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, more)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself."""
    return ApiError(400, message, param, code)


def unsupported(param: str, why: str = "") -> ApiError:
    """Return the error of a parameter that OpenAI has, and this server has not."""
    return invalid(
        f"'{param}' is not supported by this server{why and f': {why}'}. Leave it out.",
        param,
        "unsupported_parameter",
    )


def unknown(param: str, known: list[str]) -> ApiError:
    """Return the error of a parameter that nobody has."""
    shown = param[:50]  # it may be a megabyte
    nearest = get_close_matches(shown, known, 1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return invalid(f"Unknown parameter: '{shown}'.{hint}", shown, "unknown_parameter")
