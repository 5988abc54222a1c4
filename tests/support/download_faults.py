"""Downloads from a hub that misbehaves at random, reproducible by a seed.

Whatever the hub does, a download must end with the right file in place, or with an error that names
the file and nothing in place; and once the hub behaves, the next must succeed.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import httpx

from mlxchat.data.download import download, partial
from mlxchat.data.hub import ATTEMPTS, Hub
from mlxchat.errors import MlxchatError
from support.hub_server import Fault, HubServer

REPO = "someone/texts"
NAME = "shard_00000.parquet"
ADDRESS = f"/datasets/{REPO}/resolve/main/{NAME}"
TOKEN = "secret"
TIMEOUT = 0.08  # seconds that the client waits for a byte
SIZES = (0, 1, 1000, 65_536, 65_537, 200_000)
RUNS = 3  # of the program, while the hub misbehaves

Outcome = Literal["right", "reported", "killed"]


class Killed(BaseException):
    """The process ended in the middle of a transfer."""


class Schedules:
    """A hub, a second host, and files of a few versions; to be left in a ``with``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server, self._other = HubServer({}), HubServer({})
        self._client = httpx.Client(trust_env=False, timeout=TIMEOUT)

    def __enter__(self) -> "Schedules":
        self._server.__enter__()
        self._other.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()
        self._other.__exit__(*exception)
        self._server.__exit__(*exception)

    def run(self, seed: int) -> Outcome:
        """How one file fared in one schedule, before the hub behaved again.

        Raises:
            AssertionError: something wrong was in place, or an error did not say which file.
        """
        order = random.Random(seed)
        folder = self._folder / str(seed)
        folder.mkdir()
        destination = folder / "data" / NAME
        versions = self._versions(order, folder)
        self._server.files = self._other.files = {ADDRESS: versions[0]}
        size = versions[0].stat().st_size
        vouched = order.random() < 0.9
        self._server.faults = [
            self._fault(order, size, versions, vouched) for _ in range(order.randint(1, 6))
        ]
        if not vouched:
            self._server.faults.append(Fault(method="HEAD", omit_checksum=True, times=1000))
        self._leave_something(order, destination, versions[0].read_bytes())

        outcome = self._persist(order, destination)
        self._server.faults = []
        remote = self._hub().stat(REPO, NAME)
        download(self._hub(), remote, destination)
        assert destination.read_bytes() == self._server.files[ADDRESS].read_bytes()
        assert list(destination.parent.iterdir()) == [destination]
        assert all("authorization" not in request.headers for request in self._other.requests)
        return outcome

    def _persist(self, order: random.Random, destination: Path) -> Outcome:
        """Run the program again and again, until it has the file."""
        outcome: Outcome = "reported"
        for _ in range(RUNS):
            end = order.randrange(200_000) if order.random() < 0.15 else None
            outcome = self._once(destination, _killing(end))
            if outcome == "right":
                break
            assert not destination.exists()
        return outcome

    def _once(self, destination: Path, report: Callable[[int], None]) -> Outcome:
        hub = self._hub()
        try:
            remote = hub.stat(REPO, NAME)
            download(hub, remote, destination, report)
        except MlxchatError as error:
            assert NAME in error.problem and error.remedy, error.problem
            return "reported"
        except Killed:
            return "killed"
        content = destination.read_bytes()
        assert len(content) == remote.size
        assert remote.checksum in (None, hashlib.sha256(content).hexdigest())
        held = [path.read_bytes() for path in destination.parents[1].glob("version*")]
        assert content in held  # a version that was, not one mixed of two
        return "right"

    def _hub(self) -> Hub:
        return Hub(self._server.endpoint, self._client, token=TOKEN, sleep=lambda _: None)

    def _versions(self, order: random.Random, folder: Path) -> list[Path]:
        """The file, a later one of the same size, and one of another."""
        size = order.choice(SIZES)
        paths = [folder / f"version{number}" for number in range(3)]
        for path, length in zip(paths, (size, size, order.choice(SIZES)), strict=True):
            path.write_bytes(order.randbytes(length))
        return paths

    def _leave_something(self, order: random.Random, destination: Path, content: bytes) -> None:
        """What an earlier process may have left: part of the file, or something else."""
        left = order.choice((None, content[: order.randint(0, len(content))], order.randbytes(999)))
        if left is not None:
            destination.parent.mkdir()
            partial(destination).write_bytes(left)

    def _fault(self, order: random.Random, size: int, versions: list[Path], vouched: bool) -> Fault:
        """One fault; those that only a checksum can show where there is one."""
        byte = order.randint(0, size)
        kinds = [
            Fault(cut=byte),
            Fault(cut=byte, ignore_range=True),
            Fault(ignore_range=True),
            Fault(status=order.choice((408, 500, 502, 503))),
            Fault(status=429, headers={"Retry-After": str(order.randint(0, 1000))}),
            Fault(status=416),
            Fault(misplace=order.randint(1, 1000)),
            Fault(elsewhere=self._other.endpoint),
            Fault(method="HEAD", status=order.choice((408, 429, 500, 503))),
            Fault(method="HEAD", elsewhere=self._other.endpoint),
            Fault(status=404),
        ]
        if vouched:
            kinds += [Fault(spoil=byte), Fault(spoil=byte, cut=byte + 1)]
            kinds += [Fault(change=path, cut=order.choice((None, byte))) for path in versions[1:]]
        if order.random() < 0.04:
            return Fault(cut=byte, stall=60)
        return replace(order.choice(kinds), times=order.choice((1, 1, 1, 2, 3, ATTEMPTS)))


def _killing(end: int | None) -> Callable[[int], None]:
    def report(done: int) -> None:
        if end is not None and done > end:
            raise Killed

    return report
