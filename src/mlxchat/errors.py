"""The exceptions that reach the person at the keyboard."""


class MlxchatError(Exception):
    """Something the user can understand and mend.

    The command line prints both parts, a line each, and no traceback (``MLXCHAT_DEBUG=1`` shows
    it).

    Args:
        problem: what is wrong, naming the file, setting or number at fault.
        remedy: what to do about it: a command where one helps.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class LockedError(MlxchatError):
    """Another process writes what this one would: it will end, so that trying again can help."""
