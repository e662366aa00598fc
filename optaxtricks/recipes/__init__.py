"""Ready-made: chains and partitions of the transformations, without arithmetic."""

from .child_tuning import child_tuning_d as child_tuning_d
from .child_tuning import child_tuning_f as child_tuning_f

__all__ = [
    "child_tuning_d",
    "child_tuning_f",
]
