"""Failures that need no traceback: the user's mistake, or a stage that has told its own."""


class InputError(Exception):
    """Bad data, parameters or environment.

    The message is one sentence or two: which file or key, what is wrong, what to do. Commands and
    flows print it without a traceback and exit with status 1.
    """


class StageError(Exception):
    """A step failed for a reason outside the input, and may be tried again.

    The message is one sentence without paths or names from the data: alerts carry it.
    """
