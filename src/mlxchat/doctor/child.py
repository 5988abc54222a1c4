"""The process of a measurement: ``python -m mlxchat.doctor.child MODULE FUNCTION``.

Its arguments are a JSON object on standard input; what is measured is one on standard output.
"""

import importlib
import json
import sys

from mlxchat.doctor.facts import Measurement
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
