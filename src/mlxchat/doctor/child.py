"""The process of a measurement: ``python -m mlxchat.doctor.child MODULE FUNCTION``.

It reads the function's arguments as a JSON object from standard input, and writes what was measured
as another to standard output.
"""

import importlib
import json
import sys

from mlxchat.doctor.probes import Measurement
from mlxchat.errors import MlxchatError
from mlxchat.json_text import parse_json


def report_measurement() -> None:
    """Call the function, and write what it returns as the last line of standard output.

    An error that a user can fix ends it with one line, its problem and its remedy.
    """
    module, function = sys.argv[1:]
    arguments = parse_json(sys.stdin.read())
    assert isinstance(arguments, dict)
    try:
        measure = getattr(importlib.import_module(module), function)
        measured: Measurement = measure(**arguments)
    except MlxchatError as error:
        sys.exit(f"{error.problem} {error.remedy}")
    sys.stdout.write(f"\n{json.dumps(measured.model_dump())}\n")  # NaN and infinity too


if __name__ == "__main__":
    report_measurement()
