"""A client for the Hugging Face hub and its mirrors, with retries.

The hub answers a HEAD of ``ENDPOINT/datasets/REPO/resolve/REVISION/FILE`` with the file's size,
checksum and commit (``X-Linked-Size``, ``X-Linked-Etag``, ``X-Repo-Commit``), and redirects a GET
to a signed address that expires; so every attempt starts at the first address again.

An endpoint may have credentials: ``https://NAME:PASSWORD@HOST``, or a token in its query. They are
sent to its host only, and are not part of any address that is shown or stored.
"""

import base64
import math
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx

from mlxchat import __version__
from mlxchat.counts import counted
from mlxchat.data.addresses import bare_address, without_credentials
from mlxchat.data.connection import open_client
from mlxchat.errors import ConfigError, DataError, NotFound, reason_of
from mlxchat.home import cache_folder, expanded
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Timer

DEFAULT_ENDPOINT = "https://huggingface.co"
NEWEST = "main"  # the branch
ATTEMPTS = 5  # in a row without progress
LONGEST_REQUESTED_PAUSE = 300.0  # seconds; the hub counts requests in windows of five minutes
TIMEOUT = 10.0  # seconds without a byte
MAX_REDIRECTS = 5
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")  # how errors of sockets begin

Result = TypeVar("Result")


class Cancelled(Exception):  # noqa: N818  (not an error: the caller asked for it)
    """The transfer ended because the hub's ``stop`` was set; the partial file stays on disk."""


