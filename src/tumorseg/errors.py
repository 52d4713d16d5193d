"""The one exception that stands for a mistake of the user, not of the program."""


class InputError(Exception):
    """Bad data, parameters or environment.

    The message is one sentence or two: which file or key, what is wrong, what to do. Commands and
    flows print it without a traceback and exit with status 1.
    """
