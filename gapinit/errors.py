"""The one exception that a user's mistake raises."""


class GapinitError(Exception):
    """A mistake of the user's, told in one message: where it is, what was expected, what to do.

    The command line prints the message without a traceback and exits with status 1.
    Anything else that escapes is a defect of gapinit and keeps its traceback.
    """