class TryAgain(Exception):  # noqa: N818  (`Hub.persist` ends it)
    """An attempt failed, and a retry may succeed; the server asks to wait ``after`` seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class UnreachableError(DataError):
    """All attempts failed for a reason that may pass, such as a network that is down."""


class DisconnectedError(UnreachableError):
    """At the last attempt, no server answered at all."""


class NotFoundError(NotFound):
    """The hub has no such file, or no such revision of it."""


@dataclass(frozen=True)
class RemoteFile:
    """The hub's description of a file.

    Attributes:
        url: the address, without credentials; at ``commit``, if the hub names one.
        size: the size in bytes.
        checksum: a sha256 (64 hexadecimal digits) or git's sha1 of the blob (40), or None.
        commit: the commit of the file, or None.
    """

    url: str
    size: int
    checksum: str | None
    commit: str | None


@dataclass(frozen=True)
class Hub:
    """A server to download from. Safe to use from several threads.

    Attributes:
        endpoint: the address of the server, without credentials.
        client: the HTTP client.
        token: the user's access token, or None.
        login: the name and password in the endpoint, sent in place of a token; None without them.
        query: the query of every request to the endpoint, or empty.
        offline: whether nothing may be downloaded.
        sleep: waits a number of seconds.
        timer: returns seconds since any origin.
        backoff: seconds before the first retry; each further wait is twice as long.
        patience: seconds for which retries go on while the network is down.
        note: called with a line before each wait.
        stop: ends transfers and waits when it is set.
    """

    endpoint: str
    client: httpx.Client
    token: str | None = field(default=None, repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)
    query: str = field(default="", repr=False)
    offline: bool = False
    sleep: Callable[[float], object] = time.sleep
    timer: Timer = SYSTEM_CLOCK.seconds
    backoff: float = 1.0
    patience: float = math.inf
    note: Callable[[str], object] = lambda text: None
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_environment(cls, endpoint: str | None = None) -> "Hub":
        """Return the hub at ``endpoint``, else ``$HF_ENDPOINT``, else huggingface.co.

        Honours ``HF_TOKEN``, the token that ``hf auth login`` stores, and ``HF_HUB_OFFLINE``.

        Raises:
            ConfigError: the endpoint is not an http or https address.
            DataError: the proxy, the certificates or the token cannot be used.
        """
        given = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        if (url := _parsed(given)) is None:
            raise ConfigError(
                f"The endpoint {without_credentials(given).rstrip('/')!r} is not an http or https "
                "address.",
                f"Set `endpoint` or HF_ENDPOINT to an address such as {DEFAULT_ENDPOINT}.",
            )
        return cls(
            bare_address(given).rstrip("/"),
            token=_token(),
            login=(url.username, url.password) if url.userinfo else None,
            query=url.query.decode("ascii"),
            offline=_switched_on("HF_HUB_OFFLINE"),
            client=open_client(TIMEOUT),
        )

    def until(self, stop: threading.Event) -> "Hub":
        """Return this hub with another ``stop``; transfers and waits raise `Cancelled` once set."""
        return replace(self, stop=stop, sleep=stop.wait)

    def check_stop(self) -> None:
        """Raise `Cancelled` if ``stop`` is set."""
        if self.stop.is_set():
            raise Cancelled

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def stat(self, repo: str, filename: str, revision: str = NEWEST) -> RemoteFile:
        """Ask for the size and checksum of a file of the dataset ``repo`` (``owner/name``).

        Raises:
            NotFoundError: there is no such file at this revision.
            UnreachableError: the network or the server is down.
            DataError: the user may not read the file, or the answer has no size.
        """
        base = f"{self.endpoint}/datasets/{repo}/resolve"
        url = f"{base}/{revision}/{filename}"
        remote = self.persist(url, lambda: self._head(url))
        if remote.commit:  # so that the download is of the same version
            remote = replace(remote, url=f"{base}/{remote.commit}/{filename}")
        return remote

    def persist(
        self, url: str, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0
    ) -> Result:
        """Call ``attempt`` until it succeeds, with growing pauses.

        Args:
            url: the address, for error messages.
            attempt: raises `TryAgain` or an error of httpx if a retry may succeed.
            progress: returns the progress so far; any progress resets the count of failures.

        Raises:
            UnreachableError: `ATTEMPTS` in a row failed without progress, or the network is down
                for longer than ``patience``.
            Cancelled: ``stop`` was set.
            DataError: the hub is offline, or the host has an invalid name.
        """
        if self.offline:
            raise DataError(
                f"HF_HUB_OFFLINE is set, and {url} is not on disk.", "Unset it to download."
            )
        furthest, failed, began = progress(), 0, self.timer()
        while True:
            self.check_stop()
            pause, patience, kind = 0.0, math.inf, UnreachableError
            try:
                return attempt()
            except TryAgain as error:
                reason, pause = str(error), error.after
            except httpx.RequestError as error:
                reason = _ERRNO.sub("", str(error)) or type(error).__name__
                patience, kind = self.patience, DisconnectedError
            except UnicodeError as error:  # in the name of a proxy, or of the target of a redirect
                raise DataError(
                    f"{url} redirects to a host with an invalid name.",
                    "Check `endpoint`, HF_ENDPOINT and HTTPS_PROXY.",
                ) from error
            reached = progress()
            failed = 1 if reached > furthest else failed + 1
            furthest = max(furthest, reached)
            wait = max(self.backoff * 2 ** (failed - 1), pause)
            if failed == ATTEMPTS or self.timer() - began + wait > patience:
                raise kind(
                    f"{url} could not be downloaded: {reason} ({counted(failed, 'attempts')}).",
                    "Check the network and `endpoint`, then repeat the command: the download "
                    "resumes.",
                )
            name = url.rpartition("/")[2]
            self.note(f"Trying again in {wait:g} s to get {name}: {reason}.")
            self.sleep(wait)

    def get(self, url: str, offset: int) -> AbstractContextManager[httpx.Response]:
        """Open a download from byte ``offset`` on. Other hosts get no credentials."""
        headers = self._headers() | ({"Range": f"bytes={offset}-"} if offset else {})
        address = self._with_query(url)
        return self.client.stream("GET", address, headers=headers, follow_redirects=True)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"mlxchat/{__version__}"}
        if self.login:
            encoded = base64.b64encode(":".join(self.login).encode()).decode()
            headers["Authorization"] = f"Basic {encoded}"
        elif self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def _with_query(self, url: str) -> str:
        return f"{url}?{self.query}" if self.query else url

    def _head(self, url: str) -> RemoteFile:
        address = self._with_query(url)
        request = self.client.build_request("HEAD", address, headers=self._headers())
        for _ in range(MAX_REDIRECTS):
            response = self.client.send(request, follow_redirects=False)
            # The answer that redirects to the storage is the one that carries the checksum.
            if "x-linked-size" in response.headers or response.next_request is None:
                break
            request = response.next_request  # without credentials if the host is another
        else:
            raise DataError(f"{url} redirects endlessly.", "Check `endpoint`.")
        if response.next_request is None:
            check_status(response, url)
        size = response.headers.get("x-linked-size") or response.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,18}", size):
            raise DataError(
                f"The server does not report the size of {url}.",
                "Check `endpoint` and HF_ENDPOINT.",
            )
        commit = _hexadecimal(response.headers.get("x-repo-commit", ""), 40)
        # Only the hub's own tag is a checksum: a storage's may be a hash of something else.
        own = response.headers.get("etag", "") if commit else ""
        etag = response.headers.get("x-linked-etag") or own
        checksum = etag.removeprefix("W/").strip('"').lower()
        return RemoteFile(url, int(size), _hexadecimal(checksum, 64, 40), commit)


def check_status(response: httpx.Response, url: str) -> None:
    """Raise for an answer that is not the file: `TryAgain` if a retry may succeed."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise TryAgain(f"the server answers {status} {response.reason_phrase}", _pause(response))
    if status in (401, 403):
        raise DataError(
            f"You have no access to {url} (status {status}).",
            "Set HF_TOKEN to a token with access to it.",
        )
    if status == httpx.codes.NOT_FOUND:
        raise NotFoundError(
            f"{url} does not exist (status 404).", "Check the dataset and `endpoint`."
        )
    if not response.is_success:
        raise DataError(f"{url}: the server answers {status}.", "Check `endpoint`.")


