"""estimate: importance of players and interactions of pairs, exact or sampled with standard errors.  No torch."""

from .exact import exact_table
from .gtap import GtapResult, GtapRound, gtap_iterated_building, gtap_iterated_pruning, gtap_top_n
from .oracle import OracleComparison, OracleRow, OracleSets, oracle_comparison, oracle_sets
from .pairwise import interactions
from .partial import k_partial
from .pinned import PinnedGame
from .records import Estimate, Interactions, SampleMarginals
from .semivalues import banzhaf, leave_one_out, semivalue, shapley
from .shapley_pruning import ShapleyPruningRanks, shapley_pruning_ranks
from .stopping import CutResolved

__all__ = [
    "CutResolved", "Estimate", "GtapResult", "GtapRound", "Interactions", "OracleComparison", "OracleRow",
    "OracleSets", "PinnedGame", "SampleMarginals", "ShapleyPruningRanks", "banzhaf", "exact_table",
    "gtap_iterated_building", "gtap_iterated_pruning", "gtap_top_n", "interactions", "k_partial", "leave_one_out",
    "oracle_comparison", "oracle_sets", "semivalue", "shapley", "shapley_pruning_ranks",
]
