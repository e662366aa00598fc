"""Flax modules that the techniques need: NNX here, Linen in the module ``linen``."""

try:
    import flax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "optaxtricks.nn needs Flax: pip install 'optaxtricks[flax]'"
    ) from error

from . import linen as linen
from .averaged import averaged as averaged
from .cache_taps import cache_taps as cache_taps
from .half_swap import half_swap as half_swap
from .row_embed import RowEmbed as RowEmbed
from .row_embed import row_value_and_grad as row_value_and_grad
from .side_filter import side_filter as side_filter
from .side_ladder import SideLadder as SideLadder
from .tap_cache import TapCache as TapCache

__all__ = [
    "RowEmbed",
    "SideLadder",
    "TapCache",
    "averaged",
    "cache_taps",
    "half_swap",
    "linen",
    "row_value_and_grad",
    "side_filter",
]
