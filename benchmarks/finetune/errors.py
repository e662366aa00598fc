"""The one exception that means: the user's input is at fault."""


class InputError(Exception):
    """Bad input. The message is one line; the command prints it and exits with 2."""
