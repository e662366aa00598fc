"""Orbax checkpoints that tell a damaged or a foreign one before it is used.

The folder needs JAX and Orbax alone, and may be copied.
"""

from .errors import CheckpointError as CheckpointError
from .store import Checkpoints as Checkpoints
from .store import Restored as Restored
