"""Marks of single cases of a test."""

from typing import Any

import pytest


def slow(*values: object) -> Any:
    """A case of a parametrized test that only ``pytest -m slow`` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
