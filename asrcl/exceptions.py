"""The one exception that means "your input, not our code"."""

from asrcl.visible import visible


class InputError(ValueError):
    """Bad input from the user.

    The message is one line that names the file, tensor or option at fault and what to do about it. The command line prints
    that line without a traceback and exits with code 2. What a name in it could do to a terminal is written out.
    """

    def __str__(self) -> str:
        return visible(super().__str__(), keep="\n")
