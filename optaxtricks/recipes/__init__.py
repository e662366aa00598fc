"""Ready-made: chains and partitions of the transformations, without arithmetic."""

from .child_tuning import child_tuning_d as child_tuning_d
from .child_tuning import child_tuning_f as child_tuning_f
from .sign_methods import lion as lion
from .sign_methods import mixed_sign as mixed_sign
from .sign_methods import tiger as tiger
from .two_timescale import two_timescale as two_timescale

__all__ = [
    "child_tuning_d",
    "child_tuning_f",
    "lion",
    "mixed_sign",
    "tiger",
    "two_timescale",
]
