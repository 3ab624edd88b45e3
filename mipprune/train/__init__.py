"""train: gradient steps, for those who want them while or after pruning, and auxiliary heads."""

from .auxiliary import AuxiliaryNetwork, DecoupledLayer, fit_conv_head
from .fine_tuning import FineTuned, fine_tune
from .flatness import FlatnessPenalty
from .joint import train_and_prune
from .report import TrainAndPruneReport, TrainAndPruneResult
from .schedule import CubicSchedule, PruningEvent

__all__ = ["AuxiliaryNetwork", "CubicSchedule", "DecoupledLayer", "FineTuned", "FlatnessPenalty", "PruningEvent",
           "TrainAndPruneReport", "TrainAndPruneResult", "fine_tune", "fit_conv_head", "train_and_prune"]
