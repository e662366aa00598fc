"""The one exception of this folder."""


class CheckpointError(Exception):
    """A checkpoint that this run cannot go on from. The message is one line."""
