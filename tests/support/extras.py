"""Programs that only an extra installs."""

import importlib
import os
from types import ModuleType

import pytest

REQUIRED = "MLXCHAT_TEST_EXTRAS"  # set where they must be there, as in .ci/run


def extra(name: str) -> ModuleType:
    """Import a module of an extra; where it is not installed, skip the test.

    With the environment variable `REQUIRED`, fail instead, so that nothing is skipped unnoticed.
    """
    return importlib.import_module(name) if os.environ.get(REQUIRED) else pytest.importorskip(name)
