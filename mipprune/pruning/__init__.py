"""pruning: the one orchestrator.  Everything else in the house works without it."""

from .certificate import AccuracyCertificate
from .options import AccuracyDrop, Budget, Latency, LossIncrease, Macs, Params, Units
from .pipeline import prune
from .result import PruneReport, PruneResult

__all__ = [
    "AccuracyCertificate", "AccuracyDrop", "Budget", "Latency", "LossIncrease", "Macs", "Params", "PruneReport",
    "PruneResult", "Units", "prune",
]
