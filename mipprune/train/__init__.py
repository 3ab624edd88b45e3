"""train: gradient steps, for those who want them while or after pruning."""

from .fine_tuning import FineTuned, fine_tune
from .flatness import FlatnessPenalty

__all__ = ["FineTuned", "FlatnessPenalty", "fine_tune"]
