"""The one exception that means "your input, not our code"."""

from asrcl.visible import visible

LONGEST = 2000
"""Characters of a message; names in files can be of any length."""


class InputError(ValueError):
    """Bad input from the user.

    The message is one line that names the file, tensor or option at fault and what to do about it. The command line prints
    that line without a traceback and exits with code 2. What a name in it could do to a terminal is
    written out, and the middle of what is very long left out.
    """

    def __str__(self) -> str:
        text = visible(super().__str__(), keep="\n")
        return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} [...] {text[-LONGEST // 4 :]}"
