"""What is there to see: pure functions of an optimizer and its state."""

from .metrics import metrics as metrics
from .state_shardings import state_shardings as state_shardings
from .summary import summary as summary

__all__ = ["metrics", "state_shardings", "summary"]
