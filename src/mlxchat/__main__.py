"""The beginning of the program: ``mlxchat`` and ``python -m mlxchat``."""

import signal


def run_program() -> None:
    """Import the command line and run it.

    The import can take a second. Ctrl-C ends the process without a word meanwhile; Python's own
    handler would print a traceback.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mlxchat.cli.app import main

    signal.signal(signal.SIGINT, handler)
    main()


if __name__ == "__main__":
    run_program()
