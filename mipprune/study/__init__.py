"""study: what the rooms before it found, compared, repeated over grids, stored and drawn."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .cell import Cell, StoredCell
    from .comparison import Comparison, ComparisonRow, SolutionRow, compare
    from .drawn import Drawn
    from .gap_kind import GapBoundSection
    from .kinds import EstimateSection, Kind, SolveSection, register_kind
    from .paper_kinds import (
        GtapSection,
        InteractionsSection,
        OamipSection,
        RanksSection,
        TrainAndPruneSection,
    )
    from .plots import plot_comparison
    from .runner import RunSummary
    from .sqlite import SqliteStorage
    from .storage import StudyStorage
    from .study import Study

_HOMES = {
    "Cell": "cell", "StoredCell": "cell",
    "Comparison": "comparison", "ComparisonRow": "comparison", "SolutionRow": "comparison", "compare": "comparison",
    "Drawn": "drawn",
    "GapBoundSection": "gap_kind",
    "EstimateSection": "kinds", "Kind": "kinds", "SolveSection": "kinds", "register_kind": "kinds",
    **dict.fromkeys(
        ("GtapSection", "InteractionsSection", "OamipSection", "RanksSection", "TrainAndPruneSection"), "paper_kinds"
    ),
    "plot_comparison": "plots",
    "RunSummary": "runner",
    "SqliteStorage": "sqlite",
    "StudyStorage": "storage",
    "Study": "study",
}
__getattr__ = lazy_attributes(__name__, _HOMES)
__all__ = [
    "Cell", "Comparison", "ComparisonRow", "Drawn", "EstimateSection", "GapBoundSection", "GtapSection",
    "InteractionsSection", "Kind", "OamipSection", "RanksSection", "RunSummary", "SolutionRow", "SolveSection",
    "SqliteStorage", "StoredCell", "Study", "StudyStorage", "TrainAndPruneSection", "compare", "plot_comparison",
    "register_kind",
]
