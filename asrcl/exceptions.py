"""The one exception that means "your input, not our code"."""


class InputError(ValueError):
    """Bad input from the user.

    The message is one line that names the file, tensor or option at fault and what to do about it. The command line prints
    that line without a traceback and exits with code 2.
    """
