"""One verified, resumable download from the Hugging Face hub, or from what answers as it does.

The hub answers a HEAD of ``ENDPOINT/datasets/REPO/resolve/main/FILE`` with the file's size and
sha256 (``X-Linked-Size``, ``X-Linked-Etag``) and redirects a GET to a signed address that expires;
so every attempt starts at the first address again. A download grows ``FILE.incomplete`` beside its
destination, under a lock, and is renamed once its size and checksum are right.
"""

import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from mlxchat import __version__
from mlxchat.errors import MlxchatError

DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 5
LONGEST_PAUSE = 300.0  # seconds; the hub counts requests in windows of five minutes
LOCK_POLL = 0.2  # seconds between looks at a file that another process is downloading
TIMEOUT = 10.0  # seconds without a byte
MAX_REDIRECTS = 5
HASH_BLOCK = 2**20

Result = TypeVar("Result")


class Cancelled(Exception):  # noqa: N818  (not an error: the caller asked for it)
    """The transfer was given up because the hub's ``stop`` was set; what came stays on disk."""


class _TryAgain(Exception):  # noqa: N818  (never leaves this module)
    """This attempt failed in a way that the next may not; ``after`` is what the server asks."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file: ``size`` in bytes, and where known its sha256 and commit."""

    url: str
    size: int
    sha256: str | None
    commit: str | None


