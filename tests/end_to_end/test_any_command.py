"""No command may break a rule of the command line, whatever its options and files."""

import os
import subprocess
import sys

import pytest
from support.places import REPOSITORY

EXAMPLES = 20  # one of each command


@pytest.mark.slow
def test_random_options_and_damaged_files_give_results_or_clear_errors() -> None:
    """It runs in a process of its own, whose forks hold no threads of other tests."""
    script = REPOSITORY / "benchmarks" / "command_fuzz.py"
    ended = subprocess.run(
        [sys.executable, script, f"--examples={EXAMPLES}", "--patience=2"],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
