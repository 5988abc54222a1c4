"""Marks of single cases of a test."""

from typing import Any

import pytest


def slow(*values: object) -> Any:
    """A case of a parametrized test that only ``pytest -m slow`` runs."""
    names = [getattr(value, "__name__", "") for value in values]
    assert not any(name.startswith("test_") for name in names), "write @pytest.mark.slow"
    return pytest.param(*values, marks=pytest.mark.slow)
