"""The process of a measurement: ``python -m mlxchat.doctor.child MODULE FUNCTION``.

Its arguments are a JSON object on standard input; what is measured is one on standard output.
"""

import importlib
import json
import sys

from mlxchat.doctor.facts import Measured


def report_measurement() -> None:
    """Call the function, and write what it returns as the last line of standard output."""
    module, function = sys.argv[1:]
    measure = getattr(importlib.import_module(module), function)
    measured: Measured = measure(**json.load(sys.stdin))
    sys.stdout.write(f"\n{measured.model_dump_json()}\n")


if __name__ == "__main__":
    report_measurement()