def _pause(response: httpx.Response) -> float:
    """Return the seconds that the server asks to wait, in any form the hub or a proxy uses."""
    after = response.headers.get("retry-after", "")
    spent = re.search(r"\br=0;t=([0-9]{1,18})", response.headers.get("ratelimit", ""))
    if re.fullmatch("[0-9]{1,18}", after):
        seconds = float(after)
    elif after:
        seconds = _seconds_until(after, response.headers.get("date", ""))
    else:
        seconds = float(spent[1]) if spent else 0.0
    return min(seconds, LONGEST_REQUESTED_PAUSE)


def _seconds_until(moment: str, now: str) -> float:
    """Return the seconds between two HTTP dates; 0 if one is invalid."""
    try:
        return (parsedate_to_datetime(moment) - parsedate_to_datetime(now)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _hexadecimal(text: str, *lengths: int) -> str | None:
    return text if len(text) in lengths and re.fullmatch("[0-9a-f]+", text) else None


def _parsed(endpoint: str) -> httpx.URL | None:
    """Return the parts of an http or https address; None if the endpoint is none."""
    try:
        url = httpx.URL(endpoint)
        url.raw_host.decode("ascii").encode("idna")  # as sockets do: finds labels of no length
        valid = url.scheme in ("http", "https") and bool(url.host) and (url.port or 0) < 65_536
    except (httpx.InvalidURL, UnicodeError):
        return None
    return url if valid else None


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str | None:
    """Return the user's token from where the hub's own client looks for it."""
    if _switched_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "HUGGING_FACE_HUB_TOKEN"
    token = os.environ.get(source)
    if not token:
        home = expanded(os.environ.get("HF_HOME") or cache_folder() / "huggingface")
        stored = expanded(os.environ.get("HF_TOKEN_PATH") or home / "token")
        source = str(stored)
        try:
            token = stored.read_text("utf-8", errors="replace") if stored.is_file() else ""
        except OSError as error:
            raise DataError(
                f"The token in {stored} cannot be read: {reason_of(error)}.",
                "Check its permissions, or set HF_TOKEN.",
            ) from error
    token = token.strip()
    if not (token.isascii() and token.isprintable()):  # httpx's own error would show the token
        raise DataError(
            f"{source} does not contain a token: it has characters that are not allowed in one.",
            "Set HF_TOKEN to a token exactly as the hub shows it, or unset it.",
        )
    return token or None
