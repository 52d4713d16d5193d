"""Failures that need no traceback: the user's mistake, or a stage that has told its own."""


class InputError(Exception):
    """Bad data, parameters or environment.

    The message is one sentence or two: which file or key, what is wrong, what to do. Commands and
    flows print it without a traceback and exit with status 1.
    """


class StageError(Exception):
    """A stage failed in a process of its own, whose log holds the reason; it may be tried again."""
