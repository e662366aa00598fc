"""Ready-made: chains and partitions of the transformations, without arithmetic."""

from .child_tuning import ChildTuningDState as ChildTuningDState
from .child_tuning import child_tuning_d as child_tuning_d
from .child_tuning import child_tuning_f as child_tuning_f
from .ladder import ladder as ladder
from .ladder import side_value_and_grad as side_value_and_grad
from .sign_methods import lion as lion
from .sign_methods import mixed_sign as mixed_sign
from .sign_methods import tiger as tiger
from .two_timescale import two_timescale as two_timescale

__all__ = [
    "ChildTuningDState",
    "child_tuning_d",
    "child_tuning_f",
    "ladder",
    "lion",
    "mixed_sign",
    "side_value_and_grad",
    "tiger",
    "two_timescale",
]
