"""A disk that fails, fills up or loses its power at a chosen operation."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxchat import disk
from mlxchat.runtime import mx


class Killed(BaseException):
    """The process ended there."""


@dataclass
class Faults:
    """Counts what a save does to the disk, and has it fail from one of these operations on."""

    at: int  # the first to fail, from 0
    kind: str  # "once", "full" (all writing fails from there on) or "killed"
    done: int = 0

    def failing(self, operation: Callable[..., object], writes: Path | None = None) -> None:
        """Raise where this operation is one to fail; half of what it writes is written then."""
        number, self.done = self.done, self.done + 1
        if number < self.at or (number > self.at and self.kind != "full"):
            return
        if writes is not None:
            writes.write_bytes(b"half")
        if self.kind == "killed":
            raise Killed
        code = errno.ENOSPC if self.kind == "full" else errno.EIO
        raise OSError(code, os.strerror(code))

    def patch(self, patched: pytest.MonkeyPatch) -> None:
        """Put the faults in the way of writes, folders, syncs, renames and removals."""
        save_arrays, write_text, sync = mx.save_safetensors, Path.write_text, disk.sync
        mkdir, rename, remove = Path.mkdir, Path.rename, shutil.rmtree

        def faulty(original: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **keywords: object) -> object:
                self.failing(original)
                return original(*arguments, **keywords)

            return call

        def faulty_write(original: Callable[..., object]) -> Callable[..., object]:
            def call(path: Path | str, *arguments: object, **keywords: object) -> object:
                self.failing(original, Path(path))
                return original(path, *arguments, **keywords)

            return call

        patched.setattr(mx, "save_safetensors", faulty_write(save_arrays))
        patched.setattr(Path, "write_text", faulty_write(write_text))
        patched.setattr(Path, "mkdir", faulty(mkdir))
        patched.setattr(disk, "sync", faulty(sync))
        if self.kind != "full":  # a full disk lets one rename and remove
            patched.setattr(Path, "rename", faulty(rename))
            patched.setattr(shutil, "rmtree", faulty(remove))
