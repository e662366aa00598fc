"""Training tricks for JAX as composable Optax transformations."""

from .recipes import child_tuning_d as child_tuning_d
from .recipes import child_tuning_f as child_tuning_f
from .selection import PathLabels as PathLabels
from .selection import dropout_mask as dropout_mask
from .selection import fisher_information as fisher_information
from .selection import label_by_path as label_by_path
from .selection import merge as merge
from .selection import select as select
from .selection import split as split
from .selection import top_fraction_mask as top_fraction_mask
from .transforms import CompactEntriesState as CompactEntriesState
from .transforms import DropoutState as DropoutState
from .transforms import KeepEntriesState as KeepEntriesState
from .transforms import compact_entries as compact_entries
from .transforms import gradient_dropout as gradient_dropout
from .transforms import keep_entries as keep_entries
from .transforms import update_dropout as update_dropout

__all__ = [
    "CompactEntriesState",
    "DropoutState",
    "KeepEntriesState",
    "PathLabels",
    "child_tuning_d",
    "child_tuning_f",
    "compact_entries",
    "dropout_mask",
    "fisher_information",
    "gradient_dropout",
    "keep_entries",
    "label_by_path",
    "merge",
    "select",
    "split",
    "top_fraction_mask",
    "update_dropout",
]
