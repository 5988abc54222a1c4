"""Processes of Python that this package starts to run modules of its own."""

import sys
from pathlib import Path

# `-m` and `-c` look for modules in the working directory first; the option -P, which prevents that,
# is not in Python 3.10. The folder of the package comes last, in case it is found no other way.
_START = """
import sys
if sys.path[0] == "":
    del sys.path[0]
sys.path.append(sys.argv.pop(1).rpartition("/")[0])
import runpy
runpy.run_module("{}", run_name="__main__", alter_sys=True)
"""


def own_command(module: str, *arguments: str) -> list[str]:
    """Return a command line that runs a module, as ``python -m`` does, with arguments.

    It imports what this process imports, whatever Python files are in the working directory.
    """
    package = Path(__file__).parent
    return [sys.executable, "-c", _START.format(module), str(package), *arguments]
