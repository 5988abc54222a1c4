"""The process of a measurement: ``python -m mlxchat.doctor.child MODULE FUNCTION``.

It reads the function's arguments as a JSON object from standard input, and writes what was measured
as another to standard output.
"""

import importlib
import json
import sys

from mlxchat.doctor.facts import Measurement
from mlxchat.json_text import parse_json


def report_measurement() -> None:
    """Call the function, and write what it returns as the last line of standard output."""
    module, function = sys.argv[1:]
    measure = getattr(importlib.import_module(module), function)
    arguments = parse_json(sys.stdin.read())
    assert isinstance(arguments, dict)
    measured: Measurement = measure(**arguments)
    sys.stdout.write(f"\n{json.dumps(measured.model_dump())}\n")  # NaN and infinity too


if __name__ == "__main__":
    report_measurement()
