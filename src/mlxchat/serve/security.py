"""Decides which requests to accept, by Host, origin, key and content type.

The main danger to a server on your own machine is a web page that you visit. The page can send
requests to any address, although it can only read answers that the server allows it to (CORS). Its
own host name can also be made to resolve to this machine (DNS rebinding), which would let it read
everything. Checking the origin and the content type prevents the former, checking the Host the
latter. The key keeps other machines out.
"""

import hmac
import ipaddress
import re
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxchat.config.serve import ANY_ORIGIN, ServeConfig, is_loopback
from mlxchat.serve.errors import ApiError

FREE = {"/", "/chat.css", "/chat.js", "/health"}  # readable without a key: they say nothing secret
PREFLIGHT_SECONDS = 600  # for which browsers remember what they may send

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(?::\d{1,5})?")


class Guard:
    """Passes requests on to an application, or answers them with an error.

    Args:
        app: the application.
        config: provides the address, key and origins.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app = app
        self._config = config
        self._origins = frozenset(config.cors_origin or ())
        self._names = frozenset(config.allow_host or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        shared = self._shares_with(origin)

        async def send_shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered["access-control-allow-origin"] = origin or ANY_ORIGIN
                answered.add_vary_header("origin")
            await send(message)

        deliver = send_shared if shared else send
        app: ASGIApp
        try:
            self._check_host(headers)
            self._check_origin(headers, shared)
            if shared and scope["method"] == "OPTIONS":
                app = _preflight(headers)
            else:
                self._check_key(scope["path"], headers)
                _check_type(scope["method"], headers)
                app = self._app
        except ApiError as error:
            app = error.response()
        await app(scope, receive, deliver)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that is not this server's: a page's own, made to lead here."""
        if len(headers.getlist("host")) == 1:
            named = _HOST.fullmatch(headers["host"])
            if named and self._is_own(named[1].lower()):
                return
        raise ApiError(
            403,
            f"This server does not answer as {headers.get('host', '')[:100]!r}. Use the address "
            "it printed at startup. To allow another name, start it with the setting allow_host.",
            code="host_not_allowed",
        )

    def _is_own(self, host: str) -> bool:
        config = self._config
        if is_loopback(host) or host == config.host.lower() or host in self._names:
            return True
        if config.loopback:
            return False
        # A page's own name is of no use to it without the key; an address is nobody's name.
        return bool(config.api_key) or _is_address(host) or host in _names_of_this_machine()

    def _shares_with(self, origin: str | None) -> bool:
        """Return whether pages of an origin may read what the server answers."""
        return origin is not None and bool(self._origins & {origin, ANY_ORIGIN})

    def _check_origin(self, headers: Headers, shared: bool) -> None:
        """Refuse pages of others. A proxy may send another Host than the one its pages have."""
        origin = headers.get("origin")
        if origin is None or shared:
            return
        named = _HOST.fullmatch(place := origin.partition("://")[2])
        if place == headers["host"] or (named and named[1].lower() in self._names):
            return
        raise ApiError(
            403,
            f"Pages from {origin[:100]!r} may not use this server. To allow them, start it with "
            "the setting cors_origin.",
            code="origin_not_allowed",
        )

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._config.api_key is None or path in FREE:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        own = self._config.api_key.encode()
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), own):
            return
        raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def _check_type(method: str, headers: Headers) -> None:
    """Refuse bodies of the types that any page may send without asking first."""
    if method != "POST":
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"The content type is {kind[:100]!r}. Send application/json.",
            code="unsupported_content_type",
        )


def _preflight(headers: Headers) -> Response:
    """Return what a browser asks before it lets a page send a request."""
    allowed = {
        "access-control-allow-methods": "GET, POST",
        "access-control-max-age": str(PREFLIGHT_SECONDS),
    }
    if wanted := headers.get("access-control-request-headers"):  # the origin is allowed them all
        allowed["access-control-allow-headers"] = wanted
    return Response(status_code=204, headers=allowed)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _names_of_this_machine() -> set[str]:
    name = socket.gethostname().lower().removesuffix(".local")
    return {name, f"{name}.local"}
