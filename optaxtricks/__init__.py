"""Training tricks for JAX as composable Optax transformations."""

import importlib
import types

from .recipes import child_tuning_d as child_tuning_d
from .recipes import child_tuning_f as child_tuning_f
from .recipes import ladder as ladder
from .recipes import lion as lion
from .recipes import mixed_sign as mixed_sign
from .recipes import side_value_and_grad as side_value_and_grad
from .recipes import tiger as tiger
from .selection import PathLabels as PathLabels
from .selection import PruneGroup as PruneGroup
from .selection import RowSparse as RowSparse
from .selection import dropout_mask as dropout_mask
from .selection import embedding_health as embedding_health
from .selection import fisher_information as fisher_information
from .selection import label_by_path as label_by_path
from .selection import merge as merge
from .selection import select as select
from .selection import split as split
from .selection import structural_prune as structural_prune
from .selection import top_fraction_mask as top_fraction_mask
from .transforms import AtWindowEndState as AtWindowEndState
from .transforms import CompactEntriesState as CompactEntriesState
from .transforms import DropoutState as DropoutState
from .transforms import KeepEntriesState as KeepEntriesState
from .transforms import LionState as LionState
from .transforms import TigerState as TigerState
from .transforms import at_window_end as at_window_end
from .transforms import compact_entries as compact_entries
from .transforms import gradient_dropout as gradient_dropout
from .transforms import keep_entries as keep_entries
from .transforms import lazy_rows as lazy_rows
from .transforms import scale_by_lion as scale_by_lion
from .transforms import scale_by_param_rms as scale_by_param_rms
from .transforms import scale_by_tiger as scale_by_tiger
from .transforms import shrink_nonfinite as shrink_nonfinite
from .transforms import update_dropout as update_dropout

__all__ = [
    "AtWindowEndState",
    "CompactEntriesState",
    "DropoutState",
    "KeepEntriesState",
    "LionState",
    "PathLabels",
    "PruneGroup",
    "RowSparse",
    "TigerState",
    "at_window_end",
    "child_tuning_d",
    "child_tuning_f",
    "compact_entries",
    "dropout_mask",
    "embedding_health",
    "fisher_information",
    "gradient_dropout",
    "keep_entries",
    "label_by_path",
    "ladder",
    "lazy_rows",
    "lion",
    "merge",
    "mixed_sign",
    "scale_by_lion",
    "scale_by_param_rms",
    "scale_by_tiger",
    "select",
    "shrink_nonfinite",
    "side_value_and_grad",
    "split",
    "structural_prune",
    "tiger",
    "top_fraction_mask",
    "update_dropout",
]


def __getattr__(name: str) -> types.ModuleType:
    """Imports the room `nn`, which needs Flax, when it is asked for."""
    if name == "nn":
        return importlib.import_module(f"{__name__}.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
