"""Which entries: pure functions on trees, without optimizer state."""

from .dropout_mask import dropout_mask as dropout_mask
from .fisher import fisher_information as fisher_information
from .labels import PathLabels as PathLabels
from .labels import label_by_path as label_by_path
from .row_sparse import RowSparse as RowSparse
from .selectors import merge as merge
from .selectors import select as select
from .selectors import split as split
from .structural_prune import PruneGroup as PruneGroup
from .structural_prune import structural_prune as structural_prune
from .top_fraction import top_fraction_mask as top_fraction_mask

__all__ = [
    "PathLabels",
    "PruneGroup",
    "RowSparse",
    "dropout_mask",
    "fisher_information",
    "label_by_path",
    "merge",
    "select",
    "split",
    "structural_prune",
    "top_fraction_mask",
]
