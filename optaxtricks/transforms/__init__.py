"""What happens to them: one kernel family a file, each an Optax transformation."""

from .at_window_end import AtWindowEndState as AtWindowEndState
from .at_window_end import at_window_end as at_window_end
from .compact_entries import CompactEntriesState as CompactEntriesState
from .compact_entries import compact_entries as compact_entries
from .cosine_ema_decay import cosine_ema_decay as cosine_ema_decay
from .dropout import DropoutState as DropoutState
from .dropout import gradient_dropout as gradient_dropout
from .dropout import update_dropout as update_dropout
from .ema_params import EmaParamsState as EmaParamsState
from .ema_params import ema_params as ema_params
from .keep_entries import KeepEntriesState as KeepEntriesState
from .keep_entries import keep_entries as keep_entries
from .lazy_rows import LazyRowsState as LazyRowsState
from .lazy_rows import lazy_rows as lazy_rows
from .lion import LionState as LionState
from .lion import scale_by_lion as scale_by_lion
from .magma import MagmaState as MagmaState
from .magma import magma as magma
from .monitor_groups import MonitorGroupsState as MonitorGroupsState
from .monitor_groups import monitor_groups as monitor_groups
from .param_rms import scale_by_param_rms as scale_by_param_rms
from .per_layer import per_layer as per_layer
from .round_stochastically import (
    RoundStochasticallyState as RoundStochasticallyState,
)
from .round_stochastically import round_stochastically as round_stochastically
from .scale_by_depth import scale_by_depth as scale_by_depth
from .scale_by_path import ScaleByPathState as ScaleByPathState
from .scale_by_path import scale_by_path as scale_by_path
from .shrink_nonfinite import shrink_nonfinite as shrink_nonfinite
from .tiger import TigerState as TigerState
from .tiger import scale_by_tiger as scale_by_tiger

__all__ = [
    "AtWindowEndState",
    "CompactEntriesState",
    "DropoutState",
    "EmaParamsState",
    "KeepEntriesState",
    "LazyRowsState",
    "LionState",
    "MagmaState",
    "MonitorGroupsState",
    "RoundStochasticallyState",
    "ScaleByPathState",
    "TigerState",
    "at_window_end",
    "compact_entries",
    "cosine_ema_decay",
    "ema_params",
    "gradient_dropout",
    "keep_entries",
    "lazy_rows",
    "magma",
    "monitor_groups",
    "per_layer",
    "round_stochastically",
    "scale_by_depth",
    "scale_by_lion",
    "scale_by_param_rms",
    "scale_by_path",
    "scale_by_tiger",
    "shrink_nonfinite",
    "update_dropout",
]
