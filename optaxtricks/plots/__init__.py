"""Pictures of what happens; needs Matplotlib, and draws on Axes of the caller's."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "optaxtricks.plots needs Matplotlib: pip install 'optaxtricks[plots]'"
    ) from error

from .embeddings import embedding_drift as embedding_drift
from .masks import kept_fraction as kept_fraction
from .over_steps import active_rows as active_rows
from .over_steps import collapse as collapse
from .over_steps import update_rms as update_rms

__all__ = ["active_rows", "collapse", "embedding_drift", "kept_fraction", "update_rms"]
