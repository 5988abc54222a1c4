"""Where the tests, the repository and the data beside it are."""

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
SHARED = REPOSITORY.parent / "shared"  # data too large for the repository

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
