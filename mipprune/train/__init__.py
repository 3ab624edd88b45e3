"""train: gradient steps, for those who want them while or after pruning."""

from .fine_tuning import FineTuned, fine_tune
from .flatness import FlatnessPenalty
from .joint import TrainAndPruneReport, TrainAndPruneResult, train_and_prune
from .schedule import CubicSchedule, PruningEvent

__all__ = ["CubicSchedule", "FineTuned", "FlatnessPenalty", "PruningEvent", "TrainAndPruneReport",
           "TrainAndPruneResult", "fine_tune", "train_and_prune"]
