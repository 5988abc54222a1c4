"""Opens the HTTP client of downloads, with the proxies and certificates of the environment.

``HTTPS_PROXY``, ``HTTP_PROXY`` and ``ALL_PROXY`` name proxies, as do the network settings of a Mac;
``NO_PROXY`` names the hosts to connect to directly, and ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` the
certificates. httpx reads the same variables, but rejects many values of ``NO_PROXY`` that other
programs accept.
"""

import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.request import getproxies

import httpx

from mlxchat.data.addresses import without_credentials
from mlxchat.errors import DataError, reason_of

DEFAULT_PORTS = {"http": 80, "https": 443}
_CERTIFICATES = {"SSL_CERT_FILE": "file", "SSL_CERT_DIR": "folder"}  # the first that is set


def open_client(timeout: float) -> httpx.Client:
    """Return a client that connects as the environment says.

    Args:
        timeout: seconds without a byte until a request fails, and until a host counts as out of
            reach that was not reached before.

    Raises:
        DataError: a proxy or the certificates cannot be used; the variable is named.
    """
    context = _certificates()
    settings = getproxies()  # by scheme, "all" and "no"
    proxies = {
        scheme: _proxy(scheme, settings[scheme], context)
        for scheme in ("http", "https", "all")
        if settings.get(scheme)
    }
    direct = httpx.HTTPTransport(verify=context)
    return httpx.Client(
        timeout=timeout,
        transport=_Routes(direct, proxies, exemptions(settings.get("no", "")), timeout),
    )


class _Routes(httpx.BaseTransport):
    """Sends each request through the proxy of its scheme, or directly to its host."""

    def __init__(
        self,
        direct: httpx.BaseTransport,
        proxies: Mapping[str, httpx.BaseTransport],
        exempt: "tuple[Exemption, ...]",
        timeout: float,
    ) -> None:
        self._direct, self._proxies, self._exempt = direct, proxies, exempt
        self._timeout = timeout
        self._reached: set[tuple[str, int]] = set()  # hosts and ports

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        url = request.url
        way = self._proxies.get(url.scheme) or self._proxies.get("all") or self._direct
        if any(exemption.covers(url) for exemption in self._exempt):
            way = self._direct
        if way is self._direct:
            self._require_reachable(url)
        return way.handle_request(request)

    def _require_reachable(self, url: httpx.URL) -> None:
        place = url.raw_host.decode("ascii"), url.port or DEFAULT_PORTS.get(url.scheme, 0)
        if place not in self._reached and require_reachable(*place, self._timeout):
            self._reached.add(place)

    def close(self) -> None:
        """Close all connections."""
        for transport in (self._direct, *self._proxies.values()):
            transport.close()


