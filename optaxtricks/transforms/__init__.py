"""What happens to them: one kernel family a file, each an Optax transformation."""

from .dropout import DropoutState as DropoutState
from .dropout import gradient_dropout as gradient_dropout
from .dropout import update_dropout as update_dropout

__all__ = ["DropoutState", "gradient_dropout", "update_dropout"]
