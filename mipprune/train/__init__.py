"""train: gradient steps, for those who want them after pruning."""

from .fine_tuning import FineTuned, fine_tune

__all__ = ["FineTuned", "fine_tune"]
