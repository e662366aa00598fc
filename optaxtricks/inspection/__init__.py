"""What is there to see: pure functions of an optimizer, its state, and arrays."""

from .averaged_params import averaged_params as averaged_params
from .collapse_metrics import collapse_metrics as collapse_metrics
from .embedding_health import embedding_health as embedding_health
from .metrics import metrics as metrics
from .state_shardings import state_shardings as state_shardings
from .summary import summary as summary

__all__ = [
    "averaged_params",
    "collapse_metrics",
    "embedding_health",
    "metrics",
    "state_shardings",
    "summary",
]
