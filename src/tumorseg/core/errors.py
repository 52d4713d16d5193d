"""Failures that need no traceback: a user's mistake, or a stage that has printed its own."""

MISTAKE = 2


class InputError(Exception):
    """Bad data, parameters or environment.

    The message is one sentence or two: which file or key, what is wrong, what to do. Commands print
    it without a traceback and exit with status 1, flows with status `MISTAKE`.
    """


class StageError(Exception):
    """A step failed.

    The message is one sentence without paths or names from the data: alerts carry it.

    Attributes:
        again: Whether it may help to try again.
    """

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again
