"""Code that asks for the machine, and is told of another one."""

import dataclasses
import sys

import pytest

from mlxchat import runtime


def use_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all modules that are loaded take this machine for one of that backend."""
    there = dataclasses.replace(runtime.machine(), backend=backend)
    for name, module in list(sys.modules.items()):
        if name.startswith("mlxchat.") and hasattr(module, "machine"):
            monkeypatch.setattr(module, "machine", lambda: there)
