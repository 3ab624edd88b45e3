"""estimate: importance of players and interactions of pairs, exact or sampled with standard errors.  No torch."""

from .comparison import Comparison, ComparisonRow, compare
from .exact import exact_table
from .pairwise import interactions
from .pinned import PinnedGame
from .records import Estimate, Interactions
from .semivalues import banzhaf, leave_one_out, semivalue, shapley

__all__ = [
    "Comparison", "ComparisonRow", "Estimate", "Interactions", "PinnedGame", "banzhaf", "compare", "exact_table",
    "interactions", "leave_one_out", "semivalue", "shapley",
]
