"""What happens to them: one kernel family a file, each an Optax transformation."""

from .compact_entries import CompactEntriesState as CompactEntriesState
from .compact_entries import compact_entries as compact_entries
from .dropout import DropoutState as DropoutState
from .dropout import gradient_dropout as gradient_dropout
from .dropout import update_dropout as update_dropout
from .keep_entries import KeepEntriesState as KeepEntriesState
from .keep_entries import keep_entries as keep_entries

__all__ = [
    "CompactEntriesState",
    "DropoutState",
    "KeepEntriesState",
    "compact_entries",
    "gradient_dropout",
    "keep_entries",
    "update_dropout",
]
