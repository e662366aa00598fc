"""Training tricks for JAX as composable Optax transformations."""

import importlib
import types
import typing

from .inspection import averaged_params as averaged_params
from .inspection import collapse_metrics as collapse_metrics
from .inspection import embedding_health as embedding_health
from .inspection import metrics as metrics
from .inspection import state_shardings as state_shardings
from .inspection import summary as summary
from .recipes import child_tuning_d as child_tuning_d
from .recipes import child_tuning_f as child_tuning_f
from .recipes import ladder as ladder
from .recipes import lion as lion
from .recipes import mixed_sign as mixed_sign
from .recipes import side_value_and_grad as side_value_and_grad
from .recipes import tiger as tiger
from .recipes import two_timescale as two_timescale
from .selection import PathLabels as PathLabels
from .selection import PruneGroup as PruneGroup
from .selection import RowSparse as RowSparse
from .selection import dropout_mask as dropout_mask
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
from .transforms import EmaParamsState as EmaParamsState
from .transforms import KeepEntriesState as KeepEntriesState
from .transforms import LionState as LionState
from .transforms import MagmaState as MagmaState
from .transforms import MonitorGroupsState as MonitorGroupsState
from .transforms import ScaleByPathState as ScaleByPathState
from .transforms import TigerState as TigerState
from .transforms import at_window_end as at_window_end
from .transforms import compact_entries as compact_entries
from .transforms import cosine_ema_decay as cosine_ema_decay
from .transforms import ema_params as ema_params
from .transforms import gradient_dropout as gradient_dropout
from .transforms import keep_entries as keep_entries
from .transforms import lazy_rows as lazy_rows
from .transforms import magma as magma
from .transforms import monitor_groups as monitor_groups
from .transforms import per_layer as per_layer
from .transforms import scale_by_depth as scale_by_depth
from .transforms import scale_by_lion as scale_by_lion
from .transforms import scale_by_param_rms as scale_by_param_rms
from .transforms import scale_by_path as scale_by_path
from .transforms import scale_by_tiger as scale_by_tiger
from .transforms import shrink_nonfinite as shrink_nonfinite
from .transforms import update_dropout as update_dropout

__all__ = [
    "AtWindowEndState",
    "CompactEntriesState",
    "DropoutState",
    "EmaParamsState",
    "KeepEntriesState",
    "LionState",
    "MagmaState",
    "MonitorGroupsState",
    "PathLabels",
    "PruneGroup",
    "RowSparse",
    "ScaleByPathState",
    "TigerState",
    "at_window_end",
    "averaged_params",
    "child_tuning_d",
    "child_tuning_f",
    "collapse_metrics",
    "compact_entries",
    "cosine_ema_decay",
    "dropout_mask",
    "ema_params",
    "embedding_health",
    "fisher_information",
    "gradient_dropout",
    "keep_entries",
    "label_by_path",
    "ladder",
    "lazy_rows",
    "lion",
    "magma",
    "merge",
    "metrics",
    "mixed_sign",
    "monitor_groups",
    "per_layer",
    "scale_by_depth",
    "scale_by_lion",
    "scale_by_param_rms",
    "scale_by_path",
    "scale_by_tiger",
    "select",
    "shrink_nonfinite",
    "side_value_and_grad",
    "split",
    "state_shardings",
    "structural_prune",
    "summary",
    "tiger",
    "top_fraction_mask",
    "two_timescale",
    "update_dropout",
]


if typing.TYPE_CHECKING:
    from . import nn as nn
    from . import plots as plots
else:

    def __getattr__(name: str) -> types.ModuleType:
        """Imports a room that needs an extra, Flax or Matplotlib, when asked for it."""
        if name in ("nn", "plots"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
