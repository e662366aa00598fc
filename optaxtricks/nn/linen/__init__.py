"""The Flax modules of the room above, for Linen."""

from .row_embed import RowEmbed as RowEmbed
from .row_embed import row_value_and_grad as row_value_and_grad
from .side_ladder import SideLadder as SideLadder

__all__ = ["RowEmbed", "SideLadder", "row_value_and_grad"]
