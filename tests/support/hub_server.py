"""A local HTTP server that answers as the Hugging Face hub does, and misbehaves when told to.

A HEAD of a file's address gets ``X-Linked-Size``, ``X-Linked-Etag`` (its sha256) and
``X-Repo-Commit`` beside a redirect; a GET gets the redirect, and the storage it points to sends the
bytes, from any offset. The newest revision (``main``) and its commit are one.
"""

import hashlib
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.shards import Dataset, shard_name

TINY = Dataset("tiny", "someone/tiny", last_shard=9, licence_note="CC0")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STORAGE = "/storage"
BLOCK = 64 * 1024


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` whose path ends in ``name``.

    ``status`` answers that instead; ``cut`` closes the connection after so many bytes of the body,
    ``stall`` seconds later; ``spoil`` changes that byte of what is sent; ``ignore_range`` sends the
    whole file; ``misplace`` sends a part that begins so many bytes after the one asked for;
    ``omit_checksum`` leaves the sha256 out of a HEAD; ``elsewhere`` redirects to that host instead,
    a HEAD without a word of size and checksum; ``change`` becomes the file's content from this
    request on, under the same revision.
    """

    name: str = ""
    method: str = "GET"
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: float = 0.0
    spoil: int | None = None
    ignore_range: bool = False
    misplace: int = 0
    omit_checksum: bool = False
    elsewhere: str = ""
    change: Path | None = None


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case


class HubServer:
    """Serves ``files`` (path to file on disk), a mapping that may change while it runs.

    ``storage`` is the address that GETs are redirected to, by default this server's own.
    """

    def __init__(
        self,
        files: dict[str, Path],
        port: int = 0,
        bytes_per_second: float = float("inf"),
        storage: str = "",
    ) -> None:
        self.files = files
        self.bytes_per_second = bytes_per_second
        self.storage = storage
        self.commit = COMMIT
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), type("Bound", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str, name: str) -> int:
        """How often a file was asked for, not counting its storage."""
        return sum(
            request.method == method
            and request.path.endswith(name)
            and not request.path.startswith(STORAGE)
            for request in list(self.requests)
        )

    def next_fault(self, method: str, path: str, redirecting: bool) -> Fault:
        """The fault for this request, used up once; a fault without effect where there is none.

        The first request of a GET, ``redirecting``, has only those that redirect.
        """
        with self._lock:
            for fault in self.faults:
                fits = fault.method == method and path.endswith(fault.name)
                if fault.times > 0 and fits and redirecting == bool(fault.elsewhere):
                    fault.times -= 1
                    return fault
        return Fault()

    def plain(self, path: str) -> str:
        """A path without its storage and with the newest revision for its commit."""
        return path.removeprefix(STORAGE).replace(f"/resolve/{self.commit}/", "/resolve/main/")


def write_shard(path: Path, documents: int = 50) -> Path:
    """A small shard, unlike any of another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{path.stem}, document {number}: " + "words " * 20 for number in range(documents)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=16)
    return path


def dataset_files(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """A file in ``folder`` for every shard of ``dataset``, by its address at the hub."""
    names = [shard_name(index) for index in range(dataset.last_shard + 1)]
    return {address(dataset, name): write_shard(folder / name) for name in names}


def address(dataset: Dataset, name: str) -> str:
    """The path at the hub of a file of ``dataset``."""
    return f"/datasets/{dataset.repo}/resolve/main/{name}"


@cache
def _sha256(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print what was raised, unless it is that a client has gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are separate writes

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._record()
        if self._redirected("HEAD"):
            return
        fault, file = self._look_up("HEAD")
        if fault.status or file is None:
            self._answer(fault.status or 404, fault.headers)
            return
        headers = {
            "X-Linked-Size": str(file.stat().st_size),
            "X-Repo-Commit": self.hub.commit,
            "Location": self.hub.storage + STORAGE + self.path,
        }
        if not fault.omit_checksum:
            headers["X-Linked-Etag"] = f'"{_sha256(file, file.stat().st_mtime_ns)}"'
        self._answer(302, headers)

    def do_GET(self) -> None:
        self._record()
        if not self.path.startswith(STORAGE):
            if not self._redirected("GET"):
                self._answer(302, {"Location": self.hub.storage + STORAGE + self.path})
            return
        fault, file = self._look_up("GET")
        if fault.status or file is None:
            self._answer(fault.status or 404, fault.headers)
            return
        self._send(file, fault)

    def _redirected(self, method: str) -> bool:
        elsewhere = self.hub.next_fault(method, self.path, redirecting=True).elsewhere
        if elsewhere:
            path = self.path if method == "HEAD" else STORAGE + self.path
            self._answer(302, {"Location": elsewhere + path})
        return bool(elsewhere)

    def _look_up(self, method: str) -> tuple[Fault, Path | None]:
        fault = self.hub.next_fault(method, self.path, redirecting=False)
        path = self.hub.plain(self.path)
        if fault.change:
            self.hub.files[path] = fault.change
        return fault, self.hub.files.get(path)

    def _send(self, file: Path, fault: Fault) -> None:
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not fault.ignore_range else 0
        if start and start >= size:
            self._answer(416, {"Content-Range": f"bytes */{size}"})
            return
        start = min(start + fault.misplace, size - 1) if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        sent, end = 0, size - start if fault.cut is None else min(fault.cut, size - start)
        step = int(min(BLOCK, max(self.hub.bytes_per_second / 20, 1)))
        with file.open("rb") as stream:
            stream.seek(start)
            while sent < end:
                block = bytearray(stream.read(min(step, end - sent)))
                if fault.spoil is not None and sent <= fault.spoil < sent + len(block):
                    block[fault.spoil - sent] ^= 1
                sent += len(block)
                time.sleep(len(block) / self.hub.bytes_per_second)
                try:
                    self.wfile.write(block)
                except ConnectionError:  # the client has gone
                    self.close_connection = True
                    return
        self.hub.closing.wait(fault.stall)
        self.close_connection = fault.cut is not None or fault.stall > 0

    def _record(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, self.path, headers))

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
