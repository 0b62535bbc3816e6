"""The exception for mistakes of the user."""


class GapinitError(Exception):
    """A user's mistake; the message says where it is, what was expected and what to do.

    The command line prints the message without a traceback and exits with status 1.
    Any other uncaught exception is a defect of gapinit and keeps its traceback.
    """