@dataclass(frozen=True)
class Hub:
    """Where files come from. Safe to use from several threads.

    ``sleep`` waits between attempts, first ``backoff`` seconds, then twice as long each time, and
    ``note`` gets a line before each of these waits.
    """

    endpoint: str
    client: httpx.Client
    token: str | None = None
    offline: bool = False
    sleep: Callable[[float], object] = time.sleep
    backoff: float = 1.0
    note: Callable[[str], object] = lambda text: None
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_environment(cls, endpoint: str | None = None) -> "Hub":
        """The hub at ``endpoint``, else ``$HF_ENDPOINT``, else huggingface.co.

        Honours ``HF_TOKEN``, the token that ``hf auth login`` stores, and ``HF_HUB_OFFLINE``.

        Raises:
            MlxchatError: the endpoint is no http address, the proxy none that works, or the token
                none that can be sent.
        """
        address = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if not _is_address(address):
            raise MlxchatError(
                f"The endpoint {address!r} is not an http or https address.",
                f"Give one such as {DEFAULT_ENDPOINT} with --endpoint or HF_ENDPOINT.",
            )
        token = _token()
        try:
            client = httpx.Client(timeout=TIMEOUT)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise MlxchatError(
                f"The proxy that the environment names cannot be used: {error}",
                "Unset ALL_PROXY and HTTPS_PROXY; for a SOCKS proxy: pip install socksio",
            ) from error
        return cls(address, client, token=token, offline=_switched_on("HF_HUB_OFFLINE"))

    def until(self, stop: threading.Event) -> "Hub":
        """This hub, whose transfers and waits raise `Cancelled` soon after ``stop`` is set."""
        return replace(self, stop=stop, sleep=stop.wait)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def stat(self, repo: str, filename: str) -> RemoteFile:
        """Ask for the size and checksum of a file of the dataset ``repo`` (``owner/name``).

        Raises:
            MlxchatError: there is no network, no such file, or no size in the answer.
        """
        url = f"{self.endpoint}/datasets/{repo}/resolve/main/{filename}"
        return self._persist(url, lambda: self._head(url))

    def download(
        self,
        remote: RemoteFile,
        destination: Path,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Put ``remote`` at ``destination``, whole and verified or not at all.

        Goes on where an earlier download stopped. Where another live process is downloading to the
        same destination, waits and takes what it made. ``report`` gets the bytes done so far.

        Raises:
            MlxchatError: the file cannot be had, is not what the hub announced, or cannot be
                written.
            Cancelled: ``stop`` was set.
        """
        partial = self.partial(destination)
        with self._locked(partial) as (stream, contended):
            if contended and destination.is_file() and destination.stat().st_size == remote.size:
                partial.unlink()
                return
            try:
                self._persist(remote.url, lambda: self._attempt(remote, stream, report))
            finally:
                if _size(stream) == 0 < remote.size:
                    partial.unlink()
            os.fsync(stream.fileno())
            partial.replace(destination)
        sync_folder(destination.parent)

    @staticmethod
    def partial(destination: Path) -> Path:
        """Where a download to ``destination`` grows."""
        return destination.with_name(f"{destination.name}.incomplete")

    def _persist(self, url: str, attempt: Callable[[], Result]) -> Result:
        """Call ``attempt`` until it succeeds, at most `ATTEMPTS` times, with growing pauses."""
        if self.offline:
            raise MlxchatError(
                f"HF_HUB_OFFLINE is set, and {url} is not on disk.", "Unset it to download."
            )
        reason = ""
        pause: float | None = None
        for number in range(ATTEMPTS):
            if number:
                wait = self.backoff * 2 ** (number - 1) if pause is None else pause
                name = url.rpartition("/")[2]
                self.note(f"Trying again in {wait:g} s to get {name}: {reason}.")
                self.sleep(wait)
            self._check_stop()
            try:
                return attempt()
            except _TryAgain as error:
                reason, pause = str(error), error.after
            except httpx.RequestError as error:
                reason, pause = str(error) or type(error).__name__, None
            except UnicodeError as error:  # of the name of a proxy, or of a host redirected to
                raise MlxchatError(
                    f"The way to {url} leads over a host whose name cannot be one.",
                    "Check --endpoint, HF_ENDPOINT and HTTPS_PROXY.",
                ) from error
        raise MlxchatError(
            f"{url} cannot be had: {reason} ({ATTEMPTS} attempts).",
            "Check the network and --endpoint, then run the same command again: "
            "it goes on where it stopped.",
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"mlxchat/{__version__}"}
        return headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def _head(self, url: str) -> RemoteFile:
        request = self.client.build_request("HEAD", url, headers=self._headers())
        for _ in range(MAX_REDIRECTS):
            response = self.client.send(request, follow_redirects=False)
            # The answer that redirects to the storage is the one that carries the checksum.
            if "x-linked-size" in response.headers or response.next_request is None:
                break
            request = response.next_request  # without the token where the host is another
        else:
            raise MlxchatError(f"{url} redirects without end.", "Check --endpoint.")
        if response.next_request is None:
            _check_status(response, url)
        size = response.headers.get("x-linked-size") or response.headers.get("content-length", "")
        if not size.isdigit():
            raise MlxchatError(
                f"The server does not say how big {url} is.", "Check --endpoint and HF_ENDPOINT."
            )
        etag = response.headers.get("x-linked-etag") or response.headers.get("etag", "")
        checksum = etag.removeprefix("W/").strip('"').lower()
        return RemoteFile(
            url=url,
            size=int(size),
            sha256=checksum if re.fullmatch("[0-9a-f]{64}", checksum) else None,
            commit=response.headers.get("x-repo-commit"),
        )

    def _attempt(self, remote: RemoteFile, stream: BinaryIO, report: Callable[[int], None]) -> None:
        """Bring ``stream`` from whatever it holds to the whole, verified file."""
        if _size(stream) > remote.size:
            stream.truncate(0)
        resumed = _size(stream) > 0
        if _size(stream) < remote.size:
            self._receive(remote, stream, report)
        if _size(stream) < remote.size:
            raise _TryAgain(f"it ended after {_size(stream)} of {remote.size} bytes")
        if remote.sha256 in (None, _sha256(stream)) and _size(stream) == remote.size:
            return
        stream.truncate(0)
        if resumed:  # the first part may be of an older version of the file
            raise _TryAgain("what came does not match its checksum")
        raise MlxchatError(
            f"{remote.url} is corrupt: what came does not match the hub's size and checksum.",
            "Nothing of it was kept. Run the same command again, or choose another --endpoint.",
        )

    def _receive(self, remote: RemoteFile, stream: BinaryIO, report: Callable[[int], None]) -> None:
        """Append what is missing, or start over where the server sends the whole."""
        offset = _size(stream)
        headers = self._headers() | ({"Range": f"bytes={offset}-"} if offset else {})
        with self.client.stream(
            "GET", remote.url, headers=headers, follow_redirects=True
        ) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                stream.truncate(0)
                raise _TryAgain("the server has no such part of it")
            _check_status(response, remote.url)
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                stream.truncate(0)
                offset = 0
            for chunk in response.iter_raw():
                self._check_stop()
                with storing(remote.url):
                    _write(stream, chunk)
                offset += len(chunk)
                if offset > remote.size:
                    return
                report(offset)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Cancelled

    @contextmanager
    def _locked(self, partial: Path) -> Iterator[tuple[BinaryIO, bool]]:
        """Open ``partial`` for appending, alone; True beside it when another had it meanwhile."""
        contended = False
        while True:
            with storing(partial):
                partial.parent.mkdir(parents=True, exist_ok=True)
                stream = partial.open("a+b", buffering=0)
            with stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    # Whoever held the lock may have renamed or deleted the file we opened.
                    if _is_at(stream, partial):
                        yield stream, contended
                        return
            contended = True
            self.sleep(LOCK_POLL)
            self._check_stop()


@contextmanager
def storing(what: Path | str) -> Iterator[None]:
    """Turn a disk that is full, or a folder that cannot be written, into an error the user sees."""
    try:
        yield
    except OSError as error:
        raise MlxchatError(
            f"{what} cannot be stored: {error.strerror or error}.",
            "Make room on the disk, or choose another folder with MLXCHAT_HOME.",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_status(response: httpx.Response, url: str) -> None:
    """Raise for an answer that is not the file: `_TryAgain` where a later one may be."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise _TryAgain(f"the server answers {status} {response.reason_phrase}", _pause(response))
    if status in (401, 403):
        raise MlxchatError(
            f"{url} is not open to you (status {status}).",
            "Set HF_TOKEN to a token that may read it.",
        )
    if status == httpx.codes.NOT_FOUND:
        raise MlxchatError(
            f"{url} does not exist (status 404).", "Check the dataset and --endpoint."
        )
    if not response.is_success:
        raise MlxchatError(f"{url}: the server answers {status}.", "Check --endpoint.")


def _pause(response: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait, in either of the two headers the hub uses."""
    asked = re.match(r"(\d+)$", response.headers.get("retry-after", "")) or re.search(
        r"\bt=(\d+)", response.headers.get("ratelimit", "")
    )
    return min(float(asked[1]), LONGEST_PAUSE) if asked else None


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write to a disk that fills up may be short
        view = view[stream.write(view) :]


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(HASH_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _is_address(endpoint: str) -> bool:
    """Whether a connection to it can be tried."""
    try:
        url = httpx.URL(endpoint)
        url.raw_host.decode("ascii").encode("idna")  # as sockets do: finds labels of no length
        return url.scheme in ("http", "https") and bool(url.host) and (url.port or 0) < 65_536
    except (httpx.InvalidURL, UnicodeError):
        return False


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str | None:
    """The user's token, from where the hub's own client looks for it."""
    if _switched_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "HUGGING_FACE_HUB_TOKEN"
    token = os.environ.get(source)
    if not token:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
        stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        source = str(stored)
        token = stored.read_text("utf-8", errors="replace") if stored.is_file() else ""
    token = token.strip()
    if not (token.isascii() and token.isprintable()):  # httpx's own error would show the token
        raise MlxchatError(
            f"{source} holds no token: there are characters in it that no token has.",
            "Set HF_TOKEN to a token as the hub shows it, or unset it.",
        )
    return token or None
