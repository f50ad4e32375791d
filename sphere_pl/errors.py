"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in what the user gave: what was given, what was expected and what to do next.

    The command line prints its message alone, without a traceback, and exits with its status.

    Attributes:
        status: The exit status.
    """

    status = 2