def require_reachable(host: str, port: int, timeout: float) -> bool:
    """Return whether a host can be connected to, by any of its addresses; all are tried at once.

    httpx tries one after the other, and each has the whole time: where packets are dropped, the
    hub's eight addresses take 80 seconds. It waits for the name's addresses without a limit.

    Args:
        host: a name or an address.
        port: the port.
        timeout: seconds for all of it.

    Returns:
        False if every address refuses: httpx will say why, at once.

    Raises:
        httpx.ConnectError: the name's addresses cannot be had.
        httpx.ConnectTimeout: nothing answers in time.
    """
    until = time.monotonic() + timeout
    looked_up = _in_threads([lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
    found = _next(looked_up, until, f"looking up the addresses of {host} took too long")
    if isinstance(found, UnicodeError):
        return False
    if isinstance(found, Exception):
        raise httpx.ConnectError(str(found)) from found

    def connect(family: int, kind: int, protocol: int, name: str, address: tuple[str, int]) -> None:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(max(0.001, until - time.monotonic()))
            connection.connect(address)

    tried = _in_threads([partial(connect, *each) for each in found])
    silent = f"{host} did not answer for {timeout:g} s"
    late = False
    for _ in found:
        answer = _next(tried, until, silent)
        if answer is None:
            return True
        late = late or isinstance(answer, TimeoutError)
    if late:
        raise httpx.ConnectTimeout(silent)
    return False


def _in_threads(calls: Sequence[Callable[[], Any]]) -> "SimpleQueue[Any]":
    """Call functions at the same time; what they return, or raise, comes through a queue."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def run(call: Callable[[], Any]) -> None:
        try:
            answers.put(call())
        except (OSError, UnicodeError) as error:
            answers.put(error)

    for call in calls:
        threading.Thread(target=run, args=[call], name="connecting", daemon=True).start()
    return answers


def _next(answers: "SimpleQueue[Any]", until: float, problem: str) -> Any:
    """Return the next answer.

    Raises:
        httpx.ConnectTimeout: none comes in time, which is said as ``problem``.
    """
    try:
        return answers.get(timeout=max(0.0, until - time.monotonic()))
    except Empty:
        raise httpx.ConnectTimeout(problem) from None


@dataclass(frozen=True)
class Exemption:
    """An entry of ``NO_PROXY``: hosts to connect to directly.

    Attributes:
        scheme: that of the requests; None for all.
        host: a name or an IP address as it is written, a range such as ``10.0.0.0/8``, or ``*``.
        port: that of the requests; None for all.
    """

    scheme: str | None
    host: str
    port: int | None

    def covers(self, url: httpx.URL) -> bool:
        """Return whether a request to that address goes directly to its host."""
        if self.scheme not in (None, url.scheme):
            return False
        if self.port not in (None, url.port or DEFAULT_PORTS.get(url.scheme)):
            return False
        return self.host == "*" or any(
            self._is_of(name.lower().rstrip("."))
            for name in (url.host, url.raw_host.decode("ascii", "replace"))
        )

    def _is_of(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:  # a name: the entry is that name, or a domain that it is in
            own = self.host.removeprefix("*")
            domain = own if own.startswith(".") else f".{own}"
            return host == own or host.endswith(domain)
        try:
            return address in ip_network(self.host.partition("%")[0], strict=False)
        except ValueError:
            return False


_ENTRY = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?"
    r"(?:\[(?P<bracketed>[^\]]*)\](?P<size>/\d+)?|(?P<bare>[^\[\]]*?))"
    r"(?::(?P<port>\d{1,5}))?/?"
)


def exemptions(no_proxy: str) -> tuple[Exemption, ...]:
    """Return the entries of a ``NO_PROXY``, which commas or blanks separate.

    A name stands for its subdomains too, with a dot in front for these only. IPv6 addresses may be
    in brackets, and must be with a port. An entry that is none of these exempts no host.

    >>> [entry.host for entry in exemptions("localhost, [::1]:8080 ::1,10.0.0.0/8")]
    ['localhost', '::1', '::1', '10.0.0.0/8']
    """
    found = []
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        match = _ENTRY.fullmatch(entry)
        if entry.count(":") > 1 and not entry.startswith("[") and "://" not in entry:
            found.append(Exemption(None, entry, None))  # an IPv6 address without brackets
        elif match and (host := match["bracketed"] or match["bare"]):
            scheme = None if match["scheme"] == "all" else match["scheme"]
            port = int(match["port"]) if match["port"] else None
            found.append(Exemption(scheme, (host + (match["size"] or "")).rstrip("."), port))
    return tuple(found)


def _proxy(scheme: str, address: str, context: ssl.SSLContext) -> httpx.HTTPTransport:
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    source = next((name for name in names if os.environ.get(name)), "the system's settings")
    shown = without_credentials(address)
    try:
        url = httpx.URL(address if "://" in address else f"http://{address}")
        return httpx.HTTPTransport(verify=context, proxy=url)
    except ImportError as error:
        raise DataError(
            f"The proxy {shown} from {source} is a SOCKS proxy, which needs another package.",
            "pip install socksio",
        ) from error
    except (ValueError, httpx.InvalidURL):  # whose text may show the password
        raise DataError(
            f"The proxy {shown!r} from {source} cannot be used.",
            "Set it to an address such as http://127.0.0.1:8080, or unset it.",
        ) from None


def _certificates() -> ssl.SSLContext:
    for variable, kind in _CERTIFICATES.items():
        if not (given := os.environ.get(variable)):
            continue
        places = [given] if kind == "file" else given.split(os.pathsep)
        exists = Path.is_file if kind == "file" else Path.is_dir
        remedy = f"Set {variable} to a {kind} of certificates in PEM format, or unset it."
        if not any(exists(Path(place)) for place in places):
            raise DataError(f"{variable} is {given!r}, but there is no such {kind}.", remedy)
        try:
            return httpx.create_ssl_context()
        except OSError as error:  # those of ssl among them
            raise DataError(
                f"{given}, named by {variable}, cannot be read: {reason_of(error)}.",
                remedy,
            ) from error
    return httpx.create_ssl_context()
