"""estimate: importance of players and interactions of pairs, exact or sampled with standard errors.  No torch."""

from .exact import exact_table
from .pairwise import interactions
from .pinned import PinnedGame
from .records import Estimate, Interactions, SampleMarginals
from .semivalues import banzhaf, leave_one_out, semivalue, shapley
from .stopping import CutResolved

__all__ = [
    "CutResolved", "Estimate", "Interactions", "PinnedGame", "SampleMarginals", "banzhaf", "exact_table",
    "interactions", "leave_one_out", "semivalue", "shapley",
]
